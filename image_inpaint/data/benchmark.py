"""What eval.py paints: subjects x scenes (the paper: 12 x 20), drawn from the picturebook or read from folders.

On the picturebook a scene is drawn without the subject, so that a hole has a true answer: the same scene with it. Each
subject's photographs show one facing, standing, by day; items ask for what they do not show, in turns: another facing
(the reference is turned), another pose (animals, lying) and another light (a scene at night).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from common.data import read_subjects
from common.files import check_file_name
from common.images import list_pictures, load_image
from common.joining import digest_of_data
from common.masks import load_mask
from common.runs import InputError, read_object
from image_inpaint.data.boxes import find_boxes
from image_inpaint.triples import reference_box

SUBJECTS, SCENES = 12, 20  # Sec. 5.1
CONDITIONS = ("as photographed", "facing", "light", "pose")
ORDER = (0, 3, 4, 7, 1, 2, 5, 6)  # of each eight scenes: four have all conditions
SHOWN = ("scene", "truth", "unmarked", "reference")


@dataclass(frozen=True)
class Subject:
    """photographs: the training pictures; crops: the subject cut out of each, what likeness is measured to."""

    name: str
    class_name: str
    folder: Path
    crops: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Item:
    """A picture with a hole [H, W] and a reference. truth: the picture with the subject drawn in; twin: the same thing
    in its place without the subject's marking, right kind and colour, no identity; kind: of the subject, one of
    `things` in the true picture; caption: of the subject, in words. None where nobody knows."""

    id: str
    subject: str
    condition: str
    source: Image.Image
    fill: Tensor
    reference: Image.Image
    truth: Image.Image | None = None
    twin: Image.Image | None = None
    region: Tensor | None = None  # [H, W], the subject's own pixels in `truth`
    kind: str | None = None
    things: int = 1
    caption: str | None = None

    @property
    def digest(self) -> str:
        """Twelve digits of the pictures that it is made of."""
        pictures = [one.tobytes() for one in (self.source, self.reference, self.truth, self.twin) if one]
        return digest_of_data(self.source.size, (), self.fill.numpy().tobytes(), *pictures)


def crop_to(picture: Image.Image, box: Sequence[int]) -> Image.Image:
    """The box with the margin that training references have."""
    return picture.crop(reference_box(tuple(box), (picture.height, picture.width)))


def read_subject(folder: Path, class_name: str, boxes: str, detection: argparse.Namespace | None = None) -> Subject:
    """The photographs of a folder, cut to the subject. boxes, detection: of find_boxes."""
    paths = list_pictures(folder)
    pictures = [load_image(path) for path in paths]
    found = find_boxes(boxes, paths, pictures, detection=detection)
    crops = tuple(crop_to(picture, box) for picture, box in zip(pictures, found, strict=True))
    return Subject(folder.name, class_name, folder, crops)


def choose(subjects: int, scenes: int, items: int) -> tuple[int, int]:
    """How many subjects and scenes so many items are: 12 -> 2 x 6, 48 -> 8 x 6, 240 -> 12 x 20. Six scenes of each
    subject come first and further scenes after that, so that more items only add."""
    per_subject = min(scenes, max(6, -(-items // subjects)))
    return min(subjects, -(-items // min(scenes, 6))), min(per_subject, items)


def scene_numbers(count: int) -> list[int]:
    """The numbers of the first `count` scenes of a subject, 0, 3, 4, 7, 1, 2, 5, 6, 8, 11, …: so ordered, few scenes
    have all conditions too, each with and without another thing beside. All twenty are those from 0 to 19."""
    last = max(count, SCENES)
    return [start + k for start in range(0, last, len(ORDER)) for k in ORDER if start + k < last][:count]


# ----------------------------------------------------------------------------------------------------- picturebook


def picturebook_subjects(split: str, count: int) -> list[Subject]:
    from common.picturebook.benchmarks import ensure_subjects

    folder = ensure_subjects(split)
    return [read_subject(folder / one.name, one.class_name, "scene") for one in read_subjects(folder)[:count]]


def picturebook_items(subjects: Sequence[Subject], scenes: int, split: str) -> list[Item]:
    """The first `scenes` rooms of each subject. A photograph is the reference where it shows what is wanted; of another
    facing or pose the picturebook draws one."""
    from common.picturebook.benchmarks import ensure_rooms

    folder = ensure_rooms(split)
    rooms, items = read_object(folder / "rooms.json"), []
    for subject in subjects:
        for number in scene_numbers(scenes):
            key = f"{subject.name}/{number:02d}"
            room, seen = rooms[key], {name: load_image(folder / f"{key}_{name}.png") for name in SHOWN}
            fill, region = (load_mask(folder / f"{key}_{name}.png") for name in ("hole", "region"))
            reference = subject.crops[number % len(subject.crops)]
            if room["condition"] in ("facing", "pose"):
                reference = crop_to(seen["reference"], room["reference_box"])
            things = len(room["scenes"]["truth"]["things"])
            items.append(Item(
                key, subject.name, room["condition"], seen["scene"], fill, reference, seen["truth"], seen["unmarked"],
                region, room["kind"], things, room["caption"],
            ))  # fmt: skip
    return items


# ---------------------------------------------------------------------------------------------------- your pictures


def folder_subjects(args: argparse.Namespace) -> list[Subject]:
    """A folder of photographs per subject; its name is the subject's, and without digits at its end the class."""
    places = sorted(place for place in Path(args.subjects).iterdir() if place.is_dir() and place.name[0] != ".")
    if not places:
        raise InputError(f"--subjects {args.subjects} holds no folders; one of photographs per subject is needed")
    for place in places:
        check_file_name(place.name, f"a subject of {args.subjects}")
        if not place.name.strip("0123456789"):
            raise InputError(f"{place} names no class; call the folder after what its photographs show, such as chair2")
    return [read_subject(place, place.name.rstrip("0123456789"), args.boxes, args) for place in places]


def folder_rooms(folder: Path) -> list[tuple[str, Image.Image, Tensor]]:
    """Name, picture and hole of scenes <name>.* with masks <name>_mask.*, white = fill, of equal size."""
    paths: dict[str, Path] = {}
    for path in list_pictures(folder):
        if (other := paths.setdefault(path.stem, path)) != path:
            raise InputError(f"{folder} holds {other.name} and {path.name}, and one of them is meant: remove the other")
    rooms = []
    for name, path in paths.items():
        if name.endswith("_mask"):
            if name.removesuffix("_mask") not in paths:
                raise InputError(f"{path} is a mask without its picture; put it beside, or remove the mask")
            continue
        if f"{name}_mask" not in paths:
            raise InputError(f"{path} has no mask; put {name}_mask.png, white where to fill, beside it")
        check_file_name(name, f"a scene of {folder}")
        picture = load_image(path)
        rooms.append((name, picture, load_mask(paths[f"{name}_mask"], picture=picture)))
    if not rooms:
        raise InputError(f"--scenes {folder} holds no pictures beside masks")
    return rooms


def folder_items(subjects: Sequence[Subject], rooms: list[tuple[str, Image.Image, Tensor]]) -> list[Item]:
    """Every subject in every room."""
    return [Item(f"{subject.name}/{name}", subject.name, CONDITIONS[0], picture, fill,
                 subject.crops[number % len(subject.crops)])
            for subject in subjects for number, (name, picture, fill) in enumerate(rooms)]  # fmt: skip
