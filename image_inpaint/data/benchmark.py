"""What eval.py paints: subjects x scenes (the paper: 12 x 20), drawn from the picturebook or read from folders.

On the picturebook a scene is drawn without the subject, so that a hole has a true answer: the same scene with it. Each
subject's photographs show one facing, standing, by day; items ask for what they do not show, in turns: another facing
(the reference is turned), another pose (animals, lying) and another light (a scene at night).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.data import read_subjects
from common.images import list_pictures, load_image
from common.masks import load_mask
from common.runs import InputError
from image_inpaint.data.boxes import find_boxes
from image_inpaint.masks import box_of, loose_mask, padded
from image_inpaint.triples import REFERENCE_PADDING

VERSION = 1
SUBJECTS, SCENES = 12, 20  # Sec. 5.1
CONDITIONS = ("as photographed", "facing", "light", "pose")
ORDER = (0, 3, 4, 7, 1, 2, 5, 6)  # of each eight scenes: four have all conditions
OTHER_KINDS = ("fish", "star")  # what stands beside a subject in half of the scenes: no subject is one


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


def crop_to(picture: Image.Image, box: Sequence[int]) -> Image.Image:
    """The box with the margin that training references have."""
    size = (picture.height, picture.width)
    return picture.crop(padded(tuple(box), size, max(1, round(REFERENCE_PADDING * min(size)))))


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


def room(number: int, split: str, night: bool):
    """(the scene without the subject, the subject's place, its index from the left) of scene `number` of a split."""
    from common.picturebook.scenes import BACKGROUNDS, Scene, layout, sample_thing

    rng = random.Random(f"room {VERSION} {split} {number}")
    background, light = rng.choice(BACKGROUNDS), "night" if night else "day"
    seed = rng.randrange(1 << 30)
    if number % 2:
        places, index = layout(rng, 2), rng.randrange(2)
        other = sample_thing(rng, places[1 - index], OTHER_KINDS)
        return Scene((other,), background, light, seed=seed), places[index], index
    return Scene((), background, light, seed=seed), layout(rng, 1)[0], 0


def condition_of(number: int, thing) -> str:
    """Conditions take turns; a thing without facing or pose is asked for another light instead."""
    from common.picturebook.scenes import ANIMALS, FACING_KINDS

    wanted = CONDITIONS[number // 2 % len(CONDITIONS)]  # scenes alternate between empty and not
    possible = {"pose": thing.kind in ANIMALS, "facing": thing.kind in FACING_KINDS}
    return wanted if possible.get(wanted, True) else "light"


def draw_item(subject: Subject, thing, number: int, split: str) -> Item:
    """Scene `number` for a subject, drawn with and without it."""
    from common.picturebook.drawing import draw
    from common.picturebook.scenes import BACKGROUNDS, Scene, layout, thing_words

    condition = condition_of(number, thing)
    scene, place, index = room(number, split, condition == "light")
    rng = random.Random(f"item {VERSION} {split} {subject.name} {number}")
    changes = {"facing": {"facing": "left" if thing.facing == "right" else "right"}, "pose": {"pose": "lying"}}
    wanted = replace(thing, **changes.get(condition, {}))
    reference = subject.crops[number % len(subject.crops)]
    if condition in changes:  # the reference shows what the photographs do not
        shown = draw(
            Scene((replace(wanted, **layout(rng, 1)[0]),), rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))
        )
        reference = crop_to(shown.picture, box_of(torch.from_numpy(shown.masks[0])))
    here = replace(wanted, **place)
    truth, twin = (
        draw(replace(scene, things=(*scene.things[:index], one, *scene.things[index:])))
        for one in (here, replace(here, marking=0))
    )
    region = torch.from_numpy(truth.masks[index])
    fill = loose_mask(box_of(region), (64, 64), rng.uniform(0.3, 0.8))
    return Item(
        f"{subject.name}/{number:02d}", subject.name, condition, draw(scene).picture, fill, reference, truth.picture,
        twin.picture, region, thing.kind, len(scene.things) + 1, thing_words(wanted),
    )  # fmt: skip


def picturebook_subjects(split: str, count: int) -> list[Subject]:
    from common.picturebook.benchmarks import ensure_subjects

    folder, found = ensure_subjects(split), []
    for subject in read_subjects(folder)[:count]:
        pictures = [load_image(path) for path in subject.paths]
        boxes = find_boxes("scene", subject.paths, pictures)
        crops = tuple(crop_to(picture, box) for picture, box in zip(pictures, boxes, strict=True))
        found.append(Subject(subject.name, subject.class_name, folder / subject.name, crops))
    return found


def picturebook_items(subjects: Sequence[Subject], scenes: int, split: str) -> list[Item]:
    from common.picturebook.scenes import Scene
    from common.runs import read_object

    items = []
    for subject in subjects:
        known = read_object(subject.folder.parent / "scenes.json")
        first = next(scene for key, scene in known.items() if key.startswith(subject.name + "/"))
        thing = Scene.from_dict(first).things[0]
        items += [draw_item(subject, thing, number, split) for number in scene_numbers(scenes)]
    return items


# ---------------------------------------------------------------------------------------------------- your pictures


def folder_subjects(folder: Path, args) -> list[Subject]:
    """A folder of photographs per subject; its name is the subject's, and without digits at its end the class."""
    places = sorted(place for place in folder.iterdir() if place.is_dir() and place.name[0] != ".")
    if not places:
        raise InputError(f"--subjects {folder} holds no folders; one folder of photographs per subject is needed")
    found = []
    for place in places:
        paths = list_pictures(place)
        pictures = [load_image(path) for path in paths]
        boxes = find_boxes(
            args.boxes, paths, pictures, None, args.labels, args.detector, args.device or "cpu", args.detector_threshold
        )  # fmt: skip
        crops = tuple(crop_to(picture, box) for picture, box in zip(pictures, boxes, strict=True))
        found.append(Subject(place.name, place.name.rstrip("0123456789"), place, crops))
    return found


def folder_items(subjects: Sequence[Subject], folder: Path, scenes: int) -> list[Item]:
    """Scenes <name>.* with holes <name>_mask.*, white = fill, of equal size."""
    paths = [path for path in list_pictures(folder) if not path.stem.endswith("_mask")]
    rooms = []
    for path in paths[:scenes]:
        mask = next((other for other in list_pictures(folder) if other.stem == path.stem + "_mask"), None)
        if mask is None:
            raise InputError(f"{path} has no mask; put {path.stem}_mask.png, white where to fill, beside it")
        picture = load_image(path)
        rooms.append((path.stem, picture, load_mask(mask, picture=picture)))
    if not rooms:
        raise InputError(f"--scenes {folder} holds no pictures beside masks")
    return [
        Item(f"{subject.name}/{name}", subject.name, "as photographed", picture, fill,
             subject.crops[number % len(subject.crops)])
        for subject in subjects
        for number, (name, picture, fill) in enumerate(rooms)
    ]  # fmt: skip
