"""DDIM inversion: the sampling equation read backwards, with the network shown the wrong latent (paper, Eq. 2)."""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step
from common.pipelines import Conditioning, predict_noise
from spdinv.inversions.result import Inversion


@torch.no_grad()
def invert(pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning) -> Inversion:
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, without classifier-free guidance.

    Paper, Eq. 2, as all released code reads it: eps(z_{t-1}, t, c), the network sees the latent of level t-1 but the
    timestep t that it goes to (the paper prints t-1; see common.ddim.inversion_timestep).
    """
    trajectory = [latents]
    for t in tqdm(schedule.timesteps[::-1], "DDIM inversion", leave=False, disable=None):
        z = trajectory[-1]
        trajectory.append(ddim_inverse_step(schedule, z, predict_noise(pipe, schedule, z, t, cond), t))  # Eq. 2
    return Inversion(torch.stack(trajectory))
