"""From pictures of any size, holes and references to finished pictures: a window around the hole is painted at the
model's size and pasted back.

Paint-by-Example paints 512x512 pictures whole and gives back the VAE's version of the background too. The paper wants
the region outside of the hole unchanged (Sec. 4), so that here every pixel there is the source's own, bit for bit, and
the rim of the hole fades into it from inside; `composite=False` gives the window as it was painted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.images import to_pil, to_tensor
from common.pipelines import native_resolution
from image_inpaint.conditioning import embed_references
from image_inpaint.masks import Box, Size, box_of
from image_inpaint.options import CONTEXT, FEATHER
from image_inpaint.sampling import Sampling, sample


def paint(
    pipe, pictures: Sequence[Image.Image], fills: Sequence[Tensor], references: Sequence[Image.Image],
    seeds: Sequence[int], sampling: Sampling | None = None, progress: bool = False, **how,
) -> list[Image.Image]:  # fmt: skip
    """Each reference's subject in the hole of its picture. fills: [H, W] of the picture's size, 1 = hole. how: of
    paint_windows. What a picture becomes depends on its own seed, not on its neighbours (but for rounding)."""
    square = (pipe.image_encoder.config.image_size,) * 2

    def draw(rows: list[int], source: Tensor, fill: Tensor) -> Tensor:
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        shown = [to_tensor(references[row].resize(square, Image.Resampling.BICUBIC)) for row in rows]
        context = embed_references(pipe, torch.cat(shown))
        return sample(pipe, source, fill, context, generators, sampling, progress)

    return paint_windows(pipe, pictures, fills, draw, **how)


@torch.no_grad()
def paint_windows(
    pipe, pictures: Sequence[Image.Image], fills: Sequence[Tensor], draw: Callable[[list[int], Tensor, Tensor], Tensor],
    composite: bool = True, feather: int | None = None, context: float = CONTEXT, batch_size: int = 8,
) -> list[Image.Image]:  # fmt: skip
    """Cut out each picture's window, have it painted, paste it back (composite, feather: of paste_back).

    draw(rows, source [B, 3, h, w] in [0, 1], fill [B, 1, h, w]) -> [B, 3, h, w], for windows of equal size, at most
    batch_size at a time.
    """
    native, halvings = native_resolution(pipe), len(pipe.unet.config.block_out_channels) - 1
    multiple = pipe.vae_scale_factor * 2**halvings  # sides that suit both VAE and UNet
    windows = [find_window(fill, native, multiple, context) for fill in fills]
    results: list[Image.Image | None] = [None] * len(pictures)
    for size in dict.fromkeys(window.size for window in windows):
        rows = [row for row, window in enumerate(windows) if window.size == size]
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            parts = [cut_out(pictures[row], fills[row], windows[row]) for row in chosen]
            source, fill = (torch.cat(part) for part in zip(*parts, strict=True))
            for row, piece in zip(chosen, draw(chosen, source, fill), strict=True):
                results[row] = paste_back(pictures[row], piece[None], fills[row], windows[row], composite, feather)
    return results


# ---------------------------------------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class Window:
    """A part of the picture (left, top, right, bottom), painted at `size` (height, width)."""

    box: Box
    size: Size


def find_window(fill: Tensor, native: int, multiple: int, context: float = CONTEXT) -> Window:
    """The window for a fill mask [H, W]: the hole's box with its surroundings, as nearly square as the picture allows,
    never smaller than the model's native side if the picture is not. Its short side is painted at the native side."""
    height, width = fill.shape
    left, top, right, bottom = box_of(fill)
    wanted = max(native, round(context * max(right - left, bottom - top)))
    short = min(height, width)
    spans = []
    for low, high, length in ((left, right, width), (top, bottom, height)):
        side = min(length, wanted if high - low > short else min(wanted, short))  # oblong for so long a hole
        start = min(max(round((low + high - side) / 2), 0), length - side)
        spans.append((start, start + side))
    (x0, x1), (y0, y1) = spans
    scale = native / min(x1 - x0, y1 - y0)
    size = tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (y1 - y0, x1 - x0))
    return Window((x0, y0, x1, y1), size)


def cut_out(picture: Image.Image, fill: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """(source [1, 3, h, w] in [0, 1], fill [1, 1, h, w] of 0 and 1) at the window's size."""
    left, top, right, bottom = window.box
    source = picture.crop(window.box)
    part = fill[top:bottom, left:right][None, None]
    if part.shape[-2:] != window.size:
        source = source.resize(window.size[::-1], Image.Resampling.LANCZOS)
        part = F.interpolate(part, window.size, mode="area")
        part = (part >= min(0.5, float(part.max()))).float()  # a hole smaller than a pixel still is one
    return to_tensor(source), part


def feathered(fill: Tensor, feather: int) -> Tensor:
    """Opacity [H, W] of what was painted: 0 outside of the hole, rising to 1 over `feather` pixels inside of it."""
    opacity, eroded = torch.zeros_like(fill), fill
    for _ in range(max(feather, 1)):
        opacity = opacity + eroded / max(feather, 1)
        eroded = 1 - F.max_pool2d(1 - eroded[None, None], 3, 1, 1)[0, 0]  # a pixel off every rim but the picture's
    return opacity


def paste_back(
    picture: Image.Image, painted: Tensor, fill: Tensor, window: Window, composite: bool, feather: int | None = None
) -> Image.Image:
    """The painted window [1, 3, h, w] back in the picture, at its size: as a whole, as the published code would, or
    (composite) its hole alone, feathered. feather: in pixels; None: FEATHER at 512 of the picture's shorter side and in
    proportion elsewhere."""
    left, top, right, bottom = window.box
    piece = to_pil(painted)
    if piece.size != (right - left, bottom - top):
        piece = piece.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    result = picture.copy()
    if not composite:
        result.paste(piece, (left, top))
        return result
    if feather is None:
        feather = max(1, round(FEATHER * min(picture.size) / 512))
    opacity = feathered(fill, feather)[top:bottom, left:right, None].numpy()
    old = np.asarray(picture.crop(window.box), dtype=np.float32)
    mixed = old + opacity * (np.asarray(piece, dtype=np.float32) - old)  # exactly the old where the opacity is 0
    result.paste(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), (left, top))
    return result
