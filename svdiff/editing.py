"""Drawing pictures with a (tuned) model, and single-image editing (paper, Sec. 3.4, Fig. 4).

A model fine-tuned on one picture and its caption draws it under a changed prompt; for edits that keep the structure
from the noise that DDIM inversion gives (Eq. 6), otherwise with fresh noise, eta > 0 or a z_T drawn towards noise
(Eq. 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from common.ddim import Schedule, ddim_inverse_step, ddim_step, guide, inversion_timestep, make_schedule, slerp
from common.images import center_crop_resize, to_tensor
from common.pipelines import Conditioning, decode_latents, encode_image, encode_prompt, native_resolution, predict_noise


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn. eta: of DDIM; the paper's 0 unless it says otherwise (Sec. 4). inversion_timestep: which
    one the network is shown while a picture is inverted, see invert."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    eta: float = 0.0
    negative_prompt: str = ""
    inversion_timestep: str = "public"


def fitted(pipe: DiffusionPipeline, image: Image.Image, resolution: int | None = None) -> torch.Tensor:
    """A picture as the model takes it: its central square, [1,3,H,W] in [0,1]."""
    return to_tensor(center_crop_resize(image, resolution or native_resolution(pipe))).to(pipe.device)


def start_noise(pipe: DiffusionPipeline, seeds: list[int], resolution: int | None = None) -> torch.Tensor:
    """z_T [B,4,h,w], each picture from a CPU generator of its own, the same on every device."""
    side = (resolution or native_resolution(pipe)) // pipe.vae_scale_factor
    shape = (pipe.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(pipe.device)


@torch.no_grad()
def denoise(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, cond: Conditioning, uncond: Conditioning,
    how: Sampling, seeds: list[int], drawn: bool = True,
) -> torch.Tensor:  # fmt: skip
    """From z_T to z_0, [B,4,h,w] each: DDIM under classifier-free guidance. seeds: of what eta > 0 adds; drawn: after
    start_noise of the same seeds, whose generators go on, as in diffusers (otherwise: as with its `latents`)."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator in generators if drawn else ():
        torch.randn(z.shape[1:], generator=generator)  # was z_T, or what z_T was drawn towards
    for t in schedule.timesteps:
        if how.guidance_scale == 1:
            eps = predict_noise(pipe, schedule, z, t, cond)
        else:
            both = predict_noise(pipe, schedule, torch.cat([z, z]), t, Conditioning.cat(uncond, cond))
            eps = guide(*both.chunk(2), how.guidance_scale)
        noise = None
        if how.eta > 0:
            noise = torch.stack([torch.randn(z.shape[1:], generator=generator) for generator in generators]).to(z)
        z = ddim_step(schedule, z, eps, t, how.eta, noise)
    return z


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, cond: Conditioning, shown: str = "public"
) -> torch.Tensor:
    """z_T = DDIMInvert(z*, c; theta') (Eq. 6): guidance scale 1, the tuned weights, c the TARGET prompt. [B,4,h,w].

    shown: the timestep that the network is shown, which the paper does not say; "source", that of the latent it starts
    from, or "target", see common.ddim. "public": as the one public implementation, by the inverse scheduler of
    diffusers 0.14: "source" with all levels one timestep lower, and without the step from the clean latent to t_1.
    """
    if shown == "public":
        for t in schedule.timesteps[:0:-1]:
            eps = predict_noise(pipe, schedule, z, t, cond)
            z = ddim_inverse_step(schedule, z, eps, t - 1 + schedule.stride)
        return z
    for t in schedule.timesteps[::-1]:
        eps = predict_noise(pipe, schedule, z, inversion_timestep(schedule, t, shown), cond)
        z = ddim_inverse_step(schedule, z, eps, t)
    return z


@torch.no_grad()
def draw(
    pipe: DiffusionPipeline, prompt: str, seeds: list[int], how: Sampling, resolution: int | None = None,
    noise: torch.Tensor | None = None, drawn: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Pictures [B,3,H,W] in [0,1], one per seed; from `noise` [B,4,h,w] where it is given. In float32 latents. drawn:
    see denoise."""
    schedule = make_schedule(pipe.scheduler, how.num_inference_steps)
    size = (resolution, resolution) if resolution else None
    cond, uncond = (encode_prompt(pipe, [text] * len(seeds), size) for text in (prompt, how.negative_prompt))
    z = start_noise(pipe, seeds, resolution) if noise is None else noise
    return decode_latents(pipe, denoise(pipe, schedule, z, cond, uncond, how, seeds, drawn))


@torch.no_grad()
def edit(
    pipe: DiffusionPipeline, picture: torch.Tensor, target_prompt: str, how: Sampling, ddim_inversion: bool = True,
    alpha: float = 0.0, seeds: Sequence[int] = (0,),
) -> torch.Tensor:  # fmt: skip
    """Edits [len(seeds),3,H,W] of one picture [1,3,H,W] in [0,1], all by the tuned pipeline.

    ddim_inversion: start from the picture's own noise; otherwise from fresh noise. alpha: how far z_T is drawn towards
    fresh noise (Eq. 7); without how.eta and alpha an inverted edit draws no random number.
    """
    resolution, schedule = picture.shape[-1], make_schedule(pipe.scheduler, how.num_inference_steps)
    noise = start_noise(pipe, list(seeds), resolution)
    if ddim_inversion:
        cond = encode_prompt(pipe, [target_prompt], (resolution, resolution))
        z = invert(pipe, schedule, encode_image(pipe, picture).float(), cond, how.inversion_timestep)
        z = z.expand(len(seeds), -1, -1, -1)
        noise = slerp(alpha, z, noise) if alpha else z  # Eq. 7
    drawn = not ddim_inversion or alpha > 0
    return draw(pipe, target_prompt, list(seeds), how, resolution, noise, drawn)
