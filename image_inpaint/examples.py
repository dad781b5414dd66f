"""What the two trainings read: photographs with boxes, pictures of a domain, scenes of the picturebook."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.images import list_pictures, load_image, to_tensor
from common.runs import InputError
from image_inpaint.boxes import Detector, find_boxes
from image_inpaint.masks import Box, box_of, integer, usable

MOST_PIXELS = 1024  # a photograph's longer side, before training cuts it


@dataclass(frozen=True)
class Examples:
    """count pictures; get(index, generator) -> (picture [3, H, W] in [0, 1], the box of a thing in it)."""

    count: int
    get: Callable[[int, torch.Generator], tuple[Tensor, Box]]
    names: list[str]


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
    boxes = find_boxes(args.boxes, paths, pictures, args.boxes_file, args.labels, args.detector, device)
    shown = [smaller(picture, box) for picture, box in zip(pictures, boxes, strict=True)]
    tensors = [(picture_tensor(picture), box) for picture, box in shown]
    return Examples(len(paths), lambda index, generator: tensors[index], [path.name for path in paths]), shown


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

    return Examples(count, get, [])


def domain_examples(args: argparse.Namespace) -> Examples:
    """A random sample of a domain's pictures that show a usable thing, with the boxes of a file or of the detector.

    What the detector finds is kept in <output_dir>/boxes.jsonl, picture by picture: a killed run goes on there.
    """
    from image_inpaint.lsun import open_pictures, random_sample

    store = open_pictures(args.train_data_dir)
    names = random_sample(store.names, args.num_pictures, args.seed)
    known = boxes_of_domain(args, store, names)
    names = [name for name in names if known.get(name)]
    if not names:
        raise InputError(f"no picture of {args.train_data_dir} has a box of 2 to 80 % of its area; see --labels")

    def get(index: int, generator: torch.Generator) -> tuple[Tensor, Box]:
        boxes = known[names[index]]
        picture, box = smaller(store.read(names[index]), tuple(boxes[integer(generator, 0, len(boxes) - 1)]))
        return picture_tensor(picture), box

    return Examples(len(names), get, names)


def boxes_of_domain(args: argparse.Namespace, store, names: list[str]) -> dict[str, list[Box]]:
    """name -> usable boxes."""
    if args.boxes == "file" or args.boxes_file:
        if not args.boxes_file:
            raise InputError("--boxes file needs --boxes_file, JSON of {name: [[left, top, right, bottom], …]}")
        found = json.loads(Path(args.boxes_file).read_text(encoding="utf-8"))
        return {name: [tuple(box) for box in np.atleast_2d(found[name]).tolist()] for name in names if name in found}
    if args.boxes == "whole":
        return {name: [centre(store.read(name))] for name in tqdm(names, "sizes", disable=None)}
    path = Path(args.output_dir) / "boxes.jsonl"
    whole = path.read_text().rpartition("\n")[0].splitlines() if path.is_file() else []
    known = {name: boxes for line in whole for name, boxes in json.loads(line).items()}
    missing = [name for name in names if name not in known]
    if missing:
        eye = Detector(args.detector, args.device or ("cuda" if torch.cuda.is_available() else "cpu"), args.labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in whole))  # without a line that a killed run left torn
        with open(path, "a", encoding="utf-8") as file:
            for name in tqdm(missing, "boxes", disable=None):
                picture = store.read(name)
                size = (picture.height, picture.width)
                known[name] = [list(box) for _, _, box in eye.find(picture) if usable(box, size)]
                file.write(json.dumps({name: known[name]}) + "\n")
    return known


def centre(picture: Image.Image) -> Box:
    """The middle half of a picture, where no thing is known."""
    width, height = picture.size
    return width // 4, height // 4, width - width // 4, height - height // 4
