"""From pictures, holes and references to finished pictures: window, sampling, paste."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from common.images import to_tensor
from common.pipelines import native_resolution
from image_inpaint.composite import CONTEXT, cut_out, find_window, paste_back
from image_inpaint.conditioning import embed_references
from image_inpaint.sampling import Sampling, sample


def multiple_of(pipe) -> int:
    """Sides that suit both VAE and UNet: the VAE's factor times the UNet's own halvings."""
    return pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)


@torch.no_grad()
def embed(pipe, references: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size -> context [B, 1, D']."""
    side = pipe.image_encoder.config.image_size
    squares = [to_tensor(picture.resize((side, side), Image.Resampling.BICUBIC)) for picture in references]
    return embed_references(pipe, torch.cat(squares))


def paint(
    pipe, pictures: Sequence[Image.Image], fills: Sequence[Tensor], references: Sequence[Image.Image],
    seeds: Sequence[int], sampling: Sampling | None = None, composite: bool = False, feather: int | None = None,
    context: float = CONTEXT, batch_size: int = 8, progress: bool = False,
) -> list[Image.Image]:  # fmt: skip
    """Each reference's subject in the hole of its picture. fills: [H, W] of the picture's size, 1 = hole.

    Pictures whose windows have the same size are painted together, `batch_size` at a time; what a picture becomes
    depends on its own seed, not on its neighbours (but for rounding).
    """
    native = native_resolution(pipe)
    windows = [find_window(fill, native, multiple_of(pipe), context) for fill in fills]
    results: list[Image.Image | None] = [None] * len(pictures)
    for size in dict.fromkeys(window.size for window in windows):
        rows = [row for row, window in enumerate(windows) if window.size == size]
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            parts = [cut_out(pictures[row], fills[row], windows[row]) for row in chosen]
            source, fill = (torch.cat(part) for part in zip(*parts, strict=True))
            generators = [torch.Generator().manual_seed(seeds[row]) for row in chosen]
            tokens = embed(pipe, [references[row] for row in chosen])
            painted = sample(pipe, source, fill, tokens, generators, sampling, progress)
            for row, piece in zip(chosen, painted, strict=True):
                results[row] = paste_back(pictures[row], piece[None], fills[row], windows[row], composite, feather)
    return results
