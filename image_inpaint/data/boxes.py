"""Where the subject is: boxes from a file, from the picturebook's scenes, or from a detector (Sec. 5.1: DETR)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from common.runs import InputError, read_json, read_object
from image_inpaint.masks import Box, check_box
from image_inpaint.options import DETECTOR, DETECTOR_THRESHOLD, LABELS

REVISION = "no_timm"  # of the published detector: the same weights, for transformers without timm
SCENES, BOXES = "scenes.json", "boxes.json"


def from_file(path: str | Path, names: Sequence[str], sizes: dict[str, tuple[int, int]]) -> dict[str, Box]:
    """Boxes of a JSON object {file name: [left, top, right, bottom]}. sizes: height and width of each picture.

    Raises InputError for a name that is missing or a box that is none.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path} is a list; an object from file name to [left, top, right, bottom] is needed")
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} has no box for {missing[0]}; it knows {', '.join(list(found)[:5]) or 'none'}")
    return {name: check_box(found[name], sizes[name], f"the box of {name} in {path}") for name in names}


def from_scenes(path: str | Path, names: Sequence[str]) -> dict[str, Box]:
    """Boxes of the first thing of picturebook scenes, {"<folder>/<file>": scene} as benchmarks.subjects writes it."""
    from common.picturebook.drawing import draw
    from common.picturebook.scenes import Scene
    from image_inpaint.masks import box_of

    scenes, folder = read_object(path), {}
    for name in names:
        key = next((key for key in scenes if key == name or key.endswith("/" + name)), None)
        if key is None:
            raise InputError(f"{path} has no scene for {name}; take --boxes whole, or a file of boxes")
        try:
            mask = draw(Scene.from_dict(scenes[key])).masks[0]
        except Exception as problem:  # whatever drawing makes of values that no scene has
            raise InputError(f"{path}: what stands for {key} is no scene of the picturebook ({problem})") from None
        folder[name] = box_of(torch.from_numpy(mask))
    return folder


class Detector:
    """DETR with published weights: the best box of the wanted labels in each picture, of at least this score."""

    def __init__(
        self, name: str = DETECTOR, device: str = "cpu", labels: Sequence[str] = LABELS,
        threshold: float = DETECTOR_THRESHOLD,
    ):  # fmt: skip
        from transformers import DetrForObjectDetection, DetrImageProcessor

        revision = REVISION if name == DETECTOR and not Path(name).is_dir() else "main"
        try:
            self.model = DetrForObjectDetection.from_pretrained(name, revision=revision).to(device).eval()
            self.processor = DetrImageProcessor.from_pretrained(name, revision=revision)
        except Exception as problem:  # the hub's client, its transport and the libraries raise a dozen kinds
            text = " ".join(str(problem).split())[:200]
            raise InputError(f"no detector at {name}: give its folder or hub id, or --boxes FILE: {text}") from None
        known = set(self.model.config.id2label.values())
        if unknown := [label for label in labels if label not in known]:
            raise InputError(f"the detector knows no {unknown[0]!r}; it knows {', '.join(sorted(known)[:12])}, …")
        self.labels, self.threshold = set(labels), threshold

    @torch.no_grad()
    def find(self, picture: Image.Image) -> list[tuple[float, str, Box]]:
        """(score, label, box) of the wanted things, surest first."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.model.device)
        sizes = [(picture.height, picture.width)]
        found = self.processor.post_process_object_detection(self.model(**inputs), self.threshold, sizes)[0]
        things = []
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True):
            name = self.model.config.id2label[int(label)]
            if name in self.labels and float(box[2] - box[0]) >= 1 and float(box[3] - box[1]) >= 1:
                things.append((float(score), name, check_box(box.tolist(), sizes[0])))
        return sorted(things, reverse=True)


def find_boxes(
    way: str, paths: Sequence[Path], pictures: Sequence[Image.Image], file: str | None = None,
    labels: Sequence[str] = LABELS, detector: str = DETECTOR, device: str = "cpu",
    threshold: float = DETECTOR_THRESHOLD,
) -> list[Box]:  # fmt: skip
    """One box per photograph. way "auto": boxes.json beside the pictures, else the picturebook's scenes, else DETR.

    Raises InputError where a photograph shows nothing that the detector was asked for.
    """
    folder = paths[0].parent
    places = {"file": Path(file) if file else folder / BOXES, "scene": folder / SCENES}
    if not places["scene"].is_file():
        places["scene"] = folder.parent / SCENES
    if way == "auto":
        way = "file" if file else next((name for name, place in places.items() if place.is_file()), "detr")
    names = [path.name for path in paths]
    sizes = {path.name: (picture.height, picture.width) for path, picture in zip(paths, pictures, strict=True)}
    if way == "whole":
        return [(0, 0, picture.width, picture.height) for picture in pictures]
    if way == "file":
        return list(from_file(places["file"], names, sizes).values())
    if way == "scene":
        keys = [f"{folder.name}/{name}" for name in names]
        return list(from_scenes(places["scene"], keys).values())
    eye, boxes = Detector(detector, device, labels, threshold), []
    for path, picture in zip(paths, tqdm(pictures, "boxes", disable=None), strict=True):
        things = eye.find(picture)
        if not things:
            wanted = ", ".join(labels)
            raise InputError(f"{path}: the detector sees no {wanted}; name others with --labels, lower "
                             "--detector_threshold, or give --boxes_file")  # fmt: skip
        boxes.append(things[0][2])
    return boxes
