"""Direct Inversion (arXiv 2310.01506): DDIM inversion, and what the guided way back misses, written down.

Added to the source branch after each step, it holds that branch on the inversion's trajectory exactly, and leaves the
target branch alone: sampling.correct puts the trajectory itself there, which is the same without the rounding.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_step
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions import ddim
from spdinv.inversions.result import Inversion
from spdinv.sampling import guided_noise


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning, guidance_scale: float = 7.5
) -> Inversion:
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, and find the corrections of the source branch.
    guidance_scale: of the source branch while editing, against the null text. As released, but for the corrections of
    the target branch, which the released code computes and does not use."""
    inversion = ddim.invert(pipe, schedule, latents, cond)
    null = encode_prompt(pipe, [""])[[0] * len(latents)]
    corrections = []
    for step, t in enumerate(tqdm(schedule.timesteps, "Direct Inversion", leave=False, disable=None)):
        z, aim = inversion.trajectory[-1 - step], inversion.trajectory[-2 - step]
        eps = guided_noise(pipe, schedule, z, t, null, cond, guidance_scale)
        corrections.append(aim - ddim_step(schedule, z, eps, t))
    return replace(inversion, corrections=torch.stack(corrections))
