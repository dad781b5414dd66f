"""What is edited in an evaluation: sources with exemplars and maps, from the picturebook, a folder, or ImageNet.

A folder holds pairs.json, a list of {"name", "source", "exemplars": [...], "edit_maps": [...]} with paths relative to
it (or absolute, for pictures that are not copied), or, without that file, source_1.*, exemplar_1.*, map_1.* and so on.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.data import of_each_kind, read_pie_bench
from common.files import check_file_name
from common.flags import check_prompt
from common.images import is_picture, list_pictures, save_png
from common.joining import digest_of_data
from common.runs import InputError, read_json, write_json
from pixels.edit_map import from_mask, gradient


@dataclass(frozen=True)
class Pair:
    """One item. white: what it means in its maps. truth: the true composite, on the picturebook. item: its EditItem.
    any_map: its maps come from a database and were drawn on no picture."""

    id: str
    source: Path
    exemplars: tuple[Path, ...]
    edit_maps: tuple[Path, ...]
    white: str = "keep"
    prompt: str = ""
    truth: Path | None = None
    kind: str = ""
    item: Any = field(default=None, repr=False, compare=False)
    any_map: bool = False

    @property
    def digest(self) -> str:
        """Twelve digits of all that an edit of this pair, and its scores, depend on."""
        files = [self.source, *self.exemplars, *self.edit_maps, *([self.truth] if self.truth else [])]
        return digest_of_data([self.white, self.prompt, self.kind, self.any_map], files)


def find_pairs(
    dataset: str, split: str = "test", full: bool = False, white: str = "keep", limit: int | None = None
) -> list[Pair]:
    """The pairs of a data set: "picturebook", its edit items; "compositions" (common/picturebook/compositions.py); a
    PIE-Bench folder; or a folder of pairs. full: not the quick subset alone. white: what it means in a folder's maps.
    """
    from common.picturebook.benchmarks import ensure_compositions, ensure_pie_bench

    if dataset == "picturebook":
        return benchmark_pairs(ensure_pie_bench(split=split, quick=not full), limit)
    if dataset == "compositions":
        return benchmark_pairs(ensure_compositions(split), limit)
    if (Path(dataset) / "mapping_file.json").is_file():
        return benchmark_pairs(Path(dataset), limit)
    return read_pairs(dataset, white, limit)


def benchmark_pairs(folder: Path, limit: int | None = None) -> list[Pair]:
    """The items of a PIE-Bench folder that have exemplar and map (white = edit), but those of style, whose maps are
    black all over; the true picture with them where there is one."""
    pairs = []
    for item in read_pie_bench(folder, border=0):
        kind = "composition" if "composition" in item.extras else item.extras.get("edit", {}).get("kind", "")
        paths = {name: folder / item.extras[f"{name}_path"] for name in ("exemplar", "edit_map", "truth")
                 if f"{name}_path" in item.extras}  # fmt: skip
        if kind != "style" and {"exemplar", "edit_map"} <= paths.keys():
            drawn = item if {"edit", "composition"} & item.extras.keys() else None
            pairs.append(Pair(item.id, item.image_path, (paths["exemplar"],), (paths["edit_map"],), "edit",
                              item.target_prompt, paths.get("truth"), kind, drawn))  # fmt: skip
    return of_each_kind(pairs, lambda pair: pair.kind, limit)


def read_pairs(folder: str | Path, white: str = "keep", limit: int | None = None) -> list[Pair]:
    """The pairs of a folder; InputError names the entry that is wrong."""
    folder = Path(folder)
    file = folder / "pairs.json"
    entries = read_json(file) if file.exists() else named_pairs(folder)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file} has to be a list of objects, at least one")
    pairs = []
    for number, entry in enumerate(entries[:limit]):
        place = f"{file}, entry {number}:"
        try:
            name, source = str(entry["name"]), existing(folder, entry["source"])
            if not all(isinstance(entry[key], list) for key in ("exemplars", "edit_maps")):
                raise TypeError
            exemplars, maps = (tuple(existing(folder, path) for path in entry[k]) for k in ("exemplars", "edit_maps"))
            told = check_prompt(str(entry.get("prompt") or ""), f"{place} the prompt")
            if not isinstance(any_map := entry.get("any_map", False), bool):
                raise InputError(f"{place} any_map is {any_map!r}; true or false is needed")
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{place} name, source, and the lists exemplars and edit_maps are needed") from None
        if not exemplars or len(exemplars) != len(maps):
            raise InputError(f"{place} each exemplar needs a map")
        pairs.append(Pair(check_file_name(name, f"{file}: a name"), source, exemplars, maps, white, told,
                          any_map=any_map))  # fmt: skip
    if len({pair.id for pair in pairs}) < len(pairs):
        raise InputError(f"{file} has two entries of one name")
    return pairs


def named_pairs(folder: Path) -> list[dict[str, Any]]:
    """The entries of a folder without pairs.json: source_<name>.*, exemplar_<name>.* and map_<name>.*."""
    arrays = [path for path in folder.glob("*") if path.suffix.lower() == ".npy" and path.name[0] != "."]
    names = sorted({path.name for path in (*list_pictures(folder), *arrays)})
    found: dict[str, dict[str, str]] = {}
    for file in names:
        kind, _, name = Path(file).stem.partition("_")
        if name and (kind := kind.lower()) in ("source", "exemplar", "map"):
            if (other := found.setdefault(name, {}).setdefault(kind, file)) != file:
                raise InputError(f"{folder} holds {other} and {file}, and one of them is meant: remove the other")
    for name, files in found.items():
        for kind in ("source", "exemplar", "map"):
            if kind not in files:
                near = [file for file in names if file.lower().startswith(f"{kind}_{name}.".lower())]
                spelt = f" ({near[0]} is spelt otherwise)" if near else ""
                raise InputError(f"{folder / f'{kind}_{name}'}.* is missing{spelt}")
    if not found:
        raise InputError(f"{folder} holds no pairs; pairs.json or source_1.*, exemplar_1.*, map_1.* are needed")
    return [{"name": name, "source": files["source"], "exemplars": [files["exemplar"]], "edit_maps": [files["map"]]}
            for name, files in sorted(found.items())]  # fmt: skip


def existing(folder: Path, path: str) -> Path:
    if not (folder / path).is_file():
        raise InputError(f"{folder / 'pairs.json'} names {path}, which is missing")
    return folder / path  # an absolute path stays what it is


# ------------------------------------------------------------------------------------------- the paper's protocol


def build_pairs(
    pictures: str | Path, output: str | Path, count: int = 3000, seed: int = 0, maps: str | Path | None = None
) -> int:
    """Write output/pairs.json after the paper's protocol: `count` random pairs of the pictures in a folder (all of its
    subfolders too), each with a random map. maps: a folder of maps, white = keep; without one, `draw_maps` fills
    output/maps. No picture is used twice while they last. Gives the number of pairs."""
    found = sorted(path for path in Path(pictures).rglob("*") if is_picture(path) and path.is_file())
    if len(found) < 2:
        raise InputError(f"{pictures} holds {len(found)} pictures; at least two make a pair")
    output = Path(output)
    database = list_pictures(maps) if maps else draw_maps(output / "maps")
    rng = random.Random(f"pairs {seed}")
    drawn: list[Path] = []
    while len(drawn) < 2 * count:
        drawn += rng.sample(found, len(found))
    entries = [
        {"name": f"{number:05d}", "source": str(drawn[2 * number].resolve()),
         "exemplars": [str(drawn[2 * number + 1].resolve())], "edit_maps": [str(rng.choice(database).resolve())],
         "any_map": True}
        for number in range(count)
    ]  # fmt: skip
    file = output / "pairs.json"
    if file.exists() and read_json(file) != entries:
        raise InputError(f"{file} holds other pairs, which these would replace; name another --dataset")
    write_json(file, entries)
    return count


def draw_maps(folder: Path, count: int = 60, side: int = 256, seed: int = 0) -> list[Path]:
    """A database of maps in the kinds that the paper shows: objects grown and blurred, and gradients. The authors' own
    was not released."""
    rng = random.Random(f"maps {seed}")
    places = []
    for number in range(count):
        if number % 3 == 0:
            start, to = rng.uniform(0, 0.5), rng.choice(("left", "right", "top", "bottom"))
            grey = gradient((side, side), to, start, start + rng.uniform(0.2, 0.5))
        else:
            grey = _blob(rng, side)
        places.append(folder / f"map_{number:03d}.png")
        save_png(places[-1], Image.fromarray((255 * grey[0, 0].numpy()).round().astype(np.uint8)))
    return places


def _blob(rng: random.Random, side: int) -> torch.Tensor:
    """A few overlapping ellipses, grown and ramped."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    mask = torch.zeros(side, side)
    centre = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
    for _ in range(rng.randint(1, 3)):
        middle = [c + rng.uniform(-0.12, 0.12) for c in centre]
        radius = rng.uniform(0.08, 0.28), rng.uniform(0.08, 0.28)
        mask[((y - middle[0]) / radius[0]) ** 2 + ((x - middle[1]) / radius[1]) ** 2 < 1] = 1
    return from_mask(mask, grow=rng.uniform(0, 0.05) * side, ramp=rng.uniform(0.02, 0.25) * side)
