"""One sampling step with classifier-free guidance: the way back that an inversion's own steps are variations of."""

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule, ddim_step, guide
from common.pipelines import Conditioning, predict_noise
from spdinv.inversions.result import Inversion


def unconditional(inversion: Inversion, step: int, uncond: Conditioning) -> Conditioning:
    """What the unconditional half is told at sampling step 0 ... T-1: the inversion's finding in place of "", if any.

    An embedding of one picture [1, L, D] serves all its branches; one per branch is taken as it is.
    """
    if inversion.uncond_embeds is not None:
        uncond = uncond.with_embeds(inversion.uncond_embeds[step].to(uncond.embeds).expand_as(uncond.embeds))
    if inversion.uncond_pooled is not None:
        text = uncond.added["text_embeds"]
        pooled = inversion.uncond_pooled.to(text).expand_as(text)
        uncond = Conditioning(uncond.embeds, {**uncond.added, "text_embeds": pooled})
    return uncond


def guided_noise(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    z: torch.Tensor,
    t: int,
    uncond: Conditioning,
    cond: Conditioning,
    guidance_scale: float,
) -> torch.Tensor:
    """eps [B,4,h,w] with classifier-free guidance, for B pictures at timestep t; at scale 1 only `cond` is asked."""
    if guidance_scale == 1:
        return predict_noise(pipe, schedule, z, t, cond)
    both = predict_noise(pipe, schedule, torch.cat([z, z]), t, Conditioning.cat(uncond, cond))
    return guide(*both.chunk(2), guidance_scale)


def predict_both(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    inversion: Inversion,
    z: torch.Tensor,
    step: int,
    uncond: Conditioning,
    cond: Conditioning,
) -> tuple[torch.Tensor, torch.Tensor]:
    """eps_uncond and eps_cond [P,4,h,w] at sampling step 0 ... T-1, from one UNet call on the batch
    [uncond_src, uncond_tgt, cond_src, cond_tgt], as in all Prompt-to-Prompt code."""
    both = Conditioning.cat(unconditional(inversion, step, uncond), cond)
    return predict_noise(pipe, schedule, torch.cat([z, z]), schedule.timesteps[step], both).chunk(2)


def correct(inversion: Inversion, z: torch.Tensor, step: int) -> torch.Tensor:
    """z [P,4,h,w] after sampling step 0 ... T-1, the source branch (the first) with the inversion's correction."""
    if inversion.corrections is None:
        return z
    return torch.cat([z[:1] + inversion.corrections[step], z[1:]])


def guided_step(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    inversion: Inversion,
    z: torch.Tensor,
    step: int,
    uncond: Conditioning,
    cond: Conditioning,
    guidance_scale: float | torch.Tensor,
) -> torch.Tensor:
    """UNet, classifier-free guidance, scheduler, in this order, for sampling step 0 ... T-1; z [P,4,h,w], source first.

    guidance_scale: one for all branches, or [P,1,1,1].
    """
    eps = guide(*predict_both(pipe, schedule, inversion, z, step, uncond, cond), guidance_scale)
    return correct(inversion, ddim_step(schedule, z, eps, schedule.timesteps[step]), step)
