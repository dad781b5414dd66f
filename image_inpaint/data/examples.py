"""What the two trainings read: photographs with boxes, pictures of a domain, scenes of the picturebook."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.images import is_picture, list_pictures, load_image, to_tensor
from common.runs import InputError, digest_of, read_object, write_json
from image_inpaint.data.boxes import Detector, find_boxes
from image_inpaint.masks import Box, box_of, check_box, integer, usable

MOST_PIXELS = 1024  # a photograph's longer side, before training cuts it
KEPT = 500  # pictures, after which a detector's boxes are written down


@dataclass(frozen=True)
class Examples:
    """count pictures; get(index, generator) -> (picture [3, H, W] in [0, 1], the box of a thing in it).

    paths: the files, whose content tells one training from another; about: twelve digits of all else that does.
    """

    count: int
    get: Callable[[int, torch.Generator], tuple[Tensor, Box]]
    paths: list[Path]
    about: str


def smaller(picture: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """At most MOST_PIXELS long, with its box."""
    factor = MOST_PIXELS / max(picture.size)
    if factor >= 1:
        return picture, box
    size = tuple(max(1, round(factor * side)) for side in picture.size)
    left, top = int(box[0] * factor), int(box[1] * factor)
    right, bottom = (max(low + 1, round(factor * side)) for low, side in zip((left, top), box[2:], strict=True))
    return picture.resize(size, Image.Resampling.BICUBIC), (left, top, right, bottom)


def subject_examples(args: argparse.Namespace) -> tuple[Examples, list[tuple[Image.Image, Box]]]:
    """A subject's photographs, all in memory; also the photographs themselves with their boxes."""
    paths = list_pictures(Path(args.instance_data_dir))
    pictures = [load_image(path) for path in paths]
    boxes = find_boxes(args.boxes, paths, pictures, args.boxes_file, args)
    shown = [smaller(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    tensors = [(to_tensor(picture)[0], box) for picture, box in shown]
    return Examples(len(paths), lambda index, generator: tensors[index], paths, digest_of(boxes)), shown


def scene_examples(count: int) -> Examples:
    """Scenes of the picturebook's training split, drawn when asked for."""
    from common.picturebook.drawing import draw
    from common.picturebook.stages.corpus import scene_of

    def get(index: int, generator: torch.Generator) -> tuple[Tensor, Box]:
        drawing = draw(scene_of("train", index))
        masks = [torch.from_numpy(mask) for mask in drawing.masks if mask.any()]
        return to_tensor(drawing.picture)[0], box_of(masks[integer(generator, 0, len(masks) - 1)])

    return Examples(count, get, [], digest_of(["scenes", count]))


def domain_examples(
    args: argparse.Namespace, rank: int = 0, processes: int = 1, wait: Callable[[], None] = lambda: None
) -> Examples:
    """A random sample of a domain's pictures that show a usable thing, with the boxes of a file or of the detector;
    with --boxes whole all of the sample, the box being the middle. A picture that cannot be read is named on the screen
    and the next one taken in its place.

    Several processes share the detector's work out; `wait` returns when all of them have come to it.
    """
    store = open_pictures(args.train_data_dir)
    names, known = random_sample(store.names, args.num_pictures, args.seed), {}
    if args.boxes != "whole":
        if args.boxes_file:
            found = read_object(args.boxes_file)  # name -> a box, or a list of boxes
        elif args.boxes == "file":
            raise InputError("--boxes file needs --boxes_file, JSON of {name: [[left, top, right, bottom], …]}")
        else:
            found = detected(args, store, names, rank, processes, wait)
        known = {name: boxes if isinstance(boxes, list) and isinstance(boxes[0], list) else [boxes]  # one, or several
                 for name in names if (boxes := found.get(name))}  # fmt: skip
        if left := len(names) - len(known):
            print(f"left out: {left} of {len(names)} pictures, which have no box")
        names = list(known)
    if not names:
        raise InputError(f"no picture of {args.train_data_dir} has a box of 2 to 80 % of its area; see --labels")

    def get(index: int, generator: torch.Generator) -> tuple[Tensor, Box]:
        name, picture = readable(store, names, index)
        width, height = picture.size
        boxes = known.get(name, [(width // 4, height // 4, width - width // 4, height - height // 4)])  # the middle
        box = boxes[integer(generator, 0, len(boxes) - 1)]
        picture, box = smaller(picture, check_box(box, (height, width), f"the box of {name}"))
        return to_tensor(picture)[0], box

    return Examples(len(names), get, [], digest_of([names, known, store.size()]))


def readable(store, names: list[str], index: int) -> tuple[str, Image.Image]:
    """The name and the picture at this index, or at the next one that can be read: one damaged picture of 300,000 stops
    nobody. Raises InputError if none can."""
    for further in range(len(names)):
        name = names[(index + further) % len(names)]
        try:
            return name, store.read(name)
        except InputError as problem:
            print(f"left out: {problem}")
    raise InputError(f"none of the {len(names)} pictures can be read; see --train_data_dir")


def detected(
    args: argparse.Namespace, store, names: list[str], rank: int, processes: int, wait: Callable[[], None]
) -> dict[str, list]:
    """name -> usable boxes that the detector finds. They are kept in <output_dir>/boxes_*.json, a file per process: a
    killed run goes on there. The name tells detectors, labels and thresholds apart."""
    stem = f"boxes_{digest_of([args.detector, sorted(args.labels), args.detector_threshold])}"

    def known() -> dict[str, list]:
        files = sorted(Path(args.output_dir).glob(f"{stem}_*.json"))
        return {name: boxes for file in files for name, boxes in read_object(file).items()}

    before, place = known(), Path(args.output_dir) / f"{stem}_{rank}.json"
    found = read_object(place) if place.is_file() else {}
    missing = [name for name in names[rank::processes] if name not in before]
    eye = Detector(args) if missing else None
    for number, name in enumerate(tqdm(missing, "boxes", disable=None), start=1):
        found[name] = []
        try:
            picture = store.read(name)
            found[name] = [list(box) for _, _, box in eye.find(picture) if usable(box, picture.size[::-1])]
        except InputError as problem:
            print(f"left out: {problem}")
        if number % KEPT == 0 or number == len(missing):
            write_json(place, found)
    wait()
    return known()


# --------------------------------- pictures of a domain: LSUN's LMDB (of webp or jpeg files), or any folder of pictures


class Folder:
    """Every picture file under a folder, by name."""

    def __init__(self, folder: Path):
        self.names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                            if is_picture(path) and path.is_file())  # fmt: skip
        self.folder = folder
        if not self.names:
            raise InputError(f"{folder} holds no picture, nor an LMDB (data.mdb); give LSUN's folder, or pictures")

    def read(self, name: str) -> Image.Image:
        return load_image(self.folder / name)

    def size(self) -> int:
        """Bytes in all: content would take hours to hash."""
        return sum((self.folder / name).stat().st_size for name in self.names)


class Lmdb:
    """LSUN as it is downloaded: bedroom_train_lmdb/ with data.mdb. Listing three million keys takes a minute."""

    def __init__(self, folder: Path):
        try:
            import lmdb
        except ImportError:
            raise InputError(f"{folder} is an LMDB, and the package lmdb is missing: pip install lmdb") from None
        try:
            self.store = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, meminit=False)
            with self.store.begin() as reader:
                self.names = [key.decode("latin-1") for key in reader.cursor().iternext(values=False)]
        except lmdb.Error as problem:
            raise InputError(f"{folder} cannot be read as an LMDB: {problem}; download it again") from None
        self.folder = folder
        if not self.names:
            raise InputError(f"the LMDB {folder} is empty; download it again")

    def size(self) -> int:
        return (self.folder / "data.mdb").stat().st_size

    def read(self, name: str) -> Image.Image:
        with self.store.begin() as reader:
            data = reader.get(name.encode("latin-1"))
        return load_image(self.folder / name, data)


def open_pictures(folder: str | Path) -> Folder | Lmdb:
    """The pictures of a folder. Raises InputError if there are none."""
    folder = Path(folder)
    place = next((place for place in (folder, *sorted(folder.glob("*_lmdb"))) if (place / "data.mdb").is_file()), None)
    return Lmdb(place) if place else Folder(folder)


def random_sample(names: list[str], count: int, seed: int) -> list[str]:
    """`count` of the names (all, if there are fewer), in an order of their own, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(names))[:count]
    return [names[k] for k in order]
