"""From the inverted noise back to pictures: the step that every engine takes, and plain sampling."""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions.result import Inversion
from spdinv.inversions.steps import guided_step


def start_latents(inversion: Inversion, prompts: list[str]) -> torch.Tensor:
    """z_T of the one inverted picture, once per prompt: [len(prompts), 4, h, w]."""
    if len(inversion.noise) != 1:
        raise ValueError(f"engines edit one picture at a time, but {len(inversion.noise)} were inverted together")
    return inversion.noise.expand(len(prompts), -1, -1, -1)


def encode(pipe: DiffusionPipeline, prompts: list[str]) -> tuple[Conditioning, Conditioning]:
    """Unconditional ("") and conditional embeddings, one of each per prompt."""
    return encode_prompt(pipe, [""] * len(prompts)), encode_prompt(pipe, prompts)


def take_step(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    inversion: Inversion,
    z: torch.Tensor,
    step: int,
    uncond: Conditioning,
    cond: Conditioning,
    guidance_scale: float | torch.Tensor,
) -> torch.Tensor:
    """Sampling step 0 ... T-1 as the inversion takes it: its own step, or else plain guidance; z [P,4,h,w], source
    first. guidance_scale: one for all branches, or [P,1,1,1]."""
    return (inversion.step or guided_step)(pipe, schedule, inversion, z, step, uncond, cond, guidance_scale)


@torch.no_grad()
def sample(
    pipe: DiffusionPipeline, schedule: Schedule, inversion: Inversion, prompts: list[str], guidance_scale: float = 7.5
) -> torch.Tensor:
    """Latents [len(prompts), 4, h, w] drawn from the inverted noise with each prompt, no attention control.

    With the source prompt alone this is the reconstruction.
    """
    z = start_latents(inversion, prompts)
    uncond, cond = encode(pipe, prompts)
    for step in tqdm(range(len(schedule.timesteps)), "sampling", leave=False, disable=None):
        z = take_step(pipe, schedule, inversion, z, step, uncond, cond, guidance_scale)
    return z
