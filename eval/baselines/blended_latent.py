"""Blended latent diffusion (Avrahami, Fried and Lischinski, SIGGRAPH 2023) under a binary mask.

The published method starts from text alone. Here its masked region starts from the exemplar, so that it can know what
is wanted. The blend is that of diffusers' inpainting with a four-channel model: after each step, the source at the next
level outside of the mask, under one noise, and in the end the source's own latents. (The authors' script blends with
the source at the level just left, under new noise each time, and leaves the end as it is.)
"""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pixels.backbones import Backbone
from pixels.edit_map import binarize
from pixels.reproduction.baselines import reduced
from pixels.surgery import Surgery, least, noise_levels, stepper


@torch.no_grad()
def edit(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery, generator
) -> Tensor:
    """The edited picture [B, 3, H, W] in [0, 1]. Maps are binarised; several exemplars enter as in a paste."""
    timesteps, scheduler = backbone.start(), backbone.scheduler
    step = stepper(scheduler, generator)
    z_source = backbone.encode(source, surgery.posterior == "sample", generator)
    noise = randn_tensor(z_source.shape, generator, z_source.device, z_source.dtype)
    mus = [mu.to(z_source.device) for mu in reduced(edit_maps, z_source.shape[-2:], surgery)]
    z = z_source
    for exemplar, mu in zip(exemplars, mus, strict=True):
        z_exemplar = backbone.encode(exemplar, surgery.posterior == "sample", generator)
        z = torch.where(binarize(mu) > 0, z_exemplar, z)
    keep = binarize(least(mus)) == 0
    signal, sigma = noise_levels(scheduler, timesteps, z)
    z = signal[0] * z + sigma[0] * noise
    for i, t in enumerate(timesteps):
        z = step(backbone.predict(z, t), t, z)
        last = i + 1 == len(timesteps)
        background = z_source if last else signal[i + 1] * z_source + sigma[i + 1] * noise
        z = torch.where(keep, background, z)
    return backbone.decode(z)
