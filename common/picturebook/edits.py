"""The ten edit types of PIE-Bench as changes of a scene description, and whether a picture shows the change."""

from __future__ import annotations

import difflib
import random
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import ndimage

from common.picturebook.classifier import Reading
from common.picturebook.scenes import (
    ANIMALS,
    BACKGROUNDS,
    COLORS,
    FACING_KINDS,
    KINDS,
    MATERIALS,
    Scene,
    Thing,
    caption,
    layout,
    sample_thing,
)

EDIT_NAMES = {
    "1": "object", "2": "add", "3": "delete", "4": "hat", "5": "pose", "6": "color", "7": "material",
    "8": "background", "9": "style",
}  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """A source scene and the scene it should become. index: the thing that changes (None: the whole scene);
    words: a word of the source caption and one of the target caption for the region that changes, as in PIE-Bench."""

    kind: str  # one of EDIT_NAMES' values
    source: Scene
    target: Scene
    source_caption: str
    target_caption: str
    index: int | None
    words: tuple[str, str] | None
    instruction: str

    def to_dict(self) -> dict:
        return asdict(self) | {"source": self.source.to_dict(), "target": self.target.to_dict()}


def base_scene(rng: random.Random, count: int, **wanted) -> Scene:
    """A scene by day in the plain style; `wanted` are attributes of its first thing."""
    things: list[Thing] = []
    for place in layout(rng, count):
        free = [kind for kind in wanted.get("kinds", KINDS) if kind not in {thing.kind for thing in things}]
        thing = sample_thing(rng, place, free)
        things.append(replace(thing, **{key: value for key, value in wanted.items() if key != "kinds"}))
    return Scene(tuple(things), background=rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))


def other(rng: random.Random, values, value):
    return rng.choice([v for v in values if v != value])


def make_edit(kind: str, rng: random.Random) -> Edit:
    """A random edit of one kind; half of the scenes that allow it have two things. Captions name all that is drawn."""
    count, index, words = rng.choice((1, 2)), 0, None
    if kind in ("add", "delete"):
        both = base_scene(rng, 2, material="plain", hat=False)
        index = rng.randrange(2)
        alone = replace(both, things=(both.things[1 - index],))
        source, target = (alone, both) if kind == "add" else (both, alone)
        changed, kept = both.things[index], both.things[1 - index]
        words = (kept.kind, changed.kind) if kind == "add" else (changed.kind, kept.kind)
        instruction = f"{kind} the {changed.kind}"
    elif kind in ("background", "style"):
        source, index = base_scene(rng, count), None
        if kind == "style":
            target = replace(source, style="sketch")
            source, target = rng.choice(((source, target), (source, target), (target, source)))
            instruction = "make it a pencil sketch" if target.style == "sketch" else "make it a painting in full colour"
        else:
            target = replace(source, background=other(rng, BACKGROUNDS, source.background))
            instruction = f"move it to another place: {target.background}"
    else:
        wanted: dict = {"hat": False} if kind in ("hat", "object", "pose") else {}
        facing = kind == "pose" and rng.random() < 0.5
        if kind == "pose":
            wanted |= {"kinds": FACING_KINDS} if facing else {"kinds": ANIMALS, "pose": "standing"}
        if kind == "object":
            wanted |= {"material": "plain"}
        source = base_scene(rng, count, **wanted)
        index = rng.randrange(count)
        thing, taken = source.things[index], {t.kind for t in source.things}
        if kind == "object":
            new = rng.choice([k for k in KINDS if k not in taken])
            target = source.with_thing(index, kind=new, pose="standing")
            source = source.with_thing(index, pose="standing")
            words = (thing.kind, new)
        elif kind == "hat":
            target = source.with_thing(index, hat=True)
            words = (thing.kind, "hat")
            if rng.random() < 0.25:
                source, target, words = target, source, ("hat", thing.kind)
        elif kind == "pose":
            change = {"facing": "left" if thing.facing == "right" else "right"} if facing else {"pose": "lying"}
            target = source.with_thing(index, **change)
            words = (thing.kind, thing.kind)
        else:
            values = COLORS if kind == "color" else MATERIALS
            target = source.with_thing(index, **{kind: other(rng, values, getattr(thing, kind))})
            words = (thing.kind, thing.kind)
        instruction = f"change the {kind} of the {thing.kind}"
    texts = [caption(scene, facing=True) for scene in (source, target)]
    return Edit(kind, source, target, *texts, index, words, instruction)


def changed_mask(edit: Edit, source_masks: list[np.ndarray], target_masks: list[np.ndarray]) -> np.ndarray:
    """float32 [64, 64], 1 where the edit may change the picture: the changed thing before and after, one pixel wider;
    all but the things for a background; everything for a style."""
    if edit.kind == "style":
        return np.ones((64, 64), np.float32)
    if edit.kind == "background":
        return 1 - np.maximum.reduce(source_masks)
    masks = [
        masks[edit.index]
        for masks, scene in ((source_masks, edit.source), (target_masks, edit.target))
        if not (edit.kind == "add" and scene is edit.source) and not (edit.kind == "delete" and scene is edit.target)
    ]
    both = Image.fromarray((255 * np.maximum.reduce(masks)).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    return (np.asarray(both) > 127).astype(np.float32)


GROW, RAMP = 3, 10  # pixels of an edit map; a latent cell is 4 pixels wide


def edit_map(edit: Edit, mask: np.ndarray) -> np.ndarray:
    """float32 [64, 64], 1 where the edit is to happen, 0 where the source is kept; `mask` from `changed_mask`.

    Everything within GROW pixels of the mask is 1, so that each latent cell that the mask touches is wholly 1, however
    the map is reduced; from there it falls linearly to 0 over RAMP pixels. For a background the map is 0 inside of the
    things and rises from their outermost pixels, in which the background has a part. A change of style is 1 everywhere.
    """
    if edit.kind == "style":
        return np.ones_like(mask)
    if edit.kind == "background":
        inside = ndimage.binary_erosion(mask < 0.5)
        return np.clip(ndimage.distance_transform_edt(~inside) / RAMP, 0, 1).astype(np.float32)
    away = np.clip((ndimage.distance_transform_edt(mask < 0.5) - GROW) / RAMP, 0, 1)
    return (1 - away).astype(np.float32)


def runs_of(mask: np.ndarray) -> list[int]:
    """A mask as PIE-Bench stores it: start and length of each run of ones over the flattened rows."""
    flat = np.concatenate([[0], mask.reshape(-1) > 0.5, [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1).reshape(-1).tolist()


def with_brackets(source: str, target: str) -> tuple[str, str]:
    """Both captions with the words that differ in brackets, as PIE-Bench writes them."""
    words = source.split(" "), target.split(" ")
    marked: tuple[list[str], list[str]] = ([], [])
    for tag, *spans in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, (start, end) in enumerate((spans[:2], spans[2:])):
            piece = " ".join(words[side][start:end])
            if piece:
                marked[side].append(piece if tag == "equal" else f"[{piece}]")
    return " ".join(marked[0]), " ".join(marked[1])


def shows(edit: Edit, reading: Reading) -> bool:
    """Whether a reading of the edited picture has what the edit asks for (preservation is measured apart)."""
    count = len(edit.target.things)
    if edit.kind in ("background", "style"):
        return getattr(reading, edit.kind) == getattr(edit.target, edit.kind)
    if edit.kind == "delete":
        gone = edit.source.things[edit.index].kind
        kept = edit.target.things[0].kind
        return reading.thing(gone)["presence"] < 0.5 <= reading.thing(kept)["presence"]
    thing = edit.target.things[edit.index]
    if thing.kind not in {kind for _, kind in reading.pairs(count)}:
        return False
    field = {"object": "color", "add": "color"}.get(edit.kind, edit.kind)
    if edit.kind == "pose" and edit.source.things[edit.index].facing != thing.facing:
        field = "facing"
    return reading.thing(thing.kind)[field] == getattr(thing, field)


def edit_from_dict(data: dict) -> Edit:
    scenes = {key: Scene.from_dict(data[key]) for key in ("source", "target")}
    return Edit(**{**data, **scenes, "words": tuple(data["words"]) if data["words"] else None})


@torch.no_grad()
def successes(edits: list[Edit], pictures: torch.Tensor, classifier) -> list[bool]:
    """`shows` for a batch of edited pictures [B, 3, 64, 64] in [0, 1]."""
    return [shows(edit, reading) for edit, reading in zip(edits, classifier.read(pictures), strict=True)]
