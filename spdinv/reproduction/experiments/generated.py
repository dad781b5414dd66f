"""Pictures of which the ideal noise is known, because they were drawn from it (paper, Sec. 3.1 and supplement A)."""

import zlib

import torch
from diffusers import DiffusionPipeline

from common.pipelines import decode_latents, encode_image
from spdinv.inversions.result import Inversion


def ideal_noise(pipe: DiffusionPipeline, names: list[str], seed: int, resolution: int) -> torch.Tensor:
    """Standard normal z_T [B,4,h,w], one per name; always the same for the same name and seed, on any device."""
    side = resolution // pipe.vae_scale_factor
    drawn = [
        torch.randn(4, side, side, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))
        for name in names
    ]
    return torch.stack(drawn).to(pipe.device)


@torch.no_grad()
def through_a_file(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Clean latents [B,4,h,w] decoded, cut to 8 bits as a saved picture is, and encoded again."""
    pictures = (decode_latents(pipe, latents) * 255).floor() / 255
    return encode_image(pipe, pictures).float()


def known(trajectory: torch.Tensor) -> Inversion:
    """The ideal inversion of pictures drawn along `trajectory` [T+1,B,4,h,w]: nothing had to be found."""
    return Inversion(trajectory, cost={"forward": 0, "backward": 0, "seconds": 0.0})


def batches(items: list, size: int) -> list[list]:
    """Always the same items side by side: a network's rounding depends on its batch."""
    return [items[start : start + size] for start in range(0, len(items), size)]
