"""Where the subject is: boxes from a file, from the picturebook's scenes, or from a detector (Sec. 5.1: DETR)."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from common.files import InputError, read_object, refused_as
from common.flags import chosen_device
from image_inpaint.masks import Box, box_of, check_box
from image_inpaint.options import DETECTOR

REVISION = "no_timm"  # of the published detector: the same weights, for transformers without timm
SCENES, BOXES = "scenes.json", "boxes.json"


def from_file(path: Path, names: Sequence[str], pictures: Sequence[Image.Image]) -> list[Box]:
    """Boxes of a JSON object {file name: [left, top, right, bottom]}.

    Raises InputError for a name that is missing or a box that is none.
    """
    found = read_object(path)
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} has no box for {missing[0]}; it knows {', '.join(list(found)[:5]) or 'none'}")
    return [check_box(found[name], picture.size[::-1], f"the box of {name} in {path}")
            for name, picture in zip(names, pictures, strict=True)]  # fmt: skip


def from_scenes(path: Path, names: Sequence[str]) -> list[Box]:
    """Boxes of the first thing of picturebook scenes, {"<folder>/<file>": scene} as benchmarks.subjects writes it."""
    from common.picturebook.drawing import draw
    from common.picturebook.scenes import Scene

    scenes, boxes = read_object(path), []
    for name in names:
        key = next((key for key in scenes if key == name or key.endswith("/" + name)), None)
        if key is None:
            raise InputError(f"{path} has no scene for {name}; take --boxes whole, or a file of boxes")
        try:
            mask = draw(Scene.from_dict(scenes[key])).masks[0]
        except Exception as problem:  # whatever drawing makes of values that no scene has
            raise InputError(f"{path}: what stands for {key} is no scene of the picturebook ({problem})") from None
        boxes.append(box_of(torch.from_numpy(mask)))
    return boxes


class Detector:
    """DETR with published weights: the boxes of the wanted labels in a picture. args: see options.add_box_flags."""

    def __init__(self, args: argparse.Namespace):
        from transformers import DetrForObjectDetection, DetrImageProcessor

        name, device = args.detector, chosen_device(args.device)
        revision = REVISION if name == DETECTOR and not Path(name).is_dir() else "main"
        with refused_as(f"no detector at {name}: give its folder or hub id, or --boxes file"):
            self.model = DetrForObjectDetection.from_pretrained(name, revision=revision).to(device).eval()
            self.processor = DetrImageProcessor.from_pretrained(name, revision=revision)
        self.labels, self.threshold = args.labels, args.detector_threshold
        known = set(self.model.config.id2label.values())
        if unknown := [label for label in self.labels if label not in known]:
            raise InputError(f"the detector knows no {unknown[0]!r}; it knows {', '.join(sorted(known)[:12])}, …")

    @torch.no_grad()
    def find(self, picture: Image.Image) -> list[tuple[float, str, Box]]:
        """(score, label, box) of the wanted things, surest first."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        size = (picture.height, picture.width)
        found = self.processor.post_process_object_detection(self.model(**inputs), self.threshold, [size])[0]
        things = []
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True):
            name = self.model.config.id2label[int(label)]
            if name in self.labels and float(box[2] - box[0]) >= 1 and float(box[3] - box[1]) >= 1:
                things.append((float(score), name, check_box(box.tolist(), size)))
        return sorted(things, reverse=True)


def find_boxes(
    way: str, paths: Sequence[Path], pictures: Sequence[Image.Image], file: str | None = None,
    detection: argparse.Namespace | None = None,
) -> list[Box]:  # fmt: skip
    """One box per photograph. way "auto": boxes.json beside the pictures, else the picturebook's scenes, else DETR.
    file: in place of boxes.json. detection: of Detector.

    Raises InputError where a photograph shows nothing that the detector was asked for.
    """
    folder = paths[0].parent
    scenes = next((place / SCENES for place in (folder, folder.parent) if (place / SCENES).is_file()), folder / SCENES)
    places = {"file": Path(file or folder / BOXES), "scene": scenes}
    if way == "auto":
        way = "file" if file else next((name for name, place in places.items() if place.is_file()), "detr")
    if way == "whole":
        return [(0, 0, *picture.size) for picture in pictures]
    if way == "file":
        return from_file(places["file"], [path.name for path in paths], pictures)
    if way == "scene":
        return from_scenes(scenes, [f"{folder.name}/{path.name}" for path in paths])
    eye, boxes = Detector(detection), []
    for path, picture in zip(paths, tqdm(pictures, "boxes", disable=None), strict=True):
        things = eye.find(picture)
        if not things:
            raise InputError(f"{path}: the detector sees no {', '.join(eye.labels)}; name others with --labels, lower "
                             "--detector_threshold, or give --boxes_file")  # fmt: skip
        boxes.append(things[0][2])
    return boxes
