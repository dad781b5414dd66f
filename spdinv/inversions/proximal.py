"""ProxEdit (arXiv 2306.05414): negative-prompt inversion whose guidance is thresholded and held to the picture.

    d = eps_cond - eps_uncond;  d' = prox(d);  eps = eps_uncond + guidance_scale d'

Where d' is small nothing is to be edited: there, in the less noisy steps, the latent is drawn back to the inversion's.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from common.ddim import Schedule, ddim_step
from common.pipelines import Conditioning
from spdinv.inversions import negative_prompt
from spdinv.inversions.result import Inversion
from spdinv.sampling import Drawing, correct, predict_both


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    interpolation: float = 0.0, **settings,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] as negative_prompt does; settings: the keyword arguments of `step`."""
    inversion = negative_prompt.invert(pipe, schedule, latents, cond, interpolation)
    return replace(inversion, step=partial(step, **settings))


def shrink(delta: torch.Tensor, threshold: torch.Tensor, mode: str) -> torch.Tensor:
    """The proximal operator. "soft": everything moves towards 0 by the threshold, which is what the released code does
    under the name l0. "hard": what is not above the threshold becomes 0, the operator of an l0 penalty. "none": as is.
    """
    if mode == "none":
        return delta
    return delta - delta.clamp(-threshold, threshold) if mode == "soft" else delta * (delta.abs() > threshold)


def edited_region(delta: torch.Tensor, threshold: torch.Tensor, dilation: int) -> torch.Tensor:
    """1.0 where |delta| is above the threshold or within `dilation` places of it, per branch and channel; else 0.0. As
    released, delta has been through `shrink`: in "soft" mode its |raw| has to be above twice the threshold."""
    return F.max_pool2d((delta.abs() > threshold).to(delta.dtype), 2 * dilation + 1, 1, dilation)


def step(
    drawing: Drawing, z: torch.Tensor, step: int, *, mode: str = "soft", quantile: float = 0.7, branches: str = "all",
    guidance: str = "inversion", recon_lr: float = 1.0, recon_t: int = 400, dilation: int = 1,
) -> torch.Tensor:  # fmt: skip
    """sampling.guided_step with proximal guidance; the defaults are the recipe in the README of ProxEdit's code.

    mode: see shrink. quantile: of |d|, taken over all branches, the source's included (its d is 0 under NPI, so 0.7 of
    two branches is 0.4 of the target's); a negative one -x is the threshold x itself. branches="target": taken over the
    others and applied to them, as its MasaCtrl does. guidance: "inversion" draws the latent, after the step, to the
    trajectory's at the same level; "reconstruction" draws the predicted x_0 to z_0 before the step; "none".
    recon_lr: how far, 1 is all the way. recon_t: at timesteps below it; a negative one -t: above t. dilation: see
    edited_region.
    """
    schedule, t = drawing.schedule, drawing.schedule.timesteps[step]
    eps_uncond, eps_cond = predict_both(drawing, z, step)
    delta = eps_cond - eps_uncond
    first = 1 if branches == "target" and len(z) > 1 else 0
    threshold = delta[first:].abs().quantile(quantile) if quantile > 0 else delta.new_tensor(-quantile)
    delta = torch.cat([delta[:first], shrink(delta[first:], threshold, mode)])
    eps = eps_uncond + drawing.guidance_scale * delta
    z_next = correct(drawing, ddim_step(schedule, z, eps, t), step)
    active = t < recon_t if recon_t > 0 else t > -recon_t
    if guidance == "none" or not active:
        return z_next
    outside = recon_lr * (1 - edited_region(delta, threshold, dilation))
    if guidance == "inversion":
        return z_next - outside * (z_next - drawing.level_after(step))
    x0 = (z - (1 - schedule.alpha_bar_at(t)) ** 0.5 * eps) / schedule.alpha_bar_at(t) ** 0.5
    signal = schedule.alpha_bar_at(schedule.previous(t)) ** 0.5  # x_0 enters the step with this factor
    return z_next - signal * outside * (x0 - drawing.inversion.trajectory[0])
