"""Holes from boxes: the user's polarity throughout, 1 (white) = to be filled.

Paint-by-Example, on whose training this paper builds, enlarges the box of a thing and half of the time replaces it by a
shape of four Bezier curves. Sec. 4.3 wants masks looser than the subject and gives no parameters: these are its.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common.runs import InputError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two lie outside
Size = tuple[int, int]  # height, width

ENLARGEMENT = 0.4  # of the free space on each side, at most
ARBITRARY = 0.5  # share of masks that are Bezier shapes
JITTER = 5 / 512  # of a Bezier shape's points, as a part of the picture's shorter side
LEAST_AREA, MOST_AREA = 0.02, 0.8  # of boxes worth training on


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def check_box(box: Sequence[float], size: Size, what: str = "the box") -> Box:
    """The box in whole pixels, clipped to the picture. Raises InputError if nothing of it is left."""
    four = isinstance(box, list | tuple) and len(box) == 4
    if not four or not all(type(side) in (int, float) and abs(side) < 2**31 for side in box):
        raise InputError(f"{what} is {box!r}; left, top, right and bottom in pixels are needed")
    if 0 <= min(box) and max(box) <= 1 and any(side != round(side) for side in box):
        raise InputError(f"{what} is {list(box)}, which looks like parts of the picture; pixels are needed")
    left, top = max(round(box[0]), 0), max(round(box[1]), 0)
    right, bottom = min(round(box[2]), size[1]), min(round(box[3]), size[0])
    if right <= left or bottom <= top:
        raise InputError(f"{what} is {list(box)}, and nothing of it lies in a picture of {size[1]}x{size[0]} pixels")
    return left, top, right, bottom


def usable(box: Box, size: Size) -> bool:
    """Whether a box covers 2 to 80 % of the picture, as Paint-by-Example wants it."""
    area = (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
    return LEAST_AREA <= area <= MOST_AREA


def box_of(mask: Tensor) -> Box:
    """The smallest box around the ones of a mask [H, W]. Raises InputError for an empty mask."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        raise InputError("the mask is empty: nothing is to be filled; paint the hole white")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_mask(box: Box, size: Size) -> Tensor:
    """float32 [H, W], 1 in the box."""
    mask = torch.zeros(size)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def padded(box: Box, size: Size, pixels: int) -> Box:
    return (max(box[0] - pixels, 0), max(box[1] - pixels, 0), min(box[2] + pixels, size[1]),
            min(box[3] + pixels, size[0]))  # fmt: skip


def enlarge(box: Box, size: Size, generator: torch.Generator, most: float = ENLARGEMENT) -> Box:
    """Each side moved outwards by a whole number of pixels, uniform up to `most` of the free space on that side."""
    left, top, right, bottom = box
    free = (left, top, size[1] - right, size[0] - bottom)
    a, b, c, d = (integer(generator, 0, int(most * space)) for space in free)
    return left - a, top - b, right + c, bottom + d


def bezier_points(box: Box, outer: Box) -> list[tuple[float, float]]:
    """The points of four quadratic Bezier curves around `box`: top, right, bottom, left, clockwise.

    Each goes from corner to corner of the box, and is drawn to the middle of its side, moved out to `outer`. Of t =
    0.05 to 0.90 only points are kept whose x and y are both new on their curve (as the released code does, so that the
    two symmetrical halves of a curve are not both there).
    """
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    controls = [(middle_x, outer[1]), (outer[2], middle_y), (middle_x, outer[3]), (outer[0], middle_y)]
    points = []
    for curve in zip(corners, controls, corners[1:], strict=False):
        seen_x, seen_y = set(), set()
        for t in (k / 20 for k in range(1, 19)):
            weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
            x, y = (sum(w * p[axis] for w, p in zip(weights, curve, strict=True)) for axis in (0, 1))
            if x not in seen_x and y not in seen_y:
                points.append((x, y))
                seen_x.add(x), seen_y.add(y)
    return points


def bezier_mask(box: Box, outer: Box, size: Size, generator: torch.Generator) -> Tensor:
    """float32 [H, W]: the filled Bezier shape, every point shaken by up to 5 of 512 pixels."""
    shake = max(1, round(JITTER * min(size)))
    points = [tuple(n + integer(generator, -shake, shake) for n in point) for point in bezier_points(box, outer)]
    picture = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(picture).polygon(points, fill=1)
    return torch.from_numpy(np.array(picture, dtype=np.float32))


def training_mask(box: Box, size: Size, generator: torch.Generator, augment: bool = True) -> tuple[Tensor, Box]:
    """(mask [H, W], the enlarged box). Without augmentation the hole is the box itself, which the thing fills:
    the habit that Sec. 4.3 is about."""
    if not augment:
        return box_mask(box, size), box
    outer = enlarge(box, size, generator)
    if uniform(generator) < ARBITRARY:
        return bezier_mask(box, outer, size, generator), outer
    return box_mask(outer, size), outer
