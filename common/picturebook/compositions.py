"""Compositions for exemplar editing: the thing of another picture is to stand in one half of a scene.

The exemplar is a drawing of the same kind of place in another palette, with another horizon, other details, and the
thing a little larger and lower than it will be. The true picture is one ordinary scene of the world: both things, the
source's place and palette. So nothing that the two pictures hold can be pasted or blended into it.

What the method asks for decides the map. An exemplar enters only where the map is wholly black (PIXELS, Alg. 1, l. 9
and 10), and its user places it where it is to appear (Appendix 3): black covers the exemplar's thing and a margin, and
the ramp lies on the source's side of it. An earlier drawing had the thing reach over the core's border, so that no
method that starts there could show it. It had two kinds of place and two lights in one picture, too. The model has
seen neither: little noise is enough for it to turn one place into the other, whatever the method, and two lights
leave the VAE as coloured clouds; no edit can come near to a truth that the model cannot hold.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.picturebook.brush import SIZE
from common.picturebook.classifier import load_classifier
from common.picturebook.drawing import draw
from common.picturebook.edits import runs_of, with_brackets
from common.picturebook.scenes import BACKGROUNDS, KINDS, LIGHTS, Scene, caption, sample_thing
from common.picturebook.subjects import grey, save

COUNT = 60
PALETTES = {"warm": (1.0, 0.94, 0.84), "cold": (0.9, 0.96, 1.0), "rose": (1.0, 0.92, 0.95)}  # gains of red, green, blue
TYPE, FOLDER = "8", "8_change_background_80"  # PIE-Bench's type that comes nearest


@dataclass(frozen=True)
class Composition:
    """kept, new: the two halves of the true picture, as scenes of one thing in one place and light. exemplar: what is
    shown of the new half. side: where the new half is; start, end: the ramp, as fractions of the width."""

    kept: Scene
    new: Scene
    exemplar: Scene
    palette: str
    side: str
    start: float
    end: float

    @property
    def together(self) -> Scene:
        """The true picture as a scene."""
        things = sorted(self.kept.things + self.new.things, key=lambda thing: thing.x)
        return replace(self.kept, things=tuple(things))

    def edit_map(self) -> np.ndarray:
        """float32 [64], from left to right: 0 keeps the source, 1 takes the exemplar, linear in between."""
        way = (np.arange(SIZE) + 0.5) / SIZE
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
    side, light, background = rng.choice(("left", "right")), rng.choice(LIGHTS), rng.choice(BACKGROUNDS)
    halves, scenes = {"kept": "left" if side == "right" else "right", "new": side}, []
    for place in halves.values():
        center = rng.uniform(0.2, 0.22)
        where = {
            "x": round(center if place == "left" else 1 - center, 3), "ground": round(rng.uniform(0.84, 0.9), 3),
            "size": round(rng.uniform(0.18, 0.2), 3),
        }  # fmt: skip
        free = [kind for kind in KINDS if kind not in {scene.things[0].kind for scene in scenes}]
        scenes.append(Scene((sample_thing(rng, where, free),), background, light, seed=rng.randrange(1 << 30)))
    kept, new = scenes
    (thing,) = new.things
    larger, lower = rng.uniform(1.05, 1.15), rng.uniform(0.02, 0.05)
    shown = replace(thing, ground=round(thing.ground + lower, 3), size=round(larger * thing.size, 3))
    exemplar = replace(new, things=(shown,), seed=rng.randrange(1 << 30))
    columns = np.flatnonzero(draw(exemplar).masks[0].any(0))
    ramp = rng.uniform(0.3, 0.36)
    core = (columns.max() + 2) / SIZE if side == "left" else (columns.min() - 1) / SIZE  # a pixel beyond the thing
    start, end = (core, core + ramp) if side == "left" else (core - ramp, core)
    return Composition(kept, new, exemplar, rng.choice(list(PALETTES)), side, round(start, 3), round(end, 3))


def in_palette(picture: Image.Image, palette: str) -> Image.Image:
    return Image.fromarray((np.asarray(picture) * np.array(PALETTES[palette])).round().astype(np.uint8))


def write_composition(folder: Path, split: str, number: int) -> tuple[str, dict]:
    """Draws one item: source, exemplar, edit map, true picture; returns its id and its entry of the mapping file."""
    item = make_composition(random.Random(f"composition {split} {number}"))
    share = np.broadcast_to(item.edit_map(), (SIZE, SIZE))
    key = f"{TYPE}{number:011d}"
    files = {
        "image": draw(item.kept).picture,
        "truth": draw(item.together).picture,
        "exemplar": in_palette(draw(item.exemplar).picture, item.palette),
        "edit_map": grey(share),
    }
    paths = {f"{name}_path": f"{name}/{FOLDER}/{key}.png" for name in files} | {"image_path": f"{FOLDER}/{key}.png"}
    for name, picture in files.items():
        save(picture, folder / ("annotation_images" if name == "image" else "") / paths[f"{name}_path"])
    original, editing = with_brackets(caption(item.kept, facing=True), caption(item.together, facing=True))
    return key, {
        **paths,
        "original_prompt": original,
        "editing_prompt": editing,
        "editing_instruction": f"show in the {item.side} half: {caption(item.new, facing=True)}",
        "editing_type_id": TYPE,
        "blended_word": "",
        "mask": runs_of(np.round(255 * share) > 0),
        "picture_size": [SIZE, SIZE],
        "composition": item.to_dict(),
    }


def write_compositions(folder: Path, split: str) -> None:
    """A PIE-Bench folder. Entries have the further keys exemplar_path, edit_map_path (white: from the exemplar),
    truth_path and composition."""
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
