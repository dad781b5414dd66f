"""What the two trainings read: photographs with boxes, pictures of a domain, scenes of the picturebook."""

import argparse
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.images import list_pictures, load_image, to_tensor
from common.runs import InputError, read_json
from image_inpaint.data.boxes import Detector, find_boxes
from image_inpaint.masks import Box, box_of, check_box, integer, usable

MOST_PIXELS = 1024  # a photograph's longer side, before training cuts it


@dataclass(frozen=True)
class Examples:
    """count pictures; get(index, generator) -> (picture [3, H, W] in [0, 1], the box of a thing in it).

    paths: the files, whose content tells one training from another; about: twelve digits of all else that does.
    """

    count: int
    get: Callable[[int, torch.Generator], tuple[Tensor, Box]]
    paths: list[Path]
    about: str


def digest(thing) -> str:
    """Twelve digits of what JSON makes of a thing."""
    return hashlib.sha256(json.dumps(thing).encode()).hexdigest()[:12]


def picture_tensor(picture: Image.Image) -> Tensor:
    return to_tensor(picture)[0]


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
    folder = Path(args.instance_data_dir)
    paths = list_pictures(folder)
    pictures = [load_image(path) for path in paths]
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    boxes = find_boxes(args.boxes, paths, pictures, args.boxes_file, args.labels, args.detector, device,
                       args.detector_threshold)  # fmt: skip
    shown = [smaller(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    tensors = [(picture_tensor(picture), box) for picture, box in shown]
    return Examples(len(paths), lambda index, generator: tensors[index], paths, digest(boxes)), shown


def picturebook_subject(split: str = "test", name: str = "cat") -> Path:
    """The folder of a subject of the picturebook, drawn if need be."""
    from common.picturebook.benchmarks import ensure_subjects

    return ensure_subjects(split) / name


def scene_examples(count: int) -> Examples:
    """Scenes of the picturebook's training split, drawn when asked for."""
    from common.picturebook.drawing import draw
    from common.picturebook.stages.corpus import scene_of

    def get(index: int, generator: torch.Generator) -> tuple[Tensor, Box]:
        drawing = draw(scene_of("train", index))
        masks = [torch.from_numpy(mask) for mask in drawing.masks if mask.any()]
        return picture_tensor(drawing.picture), box_of(masks[integer(generator, 0, len(masks) - 1)])

    return Examples(count, get, [], digest(["scenes", count]))


def domain_examples(
    args: argparse.Namespace, rank: int = 0, processes: int = 1, wait: Callable[[], None] = lambda: None
) -> Examples:
    """A random sample of a domain's pictures that show a usable thing, with the boxes of a file or of the detector;
    with --boxes whole all of the sample, the box being the middle. A picture that cannot be read is named on the screen
    and the next one taken in its place.

    Several processes share the detector's work out; `wait` returns when all of them have come to it.
    """
    from image_inpaint.data.lsun import open_pictures, random_sample

    store = open_pictures(args.train_data_dir)
    names = random_sample(store.names, args.num_pictures, args.seed)
    known = {}
    if args.boxes != "whole":
        known = boxes_of_domain(args, store, names, rank, processes, wait)
        names = [name for name in names if known.get(name)]
    if not names:
        raise InputError(f"no picture of {args.train_data_dir} has a box of 2 to 80 % of its area; see --labels")

    def get(index: int, generator: torch.Generator) -> tuple[Tensor, Box]:
        name, picture = readable(store, names, index)
        boxes = known.get(name) or [centre(picture)]
        box = boxes[integer(generator, 0, len(boxes) - 1)]
        picture, box = smaller(picture, check_box(box, (picture.height, picture.width), f"the box of {name}"))
        return picture_tensor(picture), box

    return Examples(len(names), get, [], digest([names, known, store.size()]))


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


def boxes_of_domain(
    args: argparse.Namespace, store, names: list[str], rank: int, processes: int, wait: Callable[[], None]
) -> dict[str, list]:
    """name -> boxes; usable ones, where a detector looked. What it finds is kept in <output_dir>/boxes_*.jsonl, picture
    by picture and a file per process: a killed run goes on there. The name tells detectors, labels and
    thresholds apart."""
    if args.boxes == "file" or args.boxes_file:
        if not args.boxes_file:
            raise InputError("--boxes file needs --boxes_file, JSON of {name: [[left, top, right, bottom], …]}")
        found = read_json(args.boxes_file)
        if not isinstance(found, dict):
            raise InputError(f"{args.boxes_file} is no object {{name: [[left, top, right, bottom], …]}}")
        one = {name: box for name, box in found.items() if isinstance(box, list) and box and isinstance(box[0], list)}
        return {name: one.get(name, [found[name]]) for name in names if found.get(name)}
    folder = Path(args.output_dir)
    looked_for = [args.detector, *sorted(args.labels), f"{args.detector_threshold:g}"]
    stem = f"boxes_{zlib.crc32(' '.join(looked_for).encode()):08x}"
    known = detected(folder, stem)
    missing = [name for name in names[rank::processes] if name not in known]
    if missing:
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        eye = Detector(args.detector, device, args.labels, args.detector_threshold)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{stem}_{rank}.jsonl", "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # without a line that a killed run left torn
            for name in tqdm(missing, "boxes", disable=None):
                try:
                    picture = store.read(name)
                    size = (picture.height, picture.width)
                    boxes = [list(box) for _, _, box in eye.find(picture) if usable(box, size)]
                except InputError as problem:
                    print(f"left out: {problem}")
                    boxes = []
                file.write(json.dumps({name: boxes}).encode() + b"\n")
                file.flush()
    wait()
    return detected(folder, stem)


def detected(folder: Path, stem: str) -> dict[str, list]:
    """What all processes have found so far. Raises InputError for a file that is not of this kind."""
    found: dict[str, list] = {}
    for path in sorted(folder.glob(f"{stem}_*.jsonl")):
        for number, line in enumerate(path.read_bytes().rpartition(b"\n")[0].splitlines(), start=1):
            try:
                entries = json.loads(line).items()
                found |= {name: [list(map(int, box)) for box in boxes] for name, boxes in entries}
            except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                raise InputError(f"{path}, line {number}: no boxes; delete the file to detect anew") from None
    return found


def centre(picture: Image.Image) -> Box:
    """The middle half of a picture, where no thing is known."""
    width, height = picture.size
    return width // 4, height // 4, width - width // 4, height - height // 4
