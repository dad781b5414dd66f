"""Fixed-point inversion (FPI, the repository that became "Newton-Raphson inversion"): put f(x) in the place of x, again
and again. With enough rounds the way back is exact, if it is walked with the same guidance.
"""

from functools import partial

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule
from common.pipelines import Conditioning
from spdinv.inversions import solvers
from spdinv.inversions.result import Inversion


def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    rounds: int = 19, guidance_scale: float = 2.0, threshold: float = 0.0,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond` by x <- C1 z_{t-1} + C2 eps(x, t).

    rounds: after the guess f(z_{t-1}), which is the first of the released demo's 20; 0 is DDIM inversion.
    guidance_scale: of classifier-free guidance inside eps. threshold: see solvers.iterate; not in the released code.
    The demo's preparation of the picture (image-to-image at strength 0.05) is no part of the inversion and left out.
    """
    solve = partial(solvers.iterate, solvers.plain)
    return solvers.search(pipe, schedule, latents, cond, solve, rounds, threshold, guidance_scale)
