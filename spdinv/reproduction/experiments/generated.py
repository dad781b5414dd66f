"""Pictures of which the ideal noise is known, because they were drawn from it (paper, Sec. 3.1 and supplement A)."""

import zlib
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_step
from common.pipelines import decode_latents, encode_image, encode_prompt
from spdinv.inversions import Inversion
from spdinv.inversions.steps import guided_noise


def ideal_noise(pipe: DiffusionPipeline, names: list[str], seed: int, resolution: int) -> torch.Tensor:
    """Standard normal z_T [B,4,h,w], one per name; always the same for the same name and seed, on any device."""
    side = resolution // pipe.vae_scale_factor
    drawn = [
        torch.randn(4, side, side, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))
        for name in names
    ]
    return torch.stack(drawn).to(pipe.device)


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline, schedule: Schedule, noise: torch.Tensor, prompts: list[str], guidance_scale: float
) -> torch.Tensor:
    """DDIM sampling from `noise` [B,4,h,w] with one prompt each, every latent kept: [T+1,B,4,h,w].

    The order is that of an inversion's trajectory: z_0 first, the noise last, index j at level j.
    """
    cond, uncond = encode_prompt(pipe, prompts), encode_prompt(pipe, [""] * len(prompts))
    latents = [noise]
    for t in tqdm(schedule.timesteps, "drawing", leave=False, disable=None):
        eps = guided_noise(pipe, schedule, latents[-1], t, uncond, cond, guidance_scale)
        latents.append(ddim_step(schedule, latents[-1], eps, t))
    return torch.stack(latents[::-1])


@torch.no_grad()
def through_a_file(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Clean latents [B,4,h,w] decoded, cut to 8 bits as a saved picture is, and encoded again."""
    pictures = (decode_latents(pipe, latents) * 255).floor() / 255
    return encode_image(pipe, pictures).float()


def pick(inversion: Inversion, item: int) -> Inversion:
    """One picture's inversion out of those of a batch; its cost is the batch's, shared equally."""
    share = {name: value / inversion.trajectory.shape[1] for name, value in inversion.cost.items()}
    per_step = {name: getattr(inversion, name) for name in ("trajectory", "rounds", "uncond_embeds", "corrections")}
    own = {name: value[:, item : item + 1] for name, value in per_step.items() if value is not None}
    if inversion.uncond_pooled is not None:
        own["uncond_pooled"] = inversion.uncond_pooled[item : item + 1]
    return replace(inversion, **own, cost=share)


def known(trajectory: torch.Tensor) -> Inversion:
    """The ideal inversion of pictures drawn along `trajectory` [T+1,B,4,h,w]: nothing had to be found."""
    steps, images = len(trajectory) - 1, trajectory.shape[1]
    cost = {"forward": 0, "backward": 0, "seconds": 0.0}
    return Inversion(trajectory, torch.zeros(steps, images, dtype=torch.int64), cost)


def batches(items: list, size: int) -> list[list]:
    """Always the same items side by side: a network's rounding depends on its batch."""
    return [items[start : start + size] for start in range(0, len(items), size)]
