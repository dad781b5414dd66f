"""Augmentation of the source (the paper's Sec. 4.3) and of the reference (as Paint-by-Example has it).

The paper names flip, rotation and blur, applied to the source I_s, and gives no parameters. Paint-by-Example augments
the reference crop: flip, rotation by up to 20 degrees, blur and elastic deformation, with albumentations' defaults.
Pictures are float32 [1, C, H, W] in [0, 1]; every function draws from the generator it is given.
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
ELASTIC_DEVIATION, ELASTIC_SHIFT = 50 / 224, 2 / 224  # smoothness, and the root mean square of the shift


def flip(picture: Tensor) -> Tensor:
    return picture.flip(-1)


def rotate(picture: Tensor, degrees: float, padding_mode: str = "reflection") -> Tensor:
    """Turned about its middle, counterclockwise as seen; what comes in from outside is reflected (or "zeros")."""
    angle, (height, width) = math.radians(degrees), picture.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    # grid_sample looks up sources in coordinates from -1 to 1 along both sides, whatever their lengths
    matrix = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])[None]
    grid = F.affine_grid(matrix.to(picture), list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, padding_mode=padding_mode, align_corners=False)


def blur(picture: Tensor, kernel: int) -> Tensor:
    """The mean over a square of `kernel` (odd) pixels."""
    border = kernel // 2
    return F.avg_pool2d(F.pad(picture, (border,) * 4, mode="reflect"), kernel, 1)


def elastic(picture: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth random shift of every pixel."""
    height, width = picture.shape[-2:]
    coarse = max(2, round(1 / ELASTIC_DEVIATION))
    shift = torch.randn(1, 2, coarse, coarse, generator=generator)
    shift = F.interpolate(shift, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)
    grid = (identity + 2 * ELASTIC_SHIFT * shift).to(picture)
    return F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)


def blur_kernel(picture: Tensor, generator: torch.Generator) -> int:
    """An odd kernel, 3 to 7 at 224 pixels and in proportion elsewhere, never under 3."""
    low, high = (max(3, round(side * min(picture.shape[-2:]) / 224)) for side in BLUR_KERNELS)
    return 2 * integer(generator, low // 2, high // 2) + 1


def chosen(name: str, names: Sequence[str], generator: torch.Generator) -> bool:
    """Whether an augmentation is asked for and its chance comes up."""
    return name in names and uniform(generator) < CHANCE[name]


def augment_reference(reference: Tensor, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """The reference crop [1, 3, h, w] after each of `names` whose chance comes up."""
    if chosen("flip", names, generator):
        reference = flip(reference)
    if chosen("rotation", names, generator):
        reference = rotate(reference, uniform(generator, -MOST_DEGREES, MOST_DEGREES))
    if chosen("blur", names, generator):
        reference = blur(reference, blur_kernel(reference, generator))
    if chosen("elastic", names, generator):
        reference = elastic(reference, generator)
    return reference.clamp(0, 1)


def augment_source(
    source: Tensor, region: Tensor, names: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The source [1, 3, H, W] and the region of its subject [1, 1, H, W], moved together (Sec. 4.3: I_s)."""
    if chosen("flip", names, generator):
        source, region = flip(source), flip(region)
    if chosen("rotation", names, generator):
        degrees = uniform(generator, -MOST_DEGREES, MOST_DEGREES)
        source, region = rotate(source, degrees), (rotate(region, degrees, "zeros") > 0.5).float()
    if chosen("blur", names, generator):
        source = blur(source, blur_kernel(source, generator))
    if chosen("elastic", names, generator):
        source = elastic(source, generator)  # the shifts are under a hundredth of the picture: the region stays
    return source.clamp(0, 1), region
