"""Draws a scene: 64x64 pixels, painted at four times that size and reduced, with an exact mask per thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from common.picturebook.backgrounds import paint_background
from common.picturebook.brush import CANVAS, SCALE, SIZE
from common.picturebook.scenes import Scene
from common.picturebook.things import paint_thing

PAPER = (246, 241, 228)


@dataclass(frozen=True)
class Drawing:
    """picture: RGB, 64x64. masks: per thing float32 [64, 64] in {0, 1}, only what is seen of it, without its shadow."""

    picture: Image.Image
    masks: list[np.ndarray]


def as_sketch(canvas: Image.Image, covered: np.ndarray) -> Image.Image:
    """The picture as a coloured pencil sketch on cream paper: pale washes, the things hatched, dark lines."""
    wash = np.asarray(canvas, np.float32) / 255
    paper = np.array(PAPER, np.float32) / 255
    v, u = np.mgrid[0:CANVAS, 0:CANVAS]
    hatch = (np.mod(u + v, 32) < 14)[..., None]
    strength = np.where(covered[..., None] > 127, np.where(hatch, 0.9, 0.7), 0.3)
    return Image.fromarray((255 * (paper * (1 - strength) + wash * paper * strength)).astype(np.uint8))


def draw(scene: Scene) -> Drawing:
    """Paints a scene. Deterministic: the same description gives the same bytes."""
    sketch, night = scene.style == "sketch", scene.light == "night"
    canvas = paint_background(scene)
    masks = []
    for thing in scene.things:
        painted = paint_thing(canvas, thing, sketch, night)
        masks = [np.where(painted > 0, 0, mask) for mask in masks] + [painted]
    if sketch:
        together = np.maximum.reduce(masks) if masks else np.zeros((CANVAS, CANVAS), np.uint8)
        canvas = as_sketch(canvas, together)
    picture = canvas.resize((SIZE, SIZE), Image.Resampling.BOX)
    covered = [mask.reshape(SIZE, SCALE, SIZE, SCALE).mean((1, 3)) for mask in masks]
    return Drawing(picture, [(share > 128).astype(np.float32) for share in covered])
