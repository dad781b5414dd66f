"""From the inverted noise back to pictures: the guided step that every engine takes, and plain sampling."""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_step, guide
from common.pipelines import Conditioning, encode_prompt, predict_noise
from spdinv.inversions.result import Inversion


def start_latents(inversion: Inversion, prompts: list[str]) -> torch.Tensor:
    """z_T of the one inverted picture, once per prompt: [len(prompts), 4, h, w]."""
    if len(inversion.noise) != 1:
        raise ValueError(f"engines edit one picture at a time, but {len(inversion.noise)} were inverted together")
    return inversion.noise.expand(len(prompts), -1, -1, -1)


def encode(pipe: DiffusionPipeline, prompts: list[str]) -> tuple[Conditioning, Conditioning]:
    """Unconditional ("") and conditional embeddings, one of each per prompt."""
    return encode_prompt(pipe, [""] * len(prompts)), encode_prompt(pipe, prompts)


def guided_step(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    inversion: Inversion,
    z: torch.Tensor,
    step: int,
    uncond: Conditioning,
    cond: Conditioning,
    guidance_scale: float,
) -> torch.Tensor:
    """UNet, classifier-free guidance, scheduler, in this order, for sampling step 0 ... T-1; z [P,4,h,w], source first.

    The UNet's batch is [uncond_src, uncond_tgt, cond_src, cond_tgt], as in all Prompt-to-Prompt code.
    """
    t = schedule.timesteps[step]
    if inversion.uncond_embeds is not None:
        uncond = uncond.with_embeds(inversion.uncond_embeds[step].expand_as(uncond.embeds))
    both = Conditioning.cat(uncond, cond)
    eps_uncond, eps_cond = predict_noise(pipe, schedule, torch.cat([z, z]), t, both).chunk(2)
    z = ddim_step(schedule, z, guide(eps_uncond, eps_cond, guidance_scale), t)
    if inversion.corrections is not None:
        z = torch.cat([z[:1] + inversion.corrections[step], z[1:]])
    return z


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
        z = guided_step(pipe, schedule, inversion, z, step, uncond, cond, guidance_scale)
    return z
