"""Sampling: PLMS or DDIM under classifier-free guidance (facts of Paint-by-Example: PLMS, 50 steps, guidance 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor
from tqdm import tqdm

from common.pipelines import decode_latents
from common.runs import InputError
from image_inpaint.conditioning import keep_on_latents, masked_picture, nine_channels, unconditional


@dataclass(frozen=True)
class Sampling:
    """scheduler: plms (published) or ddim. mask_resize: bilinear (published) or nearest (diffusers)."""

    scheduler: str = "plms"
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    mask_resize: str = "bilinear"


def make_scheduler(name: str, config) -> DDIMScheduler | PNDMScheduler:
    """A fresh scheduler over the model's noise levels, whose steps go by way of f_theta (Eq. 5): DDIM as printed; PLMS
    starts with an improved Euler step, as published."""
    if name == "plms":
        return PNDMScheduler.from_config(config, skip_prk_steps=True, timestep_spacing="leading")
    return DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing="leading")


def encode_masked(pipe, source: Tensor, fill: Tensor, generators: Sequence) -> Tensor:
    """Scaled latents [B, 4, h, w] of the pictures without their holes, a sample of the posterior."""
    pictures = (2 * masked_picture(source, fill) - 1).to(pipe.device, pipe.vae.dtype)
    found = pipe.vae.encode(pictures).latent_dist
    latents = found.mean + found.std * torch.cat([draw_noise(found.mean[:1], g) for g in generators])
    return (latents * pipe.vae.config.scaling_factor).to(pipe.unet.dtype)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device starts from the same noise."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


@torch.no_grad()
def sample(
    pipe, source: Tensor, fill: Tensor, context: Tensor, generators: Sequence[torch.Generator],
    sampling: Sampling | None = None, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Pictures [B, 3, H, W] in [0, 1] with the reference's subject in the hole; nothing is pasted back.

    source [B, 3, H, W] in [0, 1], H and W multiples of the VAE's factor; fill [B, 1, H, W], 1 = hole, rounded to 0 and
    1; context [B, 1, D']; one CPU generator per picture, from which first the starting noise is drawn and then the
    posterior.
    Raises InputError for wrong sizes and for a result that is not finite.
    """
    sampling = sampling or Sampling()
    batch, _, height, width = source.shape
    factor = pipe.vae_scale_factor
    if height % factor or width % factor or fill.shape != (batch, 1, height, width):
        raise InputError(f"pictures and masks of equal size, a multiple of {factor}, are needed; got "
                         f"{tuple(source.shape)} and {tuple(fill.shape)}")  # fmt: skip
    fill = (fill >= 0.5).float()
    unet, scheduler = pipe.unet, make_scheduler(sampling.scheduler, pipe.scheduler.config)
    scheduler.set_timesteps(sampling.num_inference_steps, device=pipe.device)
    grid = (height // factor, width // factor)
    like = torch.empty(1, 4, *grid, device=pipe.device, dtype=unet.dtype)
    z = torch.cat([draw_noise(like, generator) for generator in generators]) * scheduler.init_noise_sigma
    masked = encode_masked(pipe, source, fill, generators)
    keep = keep_on_latents(fill, grid, sampling.mask_resize).to(masked)
    context, guidance = context.to(masked), sampling.guidance_scale
    if guidance > 1:  # both halves of guidance in one batch
        context = torch.cat([unconditional(pipe.image_encoder, batch).to(masked), context])
        masked, keep = masked.repeat(2, 1, 1, 1), keep.repeat(2, 1, 1, 1)
    for t in tqdm(scheduler.timesteps, "sampling", disable=None if progress else True, leave=False):
        twice = z.repeat(2, 1, 1, 1) if guidance > 1 else z
        channels = nine_channels(scheduler.scale_model_input(twice, t), masked, keep)
        noise = unet(channels, t, encoder_hidden_states=context, return_dict=False)[0]
        if guidance > 1:
            noise_uncond, noise_cond = noise.chunk(2)
            noise = noise_uncond + guidance * (noise_cond - noise_uncond)  # classifier-free guidance
        z = scheduler.step(noise, t, z, return_dict=False)[0]
    if not z.isfinite().all():
        raise InputError("the model gave latents that are not finite: lower --guidance_scale, or use float32")
    return decode_latents(pipe, z)
