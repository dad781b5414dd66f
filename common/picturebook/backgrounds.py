"""The six backgrounds, by day and by night."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw

from common.picturebook.brush import CANVAS
from common.picturebook.scenes import Scene

NIGHT_TINT = np.array([0.30, 0.33, 0.53], np.float32)


def gradient(top, bottom, y0: float, y1: float) -> np.ndarray:
    """[CANVAS, CANVAS, 3]: a vertical ramp between two colours over the heights y0 to y1 (fractions)."""
    ramp = np.clip((np.arange(CANVAS) / CANVAS - y0) / (y1 - y0), 0, 1)[:, None, None]
    return np.broadcast_to(np.array(top) * (1 - ramp) + np.array(bottom) * ramp, (CANVAS, CANVAS, 3))


SKY_AND_GROUND = {  # sky above, sky at the horizon, ground at the horizon, ground in front, height of the horizon
    "meadow": ((108, 178, 240), (206, 232, 250), (150, 200, 92), (84, 152, 58), 0.60),
    "beach": ((120, 200, 240), (250, 234, 208), (248, 226, 164), (226, 188, 112), 0.66),
    "snow": ((164, 178, 204), (222, 226, 236), (236, 240, 248), (214, 224, 242), 0.58),
    "sea": ((130, 204, 236), (224, 244, 248), (48, 132, 186), (22, 78, 142), 0.54),
    "desert": ((250, 196, 120), (252, 232, 180), (232, 164, 88), (198, 112, 58), 0.60),
    "room": ((226, 196, 206), (214, 178, 192), (176, 124, 84), (138, 92, 60), 0.66),
}


def paint_background(scene: Scene) -> Image.Image:
    rng = random.Random(f"background {scene.seed}")
    high, low, far, near, horizon = SKY_AND_GROUND[scene.background]
    horizon += rng.uniform(-0.03, 0.03)
    rows = (np.arange(CANVAS) / CANVAS < horizon)[:, None, None]
    picture = np.where(rows, gradient(high, low, 0, horizon), gradient(far, near, horizon, 1))
    canvas = Image.fromarray(picture.astype(np.uint8))
    pen, n, h = ImageDraw.Draw(canvas), CANVAS, horizon * CANVAS
    DETAILS[scene.background](pen, rng, n, h, scene.light == "night")
    if scene.light == "night":
        canvas = Image.fromarray((np.asarray(canvas) * NIGHT_TINT).astype(np.uint8))
        if scene.background != "room":
            night_sky(ImageDraw.Draw(canvas), rng, n, h)
    return canvas


def cloud(pen, x: float, y: float, s: float, color=(252, 252, 255)) -> None:
    for dx, dy, r in ((-1.1, 0.15, 0.6), (0, -0.2, 0.85), (1.1, 0.15, 0.65), (0.5, 0.2, 0.6), (-0.5, 0.2, 0.6)):
        pen.ellipse((x + (dx - r) * s, y + (dy - r) * s, x + (dx + r) * s, y + (dy + r) * s), fill=color)


def night_sky(pen, rng, n, h) -> None:
    for _ in range(6):
        x, y, r = rng.uniform(0, n), rng.uniform(0, h * 0.8), rng.uniform(5, 7)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(246, 244, 214))
    x, y = rng.uniform(0.12, 0.88) * n, rng.uniform(0.1, 0.18) * n
    pen.ellipse((x - 20, y - 20, x + 20, y + 20), fill=(250, 244, 200))


def meadow(pen, rng, n, h, night) -> None:
    if not night:
        cloud(pen, rng.uniform(0.1, 0.9) * n, rng.uniform(0.08, 0.22) * n, rng.uniform(11, 16))
    for _ in range(6):
        x, y = rng.uniform(0, n), rng.uniform(h + 20, n)
        pen.polygon([(x - 12, y), (x - 8, y - 14), (x, y - 4), (x + 8, y - 14), (x + 12, y)], fill=(74, 136, 50))
    for _ in range(3):
        x, y = rng.uniform(0, n), rng.uniform(h + 14, n)
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=rng.choice(((250, 236, 120), (250, 250, 246))))


def beach(pen, rng, n, h, night) -> None:
    pen.rectangle((0, h - 34, n, h), fill=(64, 156, 200))
    pen.line((0, h, n, h), fill=(240, 250, 250), width=6)
    if not night:
        x = rng.uniform(0.1, 0.9) * n
        pen.ellipse((x - 20, 14, x + 20, 54), fill=(255, 222, 96))
    for _ in range(5):
        x, y = rng.uniform(0, n), rng.uniform(h + 10, n)
        pen.ellipse((x - 9, y - 5, x + 9, y + 5), fill=(206, 164, 94))


def snow(pen, rng, n, h, night) -> None:
    for _ in range(3):
        x, s = rng.uniform(0, n), rng.uniform(20, 34)
        pen.polygon([(x - s * 0.5, h + 4), (x, h - s * 1.6), (x + s * 0.5, h + 4)], fill=(96, 128, 124))
    for _ in range(9):
        x, y, r = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(6, 8)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(254, 254, 255))


def sea(pen, rng, n, h, night) -> None:
    if not night:
        cloud(pen, rng.uniform(0.1, 0.9) * n, rng.uniform(0.08, 0.2) * n, rng.uniform(10, 14))
    for row in range(4):
        y, shift = h + 12 + row * row * 4.5 + row * 9, rng.uniform(0, 40)
        for x in np.arange(-40 + shift, n, 46):
            pen.arc((x, y - 6, x + 30, y + 8), 20, 160, fill=(124, 188, 224), width=6)


def desert(pen, rng, n, h, night) -> None:
    x = rng.uniform(0.1, 0.9) * n
    pen.polygon([(x - 110, h + 2), (x - 10, h - 36), (x + 120, h + 2)], fill=(214, 140, 76))
    x = rng.choice((rng.uniform(0.04, 0.16), rng.uniform(0.84, 0.96))) * n
    pen.rounded_rectangle((x - 9, h - 56, x + 9, h + 8), 9, fill=(84, 142, 88))
    pen.line((x - 22, h - 42, x - 22, h - 20, x, h - 20), fill=(84, 142, 88), width=12)
    for _ in range(5):
        x, y = rng.uniform(0, n), rng.uniform(h + 14, n)
        pen.arc((x - 26, y - 8, x + 26, y + 8), 190, 350, fill=(176, 96, 48), width=5)


def room(pen, rng, n, h, night) -> None:
    for y in np.arange(h + 20, n, 28):
        pen.line((0, y, n, y), fill=(112, 72, 46), width=4)
    pen.rectangle((0, h - 10, n, h), fill=(250, 240, 232))
    x = rng.uniform(0.2, 0.8) * n
    pen.rectangle(
        (x - 34, 18, x + 34, 84), fill=(40, 52, 120) if night else (160, 214, 246), outline=(250, 244, 236), width=8
    )
    pen.line((x, 18, x, 84), fill=(250, 244, 236), width=6)
    pen.line((x - 34, 51, x + 34, 51), fill=(250, 244, 236), width=6)


DETAILS = dict(meadow=meadow, beach=beach, snow=snow, sea=sea, desert=desert, room=room)
