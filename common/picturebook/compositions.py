"""Compositions for exemplar editing: one half of a scene is to become that of an exemplar, under a wide ramp.

The exemplar is drawn in the other light and in another palette, its horizon is another, and its thing stands at another
place in another size. The true picture is one scene in the source's light: its two backgrounds pass into each other
along the map, and each thing that belongs to a half stands there, as large as the source's scale has it. So nothing
that the two pictures hold can be pasted or blended into it.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.picturebook.backgrounds import paint_background
from common.picturebook.brush import CANVAS, SIZE
from common.picturebook.classifier import load_classifier
from common.picturebook.drawing import draw
from common.picturebook.edits import runs_of, with_brackets
from common.picturebook.scenes import BACKGROUNDS, KINDS, LIGHTS, Scene, caption, sample_thing
from common.picturebook.subjects import grey, save
from common.picturebook.things import paint_thing

COUNT = 60
PALETTES = {"warm": (1.0, 0.88, 0.7), "cold": (0.8, 0.92, 1.0), "rose": (1.0, 0.84, 0.9)}  # gains of red, green, blue
TYPE, FOLDER = "8", "8_change_background_80"  # PIE-Bench's type that comes nearest


@dataclass(frozen=True)
class Composition:
    """kept, new: the two halves of the true picture, as scenes of one thing in one light. exemplar: what is shown of
    the new half. side: where the new half is; start, end: the ramp, as fractions of the width."""

    kept: Scene
    new: Scene
    exemplar: Scene
    palette: str
    side: str
    start: float
    end: float

    def edit_map(self, width: int = SIZE) -> np.ndarray:
        """float32 [width], from left to right: 0 keeps the source, 1 takes the exemplar, linear in between."""
        way = (np.arange(width) + 0.5) / width
        ramp = np.clip((way - self.start) / (self.end - self.start), 0, 1).astype(np.float32)
        return ramp if self.side == "right" else 1 - ramp

    def to_dict(self) -> dict:
        scenes = {name: getattr(self, name).to_dict() for name in ("kept", "new", "exemplar")}
        return {**scenes, **{name: getattr(self, name) for name in ("palette", "side", "start", "end")}}

    @staticmethod
    def from_dict(data: dict) -> Composition:
        return Composition(**{**data, **{name: Scene.from_dict(data[name]) for name in ("kept", "new", "exemplar")}})


def make_composition(rng: random.Random) -> Composition:
    """A random one, with two things of different kinds."""
    side, light = rng.choice(("left", "right")), rng.choice(LIGHTS)
    halves, things = {"kept": "left" if side == "right" else "right", "new": side}, []
    for place in halves.values():
        center = rng.uniform(0.21, 0.25)
        where = {
            "x": round(center if place == "left" else 1 - center, 3), "ground": round(rng.uniform(0.84, 0.92), 3),
            "size": round(rng.uniform(0.19, 0.22), 3),
        }  # fmt: skip
        free = [kind for kind in KINDS if kind not in {thing.kind for thing in things}]
        things.append(sample_thing(rng, where, free))
    kept, new = (
        Scene((thing,), background, light, seed=rng.randrange(1 << 30))
        for thing, background in zip(things, rng.sample(BACKGROUNDS, 2), strict=True)
    )
    inwards, larger = rng.uniform(0.1, 0.14), rng.uniform(1.3, 1.5)
    thing = things[1]
    shown = replace(
        thing,
        x=round(thing.x + (inwards if side == "left" else -inwards), 3),
        ground=round(thing.ground + 0.05, 3),
        size=round(larger * thing.size, 3),
    )
    other_light = LIGHTS[1 - LIGHTS.index(light)]
    exemplar = replace(new, things=(shown,), light=other_light, seed=rng.randrange(1 << 30))
    middle, half = rng.uniform(0.46, 0.54), rng.uniform(0.17, 0.23)
    ends = round(middle - half, 3), round(middle + half, 3)
    return Composition(kept, new, exemplar, rng.choice(list(PALETTES)), side, *ends)


def in_palette(picture: Image.Image, palette: str) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * np.array(PALETTES[palette])).round().astype(np.uint8))


def true_picture(item: Composition) -> Image.Image:
    """Both halves as one scene in the source's light."""
    backgrounds = [np.asarray(paint_background(scene), np.float32) for scene in (item.kept, item.new)]
    share = item.edit_map(CANVAS)[None, :, None]
    mixed = backgrounds[0] + share * (backgrounds[1] - backgrounds[0])
    canvas = Image.fromarray(mixed.round().astype(np.uint8))
    for thing in sorted(item.kept.things + item.new.things, key=lambda thing: thing.x):
        paint_thing(canvas, thing, False, item.kept.light == "night")
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def half_words(scene: Scene) -> str:
    """One half in words, whatever the light, such as "a red cat facing left in a meadow"."""
    return caption(replace(scene, light="day"), facing=True)


def write_composition(folder: Path, split: str, number: int) -> tuple[str, dict]:
    """Draws one item: source, exemplar, edit map, true picture; returns its id and its entry of the mapping file."""
    item = make_composition(random.Random(f"composition {split} {number}"))
    share = np.broadcast_to(item.edit_map(), (SIZE, SIZE))
    key = f"{TYPE}{number:011d}"
    files = {
        "image": draw(item.kept).picture,
        "truth": true_picture(item),
        "exemplar": in_palette(draw(item.exemplar).picture, item.palette),
        "edit_map": grey(share),
    }
    paths = {f"{name}_path": f"{name}/{FOLDER}/{key}.png" for name in files} | {"image_path": f"{FOLDER}/{key}.png"}
    for name, picture in files.items():
        save(picture, folder / ("annotation_images" if name == "image" else "") / paths[f"{name}_path"])
    words = [half_words(scene) for scene in (item.kept, item.new)]
    night = " at night" if item.kept.light == "night" else ""
    original, editing = with_brackets(words[0] + night, " and ".join(words) + night)
    return key, {
        **paths,
        "original_prompt": original,
        "editing_prompt": editing,
        "editing_instruction": f"make the {item.side} half another scene: {words[1]}",
        "editing_type_id": TYPE,
        "blended_word": "",
        "mask": runs_of(np.round(255 * share) > 0),
        "picture_size": [SIZE, SIZE],
        "kept_caption": words[0] + night,
        "new_caption": words[1] + night,
        "composition": item.to_dict(),
    }


def write_compositions(folder: Path, split: str) -> None:
    """A PIE-Bench folder. Entries have the further keys exemplar_path, edit_map_path (white: from the exemplar),
    truth_path, kept_caption and new_caption (of the two halves of the true picture) and composition."""
    entries = dict(write_composition(folder, split, number) for number in range(COUNT))
    (folder / "mapping_file.json").write_text(json.dumps(entries))


def mirrored(pictures: torch.Tensor, side: str) -> torch.Tensor:
    """Pictures [B, 3, H, W] whose other half is this half in a mirror."""
    left, right = pictures.chunk(2, dim=3)
    half = left if side == "left" else right
    return torch.cat([half, half.flip(3)] if side == "left" else [half.flip(3), half], dim=3)


@torch.no_grad()
def halves_seen(item: Composition, picture: torch.Tensor, classifier=None) -> dict[str, bool]:
    """Which halves, "kept" and "new", the attribute classifier recognises in a picture [1, 3, 64, 64] in [0, 1]: their
    thing, in its colour, among the two most present of the picture, and their background in a mirror of the half."""
    classifier, seen = classifier or load_classifier(), {}
    picture = picture.reshape(1, 3, SIZE, SIZE).float().cpu()
    (whole,) = classifier.read(picture)
    other = "left" if item.side == "right" else "right"
    for name, side in (("kept", other), ("new", item.side)):
        scene = getattr(item, name)
        (half,) = classifier.read(mirrored(picture, side))
        thing = scene.things[0]
        seen[name] = half.background == scene.background and (thing.color, thing.kind) in whole.pairs(2)
    return seen
