"""Sampling: PLMS or DDIM under classifier-free guidance (facts of Paint-by-Example: PLMS, 50 steps, guidance 5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, PNDMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from tqdm import tqdm

from common.pipelines import decode_latents, encode_image
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
    """A fresh scheduler over the model's noise levels: DDIM, which is Eq. 5 as printed, or PLMS, which puts a mean of
    several eps in its place and starts with an improved Euler step, as published."""
    if name == "plms":
        return PNDMScheduler.from_config(config, skip_prk_steps=True, timestep_spacing="leading")
    return DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing="leading")


@torch.no_grad()
def sample(
    pipe, source: Tensor, fill: Tensor, context: Tensor, generators: Sequence[torch.Generator],
    sampling: Sampling | None = None, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Pictures [B, 3, H, W] in [0, 1] with the reference's subject in the hole; nothing is pasted back.

    source [B, 3, H, W] in [0, 1], H and W multiples of the VAE's factor; fill [B, 1, H, W], 1 = hole, rounded to 0 and
    1; context [B, 1, D']; one CPU generator per picture (every device starts from the same noise), of which first the
    starting noise is drawn and then the posterior of the picture without its hole.
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
    z = randn_tensor((batch, 4, *grid), list(generators), pipe.device, unet.dtype) * scheduler.init_noise_sigma
    masked = encode_image(pipe, masked_picture(source, fill), True, list(generators))
    keep = keep_on_latents(fill, grid, sampling.mask_resize).to(masked)
    context, guidance = context.to(masked), sampling.guidance_scale
    if guided := guidance != 1:  # both halves of guidance in one batch
        context = torch.cat([unconditional(pipe.image_encoder, batch).to(masked), context])
        masked, keep = masked.repeat(2, 1, 1, 1), keep.repeat(2, 1, 1, 1)
    for t in tqdm(scheduler.timesteps, "sampling", disable=None if progress else True, leave=False):
        twice = z.repeat(2, 1, 1, 1) if guided else z
        channels = nine_channels(scheduler.scale_model_input(twice, t), masked, keep)
        noise = unet(channels, t, encoder_hidden_states=context, return_dict=False)[0]
        if guided:
            noise_uncond, noise_cond = noise.chunk(2)
            noise = noise_uncond + guidance * (noise_cond - noise_uncond)  # classifier-free guidance
        z = scheduler.step(noise, t, z, return_dict=False)[0]  # Eq. 5 under ddim
    if not z.isfinite().all():
        raise InputError("the model gave latents that are not finite: lower --guidance_scale, or use float32")
    return decode_latents(pipe, z)
