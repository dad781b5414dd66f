"""What Algorithms 1 and 2 need of a model, and which timesteps a strength stands for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from common.files import InputError, refused_as
from pixels.options import Sampling

Generators = torch.Generator | list[torch.Generator] | None


@dataclass(frozen=True, eq=False)
class Backbone:
    """A latent diffusion model that has been told prompt, strength and guidance.

    start(): sets the scheduler to the first step and gives the timesteps that will be run, noisiest first.
    encode(picture [B, 3, H, W] in [0, 1], sample, generator) -> latents [B, 4, H / factor, W / factor].
    predict(z, t): the network's output under guidance, as scheduler.step takes it. decode(latents) -> float32 picture.
    discarded_draws: number formats of random latents that the released pipeline draws first and throws away; they are
    drawn here too, so that a seed gives the released picture.
    """

    scheduler: SchedulerMixin
    start: Callable[[], Tensor]
    encode: Callable[[Tensor, bool, Generators], Tensor]
    predict: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    factor: int
    device: torch.device
    discarded_draws: tuple[torch.dtype, ...] = ()

    def latent_shape(self, picture: Tensor) -> tuple[int, int, int, int]:
        batch, _, height, width = picture.shape
        return batch, 4, height // self.factor, width // self.factor


def select_timesteps(scheduler: SchedulerMixin, device: torch.device | str, sampling: Sampling) -> Tensor:
    """Set the scheduler's timesteps and keep those of the highest edit strength t_ds^max, as the released code does.

    strength: the last int(steps * strength) of the steps; int() cuts, so that 100 * 0.29 makes 28. denoising_start, if
    given, replaces it: timesteps below round((1 - denoising_start) * 1000). With "leading" spacing, strength 1 is short
    of pure noise, and fewer steps start lower: 3 of PNDM at 667. Raises InputError if no step is left, or the
    scheduler cannot take so many or so few.
    """
    steps, strength, start = sampling.num_inference_steps, sampling.strength, sampling.denoising_start
    with refused_as(f"{type(scheduler).__name__} has no {steps} steps for this model"):
        scheduler.set_timesteps(steps, device=device)
    timesteps = scheduler.timesteps
    if start is not None:
        training_steps = scheduler.config.num_train_timesteps
        chosen = timesteps[timesteps < round(training_steps - start * training_steps)]
        reason = f"--denoising_start {start}"
    else:
        count = min(int(steps * strength), steps)
        chosen = timesteps[(steps - count) * scheduler.order :]
        reason = f"strength {strength}"
    if not len(chosen):
        raise InputError(f"{reason} leaves none of {steps} steps: take a higher strength or more steps")
    return chosen
