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
        brush.line([(x - 0.24, y - 0.04), (x + 0.02, y + 0.1), (x + 0.26, y)], 0.16, paint)
        brush.line([(x - 0.02, y + 0.1), (x - 0.08, y + 0.42)], 0.15, paint)
    elif choice == 1:
        brush.polygon([(tx, ty), (tx - 0.32, ty - 0.2), (tx - 0.32, ty + 0.2)], paint)
        brush.polygon([(tx, ty), (tx + 0.32, ty - 0.2), (tx + 0.32, ty + 0.2)], paint)
        brush.ellipse(tx, ty, 0.09, 0.1, paint)
    elif choice == 2:
        for k in range(5):
            a = 2 * math.pi * k / 5 - math.pi / 2
            brush.ellipse(tx + 0.16 * math.cos(a), ty + 0.16 * math.sin(a), 0.12, 0.12, paint)
        brush.ellipse(tx, ty, 0.1, 0.1, (250, 220, 80))
    else:
        brush.line([(tx, ty + 0.1), (tx, ty - 0.5)], 0.05, WOOD)
        brush.polygon([(tx, ty - 0.55), (tx + 0.42, ty - 0.4), (tx, ty - 0.22)], paint)


# Each kind paints itself and returns (neck, top of head, width of a hat there).


def cat(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.38 if lying else 0.0
    if lying:
        b.line([(-0.62, 0.86), (-0.95, 0.8), (-0.98, 0.5)], 0.15)
        b.ellipse(-0.1, 0.66, 0.66, 0.34)
        b.ellipse(0.42, 0.9, 0.3, 0.1)
        b.ellipse(-0.45, 0.9, 0.24, 0.1)
    else:
        b.line([(-0.55, 0.25), (-0.85, 0.05), (-0.82, -0.45)], 0.15)
        for x in (-0.5, -0.28, 0.18, 0.4):
            b.polygon([(x - 0.09, 0.4), (x + 0.09, 0.4), (x + 0.09, 1.0), (x - 0.09, 1.0)])
        b.ellipse(-0.06, 0.32, 0.62, 0.32)
    for x in (0.28, 0.72):
        b.polygon([(x - 0.16, -0.4 + low), (x, -0.92 + low), (x + 0.16, -0.4 + low)])
    b.ellipse(0.5, -0.22 + low, 0.4, 0.36)
    b.eye(0.4, -0.26 + low)
    b.eye(0.68, -0.26 + low)
    b.ellipse(0.56, -0.08 + low, 0.07, 0.05, (236, 130, 140), outline=False)
    return (0.32, 0.1 + low), (0.5, -0.6 + low), 0.42


def dog(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.36 if lying else 0.0
    if lying:
        b.line([(-0.62, 0.8), (-0.98, 0.88)], 0.13)
        b.ellipse(-0.12, 0.68, 0.64, 0.32)
        b.ellipse(0.5, 0.92, 0.34, 0.09)
        b.ellipse(-0.5, 0.92, 0.26, 0.09)
    else:
        b.line([(-0.62, 0.15), (-0.92, -0.25)], 0.13)
        for x in (-0.55, -0.32, 0.12, 0.34):
            b.polygon([(x - 0.11, 0.3), (x + 0.11, 0.3), (x + 0.11, 1.0), (x - 0.11, 1.0)])
        b.polygon([(-0.7, 0.0), (0.4, -0.1), (0.48, 0.45), (0.2, 0.56), (-0.6, 0.52), (-0.74, 0.3)])
    b.polygon([(0.2, 0.25 + low), (0.24, -0.4 + low), (0.6, -0.3 + low), (0.52, 0.3 + low)], outline=False)
    b.ellipse(0.46, -0.4 + low, 0.34, 0.32)
    b.polygon([(0.6, -0.5 + low), (1.0, -0.38 + low), (1.0, -0.14 + low), (0.56, -0.08 + low)])
    b.ellipse(0.98, -0.36 + low, 0.09, 0.08, (24, 20, 26), outline=False)
    b.eye(0.6, -0.5 + low, 0.09)
    ear = mix(PAINT[b.thing.color], INK, 0.35)
    b.ellipse(0.26, -0.28 + low, 0.14, 0.34, ear, tilt=0.2)
    return (0.34, 0.12 + low), (0.46, -0.7 + low), 0.38


def bird(b: Brush):
    lying = b.thing.pose == "lying"
    low = 0.42 if lying else 0.0
    if not lying:
        for x in (-0.12, 0.14):
            b.line([(x, 0.5), (x, 0.97), (x + 0.16, 0.97)], 0.06, BEAK)
    b.polygon([(-0.4, 0.0 + low), (-1.0, -0.22 + low), (-0.98, 0.14 + low), (-0.4, 0.38 + low)])
    b.ellipse(0.0, 0.14 + low, 0.58, 0.44)
    b.polygon([(0.68, -0.5 + low), (1.0, -0.36 + low), (0.68, -0.24 + low)], BEAK)
    b.ellipse(0.42, -0.36 + low, 0.34, 0.32)
    b.eye(0.52, -0.42 + low, 0.1)
    wing = mix(PAINT[b.thing.color], INK, 0.3)
    if lying:
        b.ellipse(-0.2, 0.12 + low, 0.42, 0.24, wing, tilt=-0.1)
    else:
        b.polygon([(0.12, 0.02), (-0.5, -0.3), (-0.62, 0.02), (-0.42, 0.3), (0.0, 0.34)], wing)
    return (0.26, 0.02 + low), (0.42, -0.66 + low), 0.36


def fish(b: Brush):
    b.polygon([(-0.5, 0.3), (-1.0, -0.1), (-0.86, 0.3), (-1.0, 0.7)])
    b.polygon([(-0.2, 0.0), (0.05, -0.42), (0.3, 0.0)])
    b.ellipse(0.12, 0.3, 0.76, 0.46)
    b.polygon([(-0.05, 0.36), (-0.34, 0.62), (0.06, 0.62)], mix(PAINT[b.thing.color], INK, 0.3))
    b.eye(0.56, 0.18, 0.12)
    b.line([(0.84, 0.42), (0.66, 0.48)], 0.03, INK)
    return (0.3, 0.62), (0.34, -0.12), 0.36


def car(b: Brush):
    b.polygon([(-0.62, 0.1), (-0.4, -0.4), (0.28, -0.4), (0.56, 0.1)])
    b.polygon([(-0.44, 0.06), (-0.3, -0.27), (-0.06, -0.27), (-0.06, 0.06)], GLASS)
    b.polygon([(0.04, 0.06), (0.04, -0.27), (0.22, -0.27), (0.4, 0.06)], GLASS)
    b.polygon([(-1.0, 0.16), (-0.9, 0.06), (0.62, 0.06), (0.98, 0.24), (1.0, 0.7), (-1.0, 0.7)])
    b.ellipse(0.9, 0.36, 0.09, 0.1, (252, 236, 150))
    for x in (-0.54, 0.56):
        b.ellipse(x, 0.72, 0.28, 0.28, (44, 42, 48))
        b.ellipse(x, 0.72, 0.11, 0.11, (206, 206, 210), outline=False)
    return (0.5, 0.3), (-0.06, -0.42), 0.42


def boat(b: Brush):
    b.polygon([(0.0, -0.98), (0.09, -0.98), (0.09, 0.4), (0.0, 0.4)], WOOD)
    b.polygon([(0.14, -0.9), (0.86, 0.24), (0.14, 0.24)], (250, 248, 240))
    b.polygon([(-0.06, -0.7), (-0.06, 0.24), (-0.56, 0.24)], (232, 230, 224))
    b.polygon([(-0.98, 0.36), (1.0, 0.3), (0.66, 0.96), (-0.66, 0.96)])
    return (0.6, 0.4), (-0.62, 0.34), 0.36


def house(b: Brush):
    b.polygon([(0.36, -0.86), (0.6, -0.86), (0.6, -0.3), (0.36, -0.3)], (150, 110, 96))
    b.polygon([(-0.78, -0.2), (0.78, -0.2), (0.78, 1.0), (-0.78, 1.0)])
    b.polygon([(-0.98, -0.16), (0.0, -0.98), (0.98, -0.16)], mix(PAINT[b.thing.color], INK, 0.42))
    b.polygon([(-0.18, 0.36), (0.18, 0.36), (0.18, 1.0), (-0.18, 1.0)], WOOD)
    for x in (-0.5, 0.5):
        b.polygon([(x - 0.18, 0.1), (x + 0.18, 0.1), (x + 0.18, 0.44), (x - 0.18, 0.44)], GLASS)
    return (0.0, 0.16), (0.0, -0.84), 0.42


def tree(b: Brush):
    b.polygon([(-0.14, 0.2), (0.14, 0.2), (0.2, 1.0), (-0.2, 1.0)], WOOD)
    for x, y, r in ((-0.42, -0.05, 0.42), (0.42, -0.05, 0.42), (0.0, 0.1, 0.4), (0.0, -0.45, 0.5)):
        b.ellipse(x, y, r, r)
    b.ellipse(0.0, -0.14, 0.42, 0.42, outline=False)
    return (0.0, 0.34), (0.0, -0.86), 0.44


def mushroom(b: Brush):
    b.polygon([(-0.22, 0.0), (0.22, 0.0), (0.32, 1.0), (-0.32, 1.0)], CREAM)
    arc = [(0.92 * math.cos(a), 0.14 - 0.98 * math.sin(a)) for a in np.linspace(0, math.pi, 20)]
    b.polygon(arc + [(-0.5, 0.24), (0.5, 0.24)])
    return (0.0, 0.4), (0.0, -0.8), 0.44


def ball(b: Brush):
    b.ellipse(0.0, 0.2, 0.8, 0.8)
    b.ellipse(-0.3, -0.12, 0.16, 0.12, (255, 255, 255), outline=False, tilt=-0.6)
    return (0.1, 0.66), (0.0, -0.56), 0.44


def star(b: Brush):
    radii = [1.02 if k % 2 == 0 else 0.46 for k in range(10)]
    points = [(r * math.sin(math.pi * k / 5), 0.08 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]
    b.polygon(points)
    b.eye(-0.16, 0.0, 0.09)
    b.eye(0.16, 0.0, 0.09)
    return (0.0, 0.34), (0.0, -0.66), 0.34


def cup(b: Brush):
    b.ellipse(0.62, 0.28, 0.36, 0.38)
    b.ellipse(0.62, 0.28, 0.18, 0.2, b.behind, outline=True)
    b.polygon([(-0.72, -0.4), (0.6, -0.4), (0.48, 1.0), (-0.6, 1.0)])
    b.ellipse(-0.06, -0.4, 0.66, 0.16, mix(PAINT[b.thing.color], INK, 0.55))
    return (-0.06, 0.1), (-0.06, -0.46), 0.44


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
