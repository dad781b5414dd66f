"""Plain sampling from the inverted noise, no attention control: the reconstruction, with the source prompt alone."""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule
from spdinv.inversions.result import Inversion
from spdinv.sampling import start


def check(pipe, prompts, steps, latent_size) -> None:
    """Every model will do."""


@torch.no_grad()
def edit(
    pipe: DiffusionPipeline, schedule: Schedule, inversion: Inversion, prompts: list[str], guidance_scale: float = 7.5
) -> torch.Tensor:
    """Latents [len(prompts), 4, h, w] drawn from the inverted noise with each prompt."""
    drawing, z = start(pipe, schedule, inversion, prompts, guidance_scale)
    for step in tqdm(range(len(schedule.timesteps)), "sampling", leave=False, disable=None):
        z = drawing.step(z, step)
    return z
