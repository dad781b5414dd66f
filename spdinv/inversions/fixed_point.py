"""Fixed-point inversion (FPI, the repository that became "Newton-Raphson inversion"): put f(x) in the place of x, again
and again. With enough rounds the way back is exact, if it is walked with the same guidance; a reference for exactness.
"""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions import forward
from spdinv.inversions.result import Inversion, clock
from spdinv.inversions.steps import guided_noise


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    latents: torch.Tensor,
    cond: Conditioning,
    rounds: int = 19,
    guidance_scale: float = 2.0,
    threshold: float = 0.0,
) -> Inversion:
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond` by x <- C1 z_{t-1} + C2 eps(x, t).

    rounds: iterations after the guess f(z_{t-1}); 0 is DDIM inversion. The released demo iterates 20 times from
    z_{t-1}, the first of which makes the guess. guidance_scale: of classifier-free guidance inside eps (demo: 2); at 1
    the network is not asked about "". threshold: see forward.iterate; the released code has no such test.
    The demo's preparation of the picture (image-to-image at strength 0.05) is no part of the inversion and left out.
    """
    start, images = clock(latents), len(latents)
    null = encode_prompt(pipe, [""])[[0] * images]
    trajectory, spent = [latents], []
    for t in tqdm(schedule.timesteps[::-1], "fixed-point inversion", leave=False, disable=None):
        z = trajectory[-1]

        def f(x, some, z=z, t=t):
            eps = guided_noise(pipe, schedule, x, t, null[some], cond[some], guidance_scale)
            return ddim_inverse_step(schedule, z[some], eps, t)

        x, rounds_spent = forward.iterate(f, f(z, list(range(images))), rounds, threshold)
        trajectory.append(x)
        spent.append(rounds_spent)
    evaluations = (len(spent) * images + sum(map(sum, spent))) * (1 if guidance_scale == 1 else 2)
    cost = {"forward": evaluations, "backward": 0, "seconds": clock(latents) - start}
    return Inversion(torch.stack(trajectory), torch.tensor(spent), cost)
