"""What every inversion returns, and what it cost."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture's way from the clean latent to the noise, and what an engine needs to walk it back.

    trajectory: [T + 1, B, 4, h, w], clean latent z_0 first, noise z_T last; float32 (edict: float64).
    rounds: int64 [T, B], optimisation rounds spent to reach level 1 ... T, per image; none by default.
    cost: see `counted`; inversions.Entry fills it in. None by default: the ideal inversion of a picture that was drawn
        along the trajectory had nothing to find.
    uncond_embeds: [T, B, L, D] in sampling order (noise first), an unconditional embedding for each sampling step,
        where the method finds one (null-text inversion and its kin); None means the embedding of "".
    uncond_pooled: [B, P], the same for SDXL's pooled text; None means that of "".
    corrections: [T, B, 4, h, w] in sampling order, what the source latent lacks after each guided sampling step, where
        the method records it (Direct Inversion) and holds that branch on the trajectory; None means nothing.
    companion: [B, 4, h, w], a second noise that the method's step begins with (EDICT); None where there is none.
    step: how to take one sampling step, where the method has its own way (proximal, nmg, edict); None means
        sampling.guided_step, whose arguments it takes: (drawing, z [P,4,h,w], step) -> z.
    """

    trajectory: torch.Tensor
    rounds: torch.Tensor | None = None
    cost: dict[str, float] = field(default_factory=lambda: {"forward": 0, "backward": 0, "seconds": 0.0})
    uncond_embeds: torch.Tensor | None = None
    uncond_pooled: torch.Tensor | None = None
    corrections: torch.Tensor | None = None
    companion: torch.Tensor | None = None
    step: Callable[..., torch.Tensor] | None = None

    def __post_init__(self):
        if self.rounds is None:
            steps, images = len(self.trajectory) - 1, self.trajectory.shape[1]
            object.__setattr__(self, "rounds", torch.zeros(steps, images, dtype=torch.int64))

    @property
    def noise(self) -> torch.Tensor:
        """The inverted noise code z_T [B, 4, h, w]."""
        return self.trajectory[-1]

    def picture(self, i: int) -> "Inversion":
        """One picture's inversion out of those of a batch; its cost is the batch's, shared equally."""
        own = {}
        for name in ("trajectory", "rounds", "uncond_embeds", "corrections", "uncond_pooled", "companion"):
            if (value := getattr(self, name)) is not None:
                own[name] = value[i : i + 1] if name in ("uncond_pooled", "companion") else value[:, i : i + 1]
        share = {name: value / self.trajectory.shape[1] for name, value in self.cost.items()}
        return replace(self, **own, cost=share)


@contextmanager
def counted(unet: torch.nn.Module, z: torch.Tensor) -> Iterator[dict[str, float]]:
    """What `unet` is asked within this context, on the device of `z`: {"forward": evaluations, "backward": gradients
    through it, both summed over images, "seconds"}."""
    cost = {"forward": 0, "backward": 0, "seconds": 0.0}

    def forward(module, args, output):
        cost["forward"] += len(args[0])
        if output[0].requires_grad:
            output[0].register_hook(backward)

    def backward(gradient):
        cost["backward"] += len(gradient)

    start = clock(z)
    with unet.register_forward_hook(forward):
        yield cost
    cost["seconds"] = clock(z) - start


def clock(z: torch.Tensor) -> float:
    """time.perf_counter(), once the device of `z` has done what it was given: a GPU works on behind its caller."""
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
    return time.perf_counter()
