"""A customised model as it is used without an inversion: a prompt drawn from random noise. Table 2's row ELITE."""

import torch
from diffusers import DiffusionPipeline, LMSDiscreteScheduler

from common.pipelines import native_resolution


def draw(
    pipe: DiffusionPipeline,
    prompt: str,
    num_inference_steps: int = 100,
    guidance_scale: float = 5.0,
    resolution: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """A picture [1,3,H,W] in [0,1], by diffusers' own pipeline, with the sampler and the settings of ELITE's script."""
    scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    own = type(pipe)(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    own.set_progress_bar_config(leave=False, disable=None)
    side = (resolution or native_resolution(pipe)) // pipe.vae_scale_factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(pipe.device, pipe.dtype)
    drawn = own(prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, latents=noise,
                output_type="pt").images  # fmt: skip
    return drawn.float()
