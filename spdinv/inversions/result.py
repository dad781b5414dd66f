"""What every inversion returns."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

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
    companion: [B, 4, h, w], a second noise that the method's step begins with (EDICT); None where there is none.
    step: how to take one sampling step, where the method has its own way (proximal, nmg, edict); None means
        sampling.guided_step, whose arguments it takes: (drawing, z [P,4,h,w], step) -> z.
    """

    trajectory: torch.Tensor
    rounds: torch.Tensor
    cost: dict[str, float]
    uncond_embeds: torch.Tensor | None = None
    uncond_pooled: torch.Tensor | None = None
    corrections: torch.Tensor | None = None
    companion: torch.Tensor | None = None
    step: Callable[..., torch.Tensor] | None = None

    @property
    def noise(self) -> torch.Tensor:
        """The inverted noise code z_T [B, 4, h, w]."""
        return self.trajectory[-1]

    def picture(self, i: int) -> "Inversion":
        """One picture's inversion out of those of a batch; its cost is the batch's, shared equally."""
        of_all = {name: getattr(self, name) for name in ("trajectory", "rounds", "uncond_embeds", "corrections")}
        of_all |= {name: getattr(self, name) for name in ("uncond_pooled", "companion")}
        own = {name: value[i : i + 1] if name in ("uncond_pooled", "companion") else value[:, i : i + 1]
               for name, value in of_all.items() if value is not None}  # fmt: skip
        share = {name: value / self.trajectory.shape[1] for name, value in self.cost.items()}
        return replace(self, **own, cost=share)


def clock(z: torch.Tensor) -> float:
    """time.perf_counter(), once the device of `z` has done what it was given: a GPU works on behind its caller."""
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
    return time.perf_counter()
