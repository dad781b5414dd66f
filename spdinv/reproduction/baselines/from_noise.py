"""A customised model as it is used without an inversion: a prompt drawn from random noise. Table 2's row ELITE."""

import torch
from diffusers import DiffusionPipeline, LMSDiscreteScheduler
from tqdm import tqdm

from common.ddim import guide
from common.pipelines import decode_latents, encode_prompt, native_resolution


@torch.no_grad()
def draw(
    pipe: DiffusionPipeline,
    prompt: str,
    num_inference_steps: int = 100,
    guidance_scale: float = 5.0,
    resolution: int | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """A picture [1,3,H,W] in [0,1], by the sampler and with the settings of ELITE's own script."""
    scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    scheduler.set_timesteps(num_inference_steps)
    text = torch.cat([encode_prompt(pipe, [""]).embeds, encode_prompt(pipe, [prompt]).embeds])
    side = (resolution or native_resolution(pipe)) // pipe.vae_scale_factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    z = noise.to(pipe.device) * scheduler.init_noise_sigma
    for t in tqdm(scheduler.timesteps, "from noise", leave=False, disable=None):
        z_in = scheduler.scale_model_input(torch.cat([z, z]), t).to(pipe.unet.dtype)
        eps_uncond, eps_cond = pipe.unet(z_in, t, text).sample.float().chunk(2)
        z = scheduler.step(guide(eps_uncond, eps_cond, guidance_scale), t, z).prev_sample
    return decode_latents(pipe, z)
