"""Accelerated Iterative Diffusion Inversion (AIDI, arXiv 2309.04907): a few accelerated fixed-point rounds per step."""

from functools import partial

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule
from common.pipelines import Conditioning
from spdinv.inversions import forward
from spdinv.inversions.residual import f_theta
from spdinv.inversions.result import Inversion, clock

MODES = {"anderson": forward.anderson, "empirical": forward.average}  # AIDI_A, AIDI_E


@torch.no_grad()
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
    DDIM inversion. threshold: see forward.iterate; 0, no test, as the known port has it.
    There is no official code; window, rounds and order are those of an unofficial port. Unlike it, the residual of the
    starting point takes part in the acceleration, and AIDI_E keeps f of the older point (the port evaluates it again).
    AIDI's "blended guidance" belongs to editing, its schedule is not known, and it is left out.
    """
    start, images = clock(latents), len(latents)
    trajectory, spent = [latents], []
    for t in tqdm(schedule.timesteps[::-1], "AIDI", leave=False, disable=None):
        z = trajectory[-1]
        f = partial(f_theta, pipe, schedule, z, t, cond)
        guess = f(z, list(range(images)))
        x, rounds_spent = forward.iterate(f, guess, rounds, threshold, MODES[mode], ([z], [guess]))
        trajectory.append(x)
        spent.append(rounds_spent)
    evaluations = len(spent) * images + sum(map(sum, spent))
    cost = {"forward": evaluations, "backward": 0, "seconds": clock(latents) - start}
    return Inversion(torch.stack(trajectory), torch.tensor(spent), cost)
