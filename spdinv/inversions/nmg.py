"""Noise map guidance (NMG, arXiv 2402.04625): before each guided step the source latent takes a step of its own,
steered by a gradient towards the inversion's trajectory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from common.ddim import Schedule, ddim_step
from common.pipelines import Conditioning, predict_noise
from spdinv.inversions import ddim
from spdinv.inversions.residual import gradients
from spdinv.inversions.result import Inversion
from spdinv.sampling import Drawing, guided_step, unconditional

SD_LATENT = 4 * 64 * 64  # elements of the latents that the gradient scale is made for


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning, **settings
) -> Inversion:
    """DDIM inversion of clean `latents` [B,4,h,w] under `cond`; settings: the keyword arguments of `step`."""
    return replace(ddim.invert(pipe, schedule, latents, cond), step=partial(step, **settings))


@contextmanager
def uncontrolled(unet: UNet2DConditionModel) -> Iterator[None]:
    """Attention as the UNet has it by itself: an engine's control is for the guided step only."""
    hooked = unet.attn_processors
    unet.set_attn_processor({path: getattr(hook, "original", hook) for path, hook in hooked.items()})
    try:
        yield
    finally:
        unet.set_attn_processor(dict(hooked))


def guided_by_noise_map(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, aim: torch.Tensor, t: int, null: Conditioning,
    gradient_scale: float, noise_map_scale: float,
) -> torch.Tensor:  # fmt: skip
    """z [1,4,h,w] at level t after the step that is steered towards `aim` [1,4,h,w]:

        g = d mean|ddim_step(z, e_0) - aim| / dz,   e_0 = eps(z, t, "")
        e_nm = e_0 + sqrt(1 - alpha_bar_t) gradient_scale g,   e = e_0 + noise_map_scale (e_nm - e_0)

    g is the gradient of a mean, so it shrinks as latents grow; the scale is kept that of 64x64 latents.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        eps = predict_noise(pipe, schedule, z, t, null)
        distance = (ddim_step(schedule, z, eps, t) - aim).abs().mean()
        (gradient,) = gradients(distance, [z], pipe.unet.dtype)
    eps, z = eps.detach(), z.detach()
    scale = gradient_scale * z.numel() / SD_LATENT
    noise_map = eps + (1 - schedule.alpha_bar_at(t)) ** 0.5 * scale * gradient
    return ddim_step(schedule, z, eps + noise_map_scale * (noise_map - eps), t)


def step(
    drawing: Drawing, z: torch.Tensor, step: int, *, gradient_scale: float = 5000.0, noise_map_scale: float = 10.0,
    reference: str = "current",
) -> torch.Tensor:  # fmt: skip
    """A step by noise map guidance for the source branch, then a guided step for all, both at the same timestep (so the
    source advances twice, as released: the paper takes z_t^NM for z_{t-1}^NM). z [P,4,h,w], source first.

    reference: the level of the trajectory that the steered latent is compared with. "current", as both released
    variants have it, is that of the latent before the step; "previous" is the one that the step leads to, as the paper
    writes it.
    """
    pipe, schedule = drawing.pipe, drawing.schedule
    aim, t = drawing.level_after(step - 1 if reference == "current" else step), schedule.timesteps[step]
    null = unconditional(drawing, step)[0]
    with uncontrolled(pipe.unet):
        source = guided_by_noise_map(pipe, schedule, z[:1], aim, t, null, gradient_scale, noise_map_scale)
    return guided_step(drawing, torch.cat([source, z[1:]]), step)
