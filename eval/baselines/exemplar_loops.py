"""Baselines of exemplar editing that run on PIXELS' own model, each a loop of its own.

Each takes what pixels.surgery.edit takes and gives the edited picture [B, 3, H, W] in [0, 1]. Of the surgery count its
posterior and black point.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pixels.backbones import Backbone
from pixels.edit_map import binarize
from pixels.reproduction.baselines import paste, reduced
from pixels.surgery import Surgery, least, noise_levels, stepper


@torch.no_grad()
def sdedit(backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator) -> Tensor:
    """SDEdit (Meng et al., ICLR 2022, Alg. 1 without mask): noise a pasted picture, and denoise all of it.

    The guide is the paste of the binarised map, as SDEdit's image compositing has it; nothing is put back, so that the
    source changes too.
    """
    timesteps, scheduler = backbone.start(), backbone.scheduler
    step = stepper(scheduler, generator)
    guide = paste(backbone, source, exemplars, edit_maps, surgery, generator)
    z = backbone.encode(guide, surgery.posterior == "sample", generator)
    signal, sigma = noise_levels(scheduler, timesteps, z)
    z = signal[0] * z + sigma[0] * randn_tensor(z.shape, generator, z.device, z.dtype)
    for t in timesteps:
        z = step(backbone.predict(z, t), t, z)
    return backbone.decode(z)


@torch.no_grad()
def blended_latent(backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator) -> Tensor:
    """Blended latent diffusion (Avrahami, Fried and Lischinski, SIGGRAPH 2023) under a binary mask; several exemplars
    enter as in a paste.

    The published method starts from text alone. Here its masked region starts from the exemplar, so that it can know
    what is wanted. The blend is that of diffusers' inpainting with a four-channel model: after each step, the source at
    the next level outside of the mask, under one noise, and in the end the source's own latents. (The authors' script
    blends with the source at the level just left, under new noise each time, and leaves the end as it is.)
    """
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


@torch.no_grad()
def differential_diffusion(
    backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator
) -> Tensor:
    """Differential Diffusion (Levin and Fried, arXiv 2306.00950): the source alone under a grey map and a prompt.

    The loop that PIXELS grew from. It has no exemplar: everything starts from the noised source, black included, and
    only the prompt can say what is wanted. With the source as exemplar and one noise for both, PIXELS coincides with
    it. Thresholds i / N run over the N executed steps, as in PIXELS. (The released SDXL pipeline counts the requested
    steps and adds denoising_start: the same at strength 1; below it, its thresholds never reach white.)
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


METHODS = {"sdedit": sdedit, "blended_latent": blended_latent, "differential_diffusion": differential_diffusion}
