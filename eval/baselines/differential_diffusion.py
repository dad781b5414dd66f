"""Differential Diffusion (Levin and Fried, arXiv 2306.00950): the source alone under a grey map and a prompt.

The loop that PIXELS grew from. It has no exemplar: everything starts from the noised source, black included, and only
the prompt can say what is wanted. With the source as exemplar and one noise for both, PIXELS coincides with it.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pixels.backbones import Backbone
from pixels.reproduction.baselines import reduced
from pixels.surgery import Surgery, least, noise_levels, stepper


@torch.no_grad()
def edit(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery, generator
) -> Tensor:
    """The edited picture [B, 3, H, W] in [0, 1]; exemplars are not looked at. surgery: its posterior and black point
    count.

    Thresholds i / N run over the N executed steps, as in PIXELS. (The released SDXL pipeline counts the requested steps
    and adds denoising_start: the same at strength 1; below it, its thresholds never reach white.)
    """
    timesteps, scheduler = backbone.start(), backbone.scheduler
    step = stepper(scheduler, generator)
    for dtype in backbone.discarded_draws:
        randn_tensor(backbone.latent_shape(source), generator, backbone.device, dtype)
    z_source = backbone.encode(source, surgery.posterior == "sample", generator)
    noise = randn_tensor(z_source.shape, generator, z_source.device, z_source.dtype)
    mu = least(reduced([edit_map.to(z_source.device) for edit_map in edit_maps], z_source.shape[-2:], surgery))
    signal, sigma = noise_levels(scheduler, timesteps, z_source)
    z = signal[0] * z_source + sigma[0] * noise
    for i, t in enumerate(timesteps):
        if i > 0:
            z = torch.where(mu > i / len(timesteps), signal[i] * z_source + sigma[i] * noise, z)
        z = step(backbone.predict(z, t), t, z)
    return backbone.decode(z)
