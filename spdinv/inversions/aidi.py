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
    pipe: DiffusionPipeline,
    schedule: Schedule,
    latents: torch.Tensor,
    cond: Conditioning,
    mode: str = "anderson",
    rounds: int = 5,
    threshold: float = 0.0,
) -> Inversion:
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, without classifier-free guidance.

    mode: "anderson" (AIDI_A: window 3, no regularisation, no damping) or "empirical" (AIDI_E: the mean of the last two
    values of f). Both start at x = z_{t-1}. rounds: after the first evaluation, so rounds + 1 evaluations in all; 0 is
    DDIM inversion. threshold: see solvers.iterate; 0, no test, as the known port has it.
    There is no official code; window, rounds and order are those of an unofficial port. Unlike it, the residual of the
    starting point takes part in the acceleration, and AIDI_E keeps f of the older point (the port evaluates it again).
    AIDI's "blended guidance" belongs to editing, its schedule is not known, and it is left out.
    """
    solve = partial(solvers.iterate, MODES[mode])
    return solvers.search(pipe, schedule, latents, cond, solve, rounds, threshold, remember_start=True)
