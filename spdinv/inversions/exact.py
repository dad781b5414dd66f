"""Exact inversion: Eq. 3 solved until rounding, by Anderson acceleration. A control: no inversion solves it better."""

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule
from common.pipelines import Conditioning
from spdinv.inversions import solvers
from spdinv.inversions.result import Inversion


def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    rounds: int = 50, threshold: float = 1e-10, guidance_scale: float = 1.0,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`. rounds: evaluations per timestep, at most.
    threshold: mean square of the residual to stop at. guidance_scale: of classifier-free guidance inside eps; the way
    back is exact for the same one, where the search converges."""
    solve = solvers.ANDERSON
    return solvers.search(pipe, schedule, latents, cond, solve, rounds, threshold, guidance_scale, thrifty=True)
