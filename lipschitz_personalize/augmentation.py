"""Custom Diffusion's augmentation: a picture shrunk onto grey or zoomed into, with words that say so."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")


def augment(picture: Tensor, factor: int, generator: torch.Generator) -> tuple[Tensor, Tensor, str]:
    """A square picture [3,S,S] in [0,1] -> (picture, mask [1,S/factor,S/factor] of latents that count, prefix of the
    prompt).

    In two of three cases the scale is S/3 to S, else 1.2 S to 1.4 S, an even number. Under 0.6 S the picture is pasted
    somewhere on grey, and the loss counts inside of it only, less one latent cell all around; over S a random part is
    cut out; in between nothing is changed. (Facts of the released code; it scales the file's own pixels, here those of
    the training size.)
    """
    size = picture.shape[-1]
    mask = torch.ones(1, size // factor, size // factor)
    down = torch.rand((), generator=generator) < 2 / 3
    low, high = (size // 3, size) if down else (int(1.2 * size), int(1.4 * size))
    scale = _integer(low, high, generator)
    scale += scale % 2
    if 0.6 * size <= scale <= size:
        return picture, mask, ""
    resized = F.interpolate(picture[None], (scale, scale), mode="bilinear", antialias=True, align_corners=False)[0]
    spare = abs(size - scale)
    top, left = _integer(0, spare, generator), _integer(0, spare, generator)
    if scale > size:
        part = resized[:, top : top + size, left : left + size]
        return part, mask, LARGE[_integer(0, 1, generator)]
    canvas = torch.full_like(picture, 0.5)
    canvas[:, top : top + scale, left : left + scale] = resized
    rows, columns = (_inner(start, scale, factor) for start in (top, left))
    mask.zero_()[:, rows, columns] = 1
    return canvas, mask, SMALL[_integer(0, 1, generator)]


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _inner(start: int, length: int, factor: int) -> slice:
    """The latent cells of start … start + length without the outermost ones, unless nothing would be left."""
    first, last = start // factor, (start + length) // factor
    return slice(first + 1, last - 1) if last - first > 2 else slice(first, max(last, first + 1))
