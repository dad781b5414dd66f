"""The twelve kinds of thing, each painted with a Brush, and what individuals wear."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from common.picturebook.brush import CANVAS, INK, NIGHT_TINT, PAINT, Brush, mix
from common.picturebook.scenes import COLORS, Thing

WOOD = (112, 76, 50)
CREAM = (240, 226, 198)
GLASS = (176, 216, 236)
BEAK = (244, 166, 40)


def accessory(brush: Brush, neck: tuple[float, float], top: tuple[float, float]) -> None:
    """What an individual wears: a scarf, a bow, a flower or a flag, in a colour of its own."""
    rng = random.Random(f"accessory {brush.thing.marking}")
    paint = PAINT[rng.choice([c for c in COLORS if c != brush.thing.color])]
    choice, (x, y), (tx, ty) = rng.randrange(4), neck, top
    if choice == 0:
        brush.line([(x - 0.3, y - 0.02), (x + 0.02, y + 0.1), (x + 0.32, y)], 0.24, paint)
        brush.line([(x - 0.04, y + 0.12), (x - 0.1, y + 0.46)], 0.24, paint)
    elif choice == 1:
        brush.polygon([(tx, ty), (tx - 0.46, ty - 0.3), (tx - 0.46, ty + 0.24)], paint)
        brush.polygon([(tx, ty), (tx + 0.46, ty - 0.3), (tx + 0.46, ty + 0.24)], paint)
        brush.ellipse(tx, ty, 0.14, 0.16, paint)
    elif choice == 2:
        for k in range(5):
            a = 2 * math.pi * k / 5 - math.pi / 2
            brush.ellipse(tx + 0.24 * math.cos(a), ty - 0.1 + 0.24 * math.sin(a), 0.18, 0.18, paint)
        brush.ellipse(tx, ty - 0.1, 0.15, 0.15, (250, 220, 80), outline=False)
    else:
        brush.line([(tx, ty + 0.1), (tx, ty - 0.5)], 0.08, WOOD)
        brush.polygon([(tx, ty - 0.62), (tx + 0.62, ty - 0.38), (tx, ty - 0.14)], paint)


# Each kind paints itself and returns (neck, top of head, width of a hat there). Heads and eyes are large for the body,
# and kinds differ in their silhouette: what is smaller than a latent cell (4 x 4 pixels) is lost on the way.


def legs(b: Brush, places, width: float, top: float) -> None:
    for x in places:
        b.polygon([(x - width, top), (x + width, top), (x + width, 1.0), (x - width, 1.0)])


def cat(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.32 if lying else 0.0
    if lying:
        b.line([(-0.6, 0.84), (-0.98, 0.78), (-0.98, 0.42)], 0.2)
        b.ellipse(-0.14, 0.7, 0.72, 0.31)
    else:
        b.line([(-0.5, 0.4), (-0.9, 0.2), (-0.9, -0.4)], 0.2)
        legs(b, (-0.46, 0.26), 0.16, 0.5)
        b.ellipse(-0.1, 0.44, 0.6, 0.34)
    for x in (0.0, 0.66):
        b.polygon([(x - 0.24, -0.34 + low), (x + (0.12 if x else -0.08), -1.0 + low), (x + 0.24, -0.34 + low)])
    b.ellipse(0.34, -0.14 + low, 0.58, 0.46)
    b.eye(0.16, -0.2 + low)
    b.eye(0.62, -0.2 + low)
    b.ellipse(0.4, 0.1 + low, 0.12, 0.09, (240, 110, 130), outline=False)
    return (0.26, 0.3 + low), (0.33, -0.58 + low), 0.44


def dog(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.32 if lying else 0.0
    if lying:
        b.line([(-0.6, 0.8), (-1.0, 0.9)], 0.18)
        b.ellipse(-0.16, 0.72, 0.7, 0.29)
    else:
        b.line([(-0.6, 0.2), (-0.95, -0.3)], 0.18)
        legs(b, (-0.52, 0.16), 0.17, 0.4)
        b.polygon([(-0.74, 0.08), (0.3, -0.02), (0.42, 0.5), (-0.68, 0.62)])
    b.polygon([(0.04, 0.3 + low), (0.06, -0.36 + low), (0.5, -0.3 + low), (0.42, 0.36 + low)], outline=False)
    b.ellipse(0.3, -0.4 + low, 0.44, 0.42)
    b.ellipse(0.72, -0.22 + low, 0.36, 0.24)
    b.ellipse(0.98, -0.34 + low, 0.14, 0.13, (24, 20, 26), outline=False)
    b.eye(0.46, -0.52 + low)
    b.ellipse(-0.02, -0.24 + low, 0.18, 0.42, mix(PAINT[b.thing.color], INK, 0.4), tilt=0.2)
    return (0.24, 0.22 + low), (0.28, -0.8 + low), 0.42


def bird(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.34 if lying else 0.0
    if not lying:
        for x in (-0.16, 0.2):
            b.line([(x, 0.5), (x, 0.94), (x + 0.2, 0.94)], 0.1, BEAK)
    b.polygon([(-0.4, -0.05 + low), (-1.04, -0.3 + low), (-1.0, 0.2 + low), (-0.4, 0.4 + low)])
    b.ellipse(-0.04, 0.2 + low, 0.64, 0.46)
    b.polygon([(0.66, -0.62 + low), (1.12, -0.36 + low), (0.66, -0.12 + low)], BEAK)
    b.ellipse(0.36, -0.38 + low, 0.44, 0.42)
    b.eye(0.48, -0.46 + low)
    wing = mix(PAINT[b.thing.color], INK, 0.36)
    if lying:
        b.ellipse(-0.24, 0.22 + low, 0.42, 0.24, wing, tilt=-0.1)
    else:
        b.polygon([(0.12, 0.06), (-0.56, -0.2), (-0.72, 0.1), (-0.46, 0.42), (0.0, 0.42)], wing)
    return (0.22, 0.06 + low), (0.36, -0.78 + low), 0.4


def fish(b: Brush):
    b.polygon([(-0.46, 0.3), (-1.04, -0.22), (-0.86, 0.3), (-1.04, 0.82)])
    b.polygon([(-0.3, 0.0), (0.05, -0.56), (0.36, 0.0)])
    b.ellipse(0.14, 0.3, 0.8, 0.52)
    b.polygon([(0.06, 0.36), (-0.36, 0.7), (0.1, 0.7)], mix(PAINT[b.thing.color], INK, 0.36))
    b.eye(0.54, 0.16, 0.17)
    b.line([(0.92, 0.44), (0.64, 0.52)], 0.05, INK)
    return (0.26, 0.66), (0.3, -0.2), 0.42


def car(b: Brush):
    b.polygon([(-0.7, 0.12), (-0.44, -0.5), (0.32, -0.5), (0.64, 0.12)])
    b.polygon([(-0.46, 0.06), (-0.3, -0.32), (-0.08, -0.32), (-0.08, 0.06)], GLASS)
    b.polygon([(0.08, 0.06), (0.08, -0.32), (0.24, -0.32), (0.44, 0.06)], GLASS)
    b.polygon([(-1.04, 0.1), (0.66, 0.06), (1.02, 0.24), (1.04, 0.74), (-1.04, 0.74)])
    b.ellipse(0.9, 0.36, 0.14, 0.14, (252, 236, 150))
    for x in (-0.54, 0.56):
        b.ellipse(x, 0.7, 0.31, 0.31, (44, 42, 48))
        b.ellipse(x, 0.7, 0.14, 0.14, (212, 212, 216), outline=False)
    return (0.5, 0.3), (-0.06, -0.52), 0.44


def boat(b: Brush):
    b.polygon([(-0.04, -1.0), (0.1, -1.0), (0.1, 0.3), (-0.04, 0.3)], WOOD)
    b.polygon([(0.16, -0.92), (0.9, 0.12), (0.16, 0.12)], (250, 248, 240))
    b.polygon([(-0.1, -0.7), (-0.1, 0.12), (-0.66, 0.12)], (236, 234, 228))
    b.polygon([(-1.02, 0.2), (1.06, 0.14), (0.68, 0.98), (-0.68, 0.98)])
    return (0.5, 0.3), (-0.64, 0.16), 0.4


def house(b: Brush):
    b.polygon([(0.36, -0.9), (0.66, -0.9), (0.66, -0.3), (0.36, -0.3)], (150, 110, 96))
    b.polygon([(-0.8, -0.2), (0.8, -0.2), (0.8, 1.0), (-0.8, 1.0)])
    b.polygon([(-1.04, -0.12), (0.0, -1.0), (1.04, -0.12)], mix(PAINT[b.thing.color], INK, 0.45))
    b.polygon([(0.08, 0.32), (0.52, 0.32), (0.52, 1.0), (0.08, 1.0)], WOOD)
    b.polygon([(-0.6, 0.14), (-0.14, 0.14), (-0.14, 0.6), (-0.6, 0.6)], GLASS)
    return (0.0, 0.16), (-0.06, -0.86), 0.44


def tree(b: Brush):
    b.polygon([(-0.2, 0.2), (0.2, 0.2), (0.26, 1.0), (-0.26, 1.0)], WOOD)
    for x, y, r in ((-0.48, 0.0, 0.46), (0.48, 0.0, 0.46), (0.0, -0.48, 0.52)):
        b.ellipse(x, y, r, r)
    b.ellipse(0.0, -0.06, 0.5, 0.4, outline=False)
    return (0.0, 0.34), (0.0, -0.9), 0.44


def mushroom(b: Brush):
    b.polygon([(-0.3, 0.0), (0.3, 0.0), (0.4, 1.0), (-0.4, 1.0)], CREAM)
    arc = [(1.02 * math.cos(a), 0.18 - 1.08 * math.sin(a)) for a in np.linspace(0, math.pi, 20)]
    b.polygon(arc + [(-0.5, 0.3), (0.5, 0.3)])
    return (0.0, 0.4), (0.0, -0.82), 0.44


def ball(b: Brush):
    b.ellipse(0.0, 0.14, 0.86, 0.86)
    b.ellipse(-0.32, -0.2, 0.22, 0.16, (255, 255, 255), outline=False, tilt=-0.6)
    return (0.1, 0.66), (0.0, -0.68), 0.44


def star(b: Brush):
    radii = [1.1 if k % 2 == 0 else 0.52 for k in range(10)]
    points = [(r * math.sin(math.pi * k / 5), 0.1 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]
    b.polygon(points)
    b.eye(-0.22, 0.02, 0.14)
    b.eye(0.22, 0.02, 0.14)
    return (0.0, 0.4), (0.0, -0.66), 0.36


def cup(b: Brush):
    b.ellipse(0.6, 0.26, 0.46, 0.44)
    b.ellipse(0.62, 0.26, 0.2, 0.2, b.behind, outline=True)
    b.polygon([(-0.8, -0.5), (0.56, -0.5), (0.44, 1.0), (-0.66, 1.0)])
    b.ellipse(-0.12, -0.5, 0.7, 0.2, mix(PAINT[b.thing.color], INK, 0.55))
    return (-0.1, 0.1), (-0.12, -0.54), 0.46


PAINTERS = dict(
    cat=cat, dog=dog, bird=bird, fish=fish, car=car, boat=boat, house=house,
    tree=tree, mushroom=mushroom, ball=ball, star=star, cup=cup,
)  # fmt: skip


def paint_thing(canvas: Image.Image, thing: Thing, sketch: bool, night: bool) -> np.ndarray:
    """Paints a thing and its shadow; returns its mask at canvas size, uint8."""
    half, (x, ground) = thing.size * CANVAS, (thing.x * CANVAS, thing.ground * CANVAS)
    shadow = Image.new("L", canvas.size, 0)
    ImageDraw.Draw(shadow).ellipse(
        (x - half * 0.85, ground - half * 0.11, x + half * 0.85, ground + half * 0.13), fill=90
    )
    canvas.paste((24, 22, 40), (0, 0), shadow)
    brush = Brush(canvas, thing, sketch, night)
    brush.behind = canvas.getpixel(
        (min(CANVAS - 1, max(0, int(x + half * 1.1 * brush.flip))), int(ground - half * 0.7))
    )
    if night:  # `behind` is already dark; painting tints it once more
        brush.behind = tuple(int(min(255, c / t)) for c, t in zip(brush.behind, NIGHT_TINT, strict=True))
    neck, top, width = PAINTERS[thing.kind](brush)
    if thing.hat:
        brush.hat(*top, width)
    if thing.marking:
        accessory(brush, neck, top)
    return np.asarray(brush.mask)
