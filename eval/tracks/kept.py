"""Pictures behind committed rows, small, so that a page can show every method of a longer run beside a short one."""

from pathlib import Path

from PIL import Image

from common.images import load_image
from common.runs import atomic_path, read_json, write_json
from eval.tracks.track import RESULTS, Item, Picture, Track

ITEMS, SIDE, QUALITY = 12, 96, 82  # a few kilobytes a picture: 4 MB of all tracks together


def keep_pictures(track: Track) -> Path:
    """Write eval/results/pictures/<track>: items.json, and the pictures of the first items as small WebP files."""
    folder, entries = RESULTS / "pictures" / track.name, []
    for item in track.items[:ITEMS]:
        shown = [picture for picture in item.pictures if picture.path.is_file()]
        for number, picture in enumerate(shown):
            image = load_image(picture.path)
            image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            with atomic_path(folder / item.id / f"{number:02d}.webp") as temporary:
                image.save(temporary, format="WEBP", quality=QUALITY, method=6)
        pictures = [[picture.label, picture.method, picture.success] for picture in shown]
        entries.append({"id": item.id, "kind": item.kind, "source_prompt": item.source_prompt,
                        "target_prompt": item.target_prompt, "pictures": pictures})  # fmt: skip
    write_json(folder / "items.json", entries)
    return folder


def kept_items(name: str) -> list[Item]:
    """The items whose pictures are kept of a track; none where nothing is."""
    folder = RESULTS / "pictures" / name
    if not (folder / "items.json").is_file():
        return []
    found = []
    for entry in read_json(folder / "items.json"):
        place = folder / entry["id"]
        pictures = [Picture(label, place / f"{number:02d}.webp", method, success)
                    for number, (label, method, success) in enumerate(entry.pop("pictures"))]  # fmt: skip
        found.append(Item(**entry, pictures=pictures))
    return found
