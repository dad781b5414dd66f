"""Augmentation of the source (the paper's Sec. 4.3) and of the reference (as Paint-by-Example has it).

The paper names flip, rotation and blur, applied to the source I_s, and gives no parameters. Paint-by-Example augments
the reference crop: flip, rotation by up to 20 degrees, blur and elastic deformation, with albumentations' defaults.
What they call elastic is next to nothing but a random affine map: with their defaults the smooth shift of pixels that
comes on top is of some thousandths of a pixel, and is left out here. Pictures are float32 [1, C, H, W] in [0, 1]; every
function draws from the generator it is given.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from image_inpaint.masks import integer, uniform

NAMES = ("flip", "rotation", "blur", "elastic")
CHANCE = {"flip": 0.5, "rotation": 0.5, "blur": 0.3, "elastic": 0.3}
MOST_DEGREES = 20.0
BLUR_KERNELS = (3, 7)  # of 224 pixels
MOST_AFFINE = 50 / 224  # of a side, by which each of three corners is moved along either axis


def warp(picture: Tensor, matrix: Tensor, padding_mode: str = "reflection") -> Tensor:
    """Every pixel fetched from where the matrix [2, 3] says, in coordinates from -1 to 1 along both sides, whatever
    their lengths; what comes in from outside is reflected (or "zeros")."""
    grid = F.affine_grid(matrix[None].to(picture), list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, padding_mode=padding_mode, align_corners=False)


def rotation(degrees: float, size: Sequence[int]) -> Tensor:
    """Of warp: a picture of `size` (height, width) turned about its middle, counterclockwise as seen."""
    angle, (height, width) = math.radians(degrees), size
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])


def elastic(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Of warp: the affine map that moves three corners of the middle square, which reaches a third of the shorter side
    from the centre, by up to 50 of 224 of that side along either axis."""
    height, width = size
    unit = 2 * min(size) / torch.tensor([width, height])  # the shorter side, from -1 to 1
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) / 3
    moved = corners + MOST_AFFINE * (2 * torch.rand(3, 2, generator=generator) - 1)
    fetch = torch.linalg.solve(torch.cat([moved * unit, torch.ones(3, 1)], dim=1), corners * unit)
    return fetch.T  # from the moved corners back


def blur(picture: Tensor, kernel: int) -> Tensor:
    """The mean over a square of `kernel` (odd) pixels."""
    border = kernel // 2
    return F.avg_pool2d(F.pad(picture, (border,) * 4, mode="reflect"), kernel, 1)


def blur_kernel(picture: Tensor, generator: torch.Generator) -> int:
    """An odd kernel, 3 to 7 at 224 pixels and in proportion elsewhere, never under 3."""
    low, high = (max(3, round(side * min(picture.shape[-2:]) / 224)) for side in BLUR_KERNELS)
    return 2 * integer(generator, low // 2, high // 2) + 1


def chosen(name: str, names: Sequence[str], generator: torch.Generator) -> bool:
    """Whether an augmentation is asked for and its chance comes up."""
    return name in names and uniform(generator) < CHANCE[name]


def augment_source(
    source: Tensor, region: Tensor, names: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The source [1, 3, H, W] and the region of its subject [1, 1, H, W], moved together (Sec. 4.3: I_s): each of
    `names` whose chance comes up."""
    size = source.shape[-2:]

    def moved(matrix: Tensor) -> tuple[Tensor, Tensor]:
        return warp(source, matrix), (warp(region, matrix, "zeros") > 0.5).float()

    if chosen("flip", names, generator):
        source, region = source.flip(-1), region.flip(-1)
    if chosen("rotation", names, generator):
        source, region = moved(rotation(uniform(generator, -MOST_DEGREES, MOST_DEGREES), size))
    if chosen("blur", names, generator):
        source = blur(source, blur_kernel(source, generator))
    if chosen("elastic", names, generator):
        source, region = moved(elastic(size, generator))
    return source.clamp(0, 1), region


def augment_reference(reference: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """The reference crop [1, 3, h, w], likewise."""
    return augment_source(reference, torch.ones_like(reference[:, :1]), names, generator)[0]
