"""EDICT (arXiv 2211.12446): two coupled latents, each stepped with the noise that the network sees in the other, so
that every step can be undone exactly. A reference for exactness, in float64.
"""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step, ddim_step, guide
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions.result import Inversion
from spdinv.sampling import Drawing, guided_noise, predict_both


def order(step: int) -> tuple[int, int]:
    """Which of the two latents is stepped first at sampling step 0 ... T-1: they take turns ("leapfrog")."""
    return (0, 1) if step % 2 == 0 else (1, 0)


def mix(x: torch.Tensor, y: torch.Tensor, p: float) -> list[torch.Tensor]:
    """Draws the two together, one after the other (EDICT, Eq. 14)."""
    x = p * x + (1 - p) * y
    return [x, p * y + (1 - p) * x]


def unmix(x: torch.Tensor, y: torch.Tensor, p: float) -> list[torch.Tensor]:
    """mix, undone (EDICT, Eq. 15)."""
    y = (y - (1 - p) * x) / p
    return [(x - (1 - p) * y) / p, y]


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    mixing: float = 0.93, guidance_scale: float = 3.0,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, in float64; both latents start there.

    mixing: p. guidance_scale: of classifier-free guidance (EDICT: 3); the way back is exact for the same one only.
    The trajectory is that of the first latent; the second is the companion. EDICT itself walks 0.8 of the way, from a
    posterior sample. As released, the first latent begins the alternation, at the noisiest step.
    """
    null = encode_prompt(pipe, [""])[[0] * len(latents)]
    pair = [latents.double(), latents.double()]
    trajectory = [pair[0]]
    for step, t in tqdm([*enumerate(schedule.timesteps)][::-1], "EDICT", leave=False, disable=None):
        pair = unmix(*pair, mixing)
        for one in reversed(order(step)):
            eps = guided_noise(pipe, schedule, pair[1 - one], t, null, cond, guidance_scale)
            pair[one] = ddim_inverse_step(schedule, pair[one], eps, t)
        trajectory.append(pair[0])
    return Inversion(torch.stack(trajectory), companion=pair[1], step=CoupledStep(mixing))


class CoupledStep:
    """A sampling step for the pair whose first latent is the engine's z; the second, at first the inversion's companion
    [1,4,h,w], is kept here from step to step. What an engine does to z between two steps (LocalBlend) reaches the
    second only through the mixing."""

    def __init__(self, mixing: float):
        self.mixing, self.second = mixing, None

    def __call__(self, drawing: Drawing, z: torch.Tensor, step: int) -> torch.Tensor:
        pair = [z, drawing.inversion.companion.expand_as(z) if step == 0 else self.second]
        for one in order(step):
            eps = guide(*predict_both(drawing, pair[1 - one], step), drawing.guidance_scale)
            pair[one] = ddim_step(drawing.schedule, pair[one], eps, drawing.schedule.timesteps[step])
        z, self.second = mix(*pair, self.mixing)
        return z
