"""The brush that paints one thing: its own coordinates, its material, outlines, and the mask of what it painted."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from common.picturebook.scenes import COLORS, FACING_KINDS, Thing

SIZE = 64  # pixels of a picture
SCALE = 4  # it is painted this much larger, and reduced
CANVAS = SIZE * SCALE

PAINT = {
    "red": (214, 48, 42), "orange": (242, 138, 32), "yellow": (247, 208, 52), "green": (62, 160, 66),
    "blue": (50, 100, 214), "purple": (136, 66, 178), "pink": (244, 134, 178), "brown": (132, 84, 48),
    "white": (244, 244, 240), "black": (54, 52, 60),
}  # fmt: skip
INK = (38, 32, 40)
STRAW = (226, 186, 98)
BAND = (184, 40, 48)
NIGHT_TINT = np.array([0.74, 0.76, 0.92], np.float32)
PEN, SKETCH_PEN = 6, 7  # outlines on the canvas: 1.5 pixels of the picture and more; finer ones a latent cell loses


def mix(a, b, weight: float) -> tuple[int, int, int]:
    return tuple(round(x + (y - x) * weight) for x, y in zip(a, b, strict=True))


def contrast(color) -> tuple[int, int, int]:
    """A colour that shows on `color` and still belongs to it: lighter on dark paint, darker on light paint."""
    light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]
    return mix(color, (255, 255, 250), 0.72) if light < 135 else mix(color, INK, 0.58)


class Brush:
    """Paints one thing in its own coordinates: x to the front and y down, both in [-1, 1], the ground at 1."""

    def __init__(self, canvas: Image.Image, thing: Thing, sketch: bool, night: bool):
        self.canvas, self.thing, self.sketch = canvas, thing, sketch
        self.half = thing.size * CANVAS
        self.center = (thing.x * CANVAS, (thing.ground - thing.size) * CANVAS)
        self.flip = -1 if thing.kind in FACING_KINDS and thing.facing == "left" else 1
        self.tint = NIGHT_TINT if night else np.ones(3, np.float32)
        self.mask = Image.new("L", canvas.size, 0)
        self.body = self.body_layer()

    def at(self, x: float, y: float) -> tuple[float, float]:
        return (self.center[0] + self.flip * x * self.half, self.center[1] + y * self.half)

    def body_layer(self) -> Image.Image:
        """The paint of the body over the canvas: colour, material or marking, shaded from the upper left."""
        thing, n = self.thing, CANVAS
        reach = 1.25 * self.half  # beyond it nothing is painted
        x0, x1 = (int(np.clip(self.center[0] + side * reach, 0, n)) for side in (-1, 1))
        y0, y1 = (int(np.clip(self.center[1] + side * reach, 0, n)) for side in (-1, 1))
        v, u = np.mgrid[y0:y1, x0:x1].astype(np.float32)
        u = (u - self.center[0]) / self.half * self.flip
        v = (v - self.center[1]) / self.half
        color = np.array(PAINT[thing.color], np.float32)
        pattern = np.zeros(u.shape, bool)
        second = np.array(contrast(PAINT[thing.color]), np.float32)
        if thing.material == "striped":
            pattern = np.mod(u + 0.25 * v + 0.1, 0.62) < 0.29
        elif thing.material == "spotted":
            row = np.floor(v / 0.52)
            pattern = np.hypot(np.mod(u + 0.3 * np.mod(row, 2), 0.6) - 0.3, np.mod(v, 0.52) - 0.26) < 0.185
        if thing.marking:
            rng = random.Random(f"marking {thing.marking}")
            second = np.array(PAINT[rng.choice([c for c in COLORS if c != thing.color])], np.float32)
            pattern = marking_pattern(rng, u, v)
        layer = np.where(pattern[..., None], second, color)
        shade = 1.1 - 0.17 * (v + 0.35 * u * self.flip + 1)
        painted = np.clip(layer * shade[..., None] * self.tint, 0, 255).astype(np.uint8)
        body = Image.new("RGB", (n, n))
        body.paste(Image.fromarray(painted), (x0, y0))
        return body

    def stencil(self, corners, reach: float) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[int, int], list]:
        """An empty stencil just large enough for `corners` and `reach` around them: itself, a pen on it, where its
        upper left corner lies on the canvas, and the corners in its own coordinates."""
        x0, y0 = (math.floor(min(c[axis] for c in corners) - reach) - 1 for axis in (0, 1))
        x1, y1 = (math.ceil(max(c[axis] for c in corners) + reach) + 2 for axis in (0, 1))
        part = Image.new("L", (x1 - x0, y1 - y0), 0)
        return part, ImageDraw.Draw(part), (x0, y0), [(x - x0, y - y0) for x, y in corners]

    def fill(self, part: Image.Image, corner: tuple[int, int], paint) -> None:
        """Paints through a stencil. paint: "body" for the thing's own paint, or an RGB colour."""
        box = (*corner, corner[0] + part.width, corner[1] + part.height)
        if paint == "body":
            self.canvas.paste(self.body.crop(box), box, part)
        else:
            self.canvas.paste(tuple(int(c * t) for c, t in zip(paint, self.tint, strict=True)), box, part)
        self.mask.paste(255, box, part)

    def polygon(self, points, paint="body", outline: bool = True) -> None:
        corners = [self.at(x, y) for x, y in points]
        part, pen, corner, inside = self.stencil(corners, 0)
        pen.polygon(inside, fill=255)
        self.fill(part, corner, paint)
        if outline:
            self.stroke(corners + corners[:2])

    def ellipse(self, x: float, y: float, rx: float, ry: float, paint="body", outline: bool = True, tilt=0.0) -> None:
        angles = np.linspace(0, 2 * math.pi, 33)[:-1]
        cos, sin = math.cos(tilt), math.sin(tilt)
        points = [(rx * math.cos(a), ry * math.sin(a)) for a in angles]
        self.polygon([(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in points], paint, outline)

    def line(self, points, width: float, paint="body") -> None:
        """A thick line with round ends, outlined like everything else."""
        corners = [self.at(x, y) for x, y in points]
        for extra, color in ((self.pen // 2 + 1, INK), (0, paint)):
            thickness = max(2, round(width * self.half)) + 2 * extra
            part, pen, corner, inside = self.stencil(corners, thickness)
            pen.line(inside, fill=255, width=thickness, joint="curve")
            r = thickness / 2
            for x, y in inside:
                pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
            self.fill(part, corner, color)

    @property
    def pen(self) -> int:
        return SKETCH_PEN if self.sketch else PEN

    def stroke(self, corners) -> None:
        color = tuple(int(c * t) for c, t in zip(INK, self.tint, strict=True))
        ImageDraw.Draw(self.canvas).line(corners, fill=color, width=self.pen, joint="curve")
        ImageDraw.Draw(self.mask).line(corners, fill=255, width=self.pen, joint="curve")

    def eye(self, x: float, y: float, r: float = 0.15) -> None:
        """A white eye with a dark rim and a large pupil, which looks to the front."""
        self.ellipse(x, y, 1.3 * r, 1.4 * r, INK, outline=False)
        self.ellipse(x, y, r, r * 1.1, (252, 252, 252), outline=False)
        self.ellipse(x + 0.25 * r, y, r * 0.62, r * 0.75, (16, 14, 20), outline=False)

    def hat(self, x: float, y: float, width: float) -> None:
        """A straw hat with a broad red band, its brim centred at (x, y)."""
        w = width
        self.polygon(
            [(x - 0.62 * w, y), (x - 0.5 * w, y - 0.95 * w), (x + 0.5 * w, y - 0.95 * w), (x + 0.62 * w, y)], STRAW
        )
        self.polygon(
            [(x - 0.62 * w, y), (x - 0.56 * w, y - 0.42 * w), (x + 0.56 * w, y - 0.42 * w), (x + 0.62 * w, y)], BAND
        )
        self.ellipse(x, y, 1.15 * w, 0.2 * w, STRAW)


def marking_pattern(rng: random.Random, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where an individual wears its second colour, in large patches; u, v in the thing's own coordinates."""
    shift, period = rng.uniform(-0.25, 0.25), rng.uniform(0.8, 1.1)
    choice = rng.randrange(5)
    if choice == 0:  # patches
        spots = [(rng.uniform(-0.8, 0.8), rng.uniform(-0.7, 0.8), rng.uniform(0.32, 0.48)) for _ in range(4)]
        return np.any([np.hypot(u - x, v - y) < r for x, y, r in spots], axis=0)
    if choice == 1:  # one half
        return u + rng.choice((-0.6, 0.0, 0.6)) * v > shift
    if choice == 2:  # belts
        return np.mod(v + shift, period) < period / 2
    if choice == 3:  # checks
        return (np.floor((u + shift) / (period / 2)) + np.floor((v + shift) / (period / 2))) % 2 == 0
    return np.mod(np.hypot(u - shift, v - shift) + shift, period) < period / 2  # rings
