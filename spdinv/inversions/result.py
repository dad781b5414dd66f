"""What every inversion returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture's way from the clean latent to the noise, and what an engine needs to walk it back.

    trajectory: [T + 1, B, 4, h, w], clean latent z_0 first, noise z_T last; float32 (edict: float64).
    rounds: int64 [T, B], optimisation rounds spent to reach level 1 ... T, per image.
    cost: {"forward": network evaluations, "backward": gradients through it, both summed over images, "seconds"}.
    uncond_embeds: [T, B, L, D] in sampling order (noise first), an unconditional embedding for each sampling step,
        where the method finds one (null-text inversion and its kin); None means the embedding of "".
    uncond_pooled: [B, P], the same for SDXL's pooled text; None means that of "".
    corrections: [T, B, 4, h, w] in sampling order, what to add to the source latent after each sampling step, where
        the method records it (Direct Inversion); None means nothing.
    step: how to take one sampling step, where the method has its own way (proximal, nmg, edict); None means
        steps.guided_step, whose arguments it takes.
    """

    trajectory: torch.Tensor
    rounds: torch.Tensor
    cost: dict[str, float]
    uncond_embeds: torch.Tensor | None = None
    uncond_pooled: torch.Tensor | None = None
    corrections: torch.Tensor | None = None
    step: Callable[..., torch.Tensor] | None = None

    @property
    def noise(self) -> torch.Tensor:
        """The inverted noise code z_T [B, 4, h, w]."""
        return self.trajectory[-1]


def clock(z: torch.Tensor) -> float:
    """time.perf_counter(), once the device of `z` has done what it was given: a GPU works on behind its caller."""
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
    return time.perf_counter()
