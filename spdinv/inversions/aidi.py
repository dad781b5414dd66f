"""Accelerated Iterative Diffusion Inversion (AIDI, arXiv 2309.04907): a few accelerated fixed-point rounds per step."""

from functools import partial

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule
from common.pipelines import Conditioning
from spdinv.inversions import solvers
from spdinv.inversions.result import Inversion

MODES = {"anderson": solvers.anderson, "empirical": solvers.average}  # AIDI_A, AIDI_E


def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    mode: str = "anderson", rounds: int = 5, threshold: float = 0.0,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, without classifier-free guidance.

    mode: "anderson" (AIDI_A: window 3, no regularisation, no damping) or "empirical" (AIDI_E: the mean of the last two
    values of f), both from x = z_{t-1}. rounds: after the first evaluation; 0 is DDIM inversion. threshold: see
    solvers.iterate. There is no official code; window, rounds and order are an unofficial port's. Unlike there, the
    residual of the starting point takes part in the acceleration, and AIDI_E does not evaluate the older point again.
    AIDI's "blended guidance" belongs to editing, its schedule is not known, and it is left out.
    """
    solve = partial(solvers.iterate, MODES[mode])
    return solvers.search(pipe, schedule, latents, cond, solve, rounds, threshold, remember_start=True)
