"""DDIM in the symbols of the papers: the alpha-bar table, one step down, one step up, guidance, conversions.

    z_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps                     (DDIM, arXiv 2010.02502, Eq. 4)

Every step goes through the predicted x_0 with float32 coefficients, as the released null-text and SPDInv code does, so
latents agree with theirs to rounding. Levels and timesteps: T steps visit the timesteps t_T > ... > t_1, `stride` apart
("leading" spacing: 981, 961, ..., 1 for T = 50); below t_1 lies the clean latent z_0, whose level is `final_alpha_bar`
(alpha_bar[0] = 0.99915 for Stable Diffusion, not 1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, SchedulerMixin

from common.runs import InputError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of one run.

    alpha_bar: float32 [number of training timesteps], on the CPU. timesteps: descending, one per step.
    stride: distance between two timesteps. prediction_type: "epsilon", "v_prediction" or "sample".
    """

    alpha_bar: torch.Tensor
    final_alpha_bar: float
    timesteps: list[int]
    stride: int
    prediction_type: str

    def alpha_bar_at(self, t: int | torch.Tensor) -> torch.Tensor:
        """Noise level of timestep t, float32: a scalar on the CPU for an int (the clean level for t < 0), or
        [B, 1, 1, 1] beside t for a tensor of B timesteps (all >= 0)."""
        if isinstance(t, torch.Tensor) and t.ndim > 0:
            return self.alpha_bar.to(t.device)[t].reshape(-1, 1, 1, 1)
        t = int(t)
        return self.alpha_bar[t] if t >= 0 else torch.tensor(self.final_alpha_bar)

    def previous(self, t: int) -> int:
        """The timestep one step cleaner than t; negative for the clean latent."""
        return t - self.stride


def make_schedule(scheduler_or_config: SchedulerMixin | Mapping, num_inference_steps: int) -> Schedule:
    """The schedule of `num_inference_steps` DDIM steps for any diffusers scheduler (or its config).

    Spacing is "leading", t_j = steps_offset + stride * (j - 1), whatever the config says: the papers here use it. (A
    diffusers Stable Diffusion pipeline has rewritten the config's steps_offset to 1.) Raises InputError for a step
    count that leaves the table.
    """
    config = dict(getattr(scheduler_or_config, "config", scheduler_or_config))
    scheduler = DDIMScheduler.from_config(config)
    alpha_bar = scheduler.alphas_cumprod.float()
    offset = scheduler.config.steps_offset
    most = len(alpha_bar) - offset
    if not 1 <= num_inference_steps <= most:
        raise InputError(f"num_inference_steps is {num_inference_steps}; this model takes 1 to {most}.")
    stride = len(alpha_bar) // num_inference_steps
    timesteps = [offset + stride * j for j in reversed(range(num_inference_steps))]
    if timesteps[0] >= len(alpha_bar) or alpha_bar[timesteps[0]] == 0:  # eps says nothing about x_0 at zero SNR
        raise InputError(f"num_inference_steps {num_inference_steps} would start at timestep {timesteps[0]}, which "
                         "carries no signal in this model; take one step fewer or more.")  # fmt: skip
    kind, final = scheduler.config.prediction_type, float(scheduler.final_alpha_cumprod)
    return Schedule(alpha_bar, final, timesteps, stride, kind)


def add_noise(schedule: Schedule, z: torch.Tensor, noise: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """q(z_t | z_0): clean latents z [B,4,h,w] brought to level t with `noise` of the same shape (DDIM, Eq. 4)."""
    a = schedule.alpha_bar_at(t)
    return (a**0.5 * z + (1 - a) ** 0.5 * noise).to(z.dtype)


def to_eps(schedule: Schedule, model_output: torch.Tensor, z: torch.Tensor, t: int | torch.Tensor) -> torch.Tensor:
    """The noise that `model_output` at (z, t) implies; all [B,4,h,w], t an int or [B]."""
    a = schedule.alpha_bar_at(t)
    if schedule.prediction_type == "sample":
        return ((z - a**0.5 * model_output) / (1 - a) ** 0.5).to(z.dtype)
    if schedule.prediction_type == "v_prediction":
        return (a**0.5 * model_output + (1 - a) ** 0.5 * z).to(z.dtype)
    return model_output


def ddim_step(
    schedule: Schedule, z: torch.Tensor, eps: torch.Tensor, t: int, eta: float = 0.0, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """From level t to the level one step cleaner (DDIM, Eq. 12; at eta 0 SPDInv's Sec. 3.1, suppl. Eq. 1).

    z, eps [B,4,h,w]; eps is the predicted noise (see to_eps), guided or not.
    eta: 0 is deterministic DDIM, 1 is DDPM-like; eta > 0 needs standard normal `noise` shaped as z (Eq. 16).
    """
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(schedule.previous(t))
    x0 = (z - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    sigma = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
    z_s = a_s**0.5 * x0 + (1 - a_s - sigma**2) ** 0.5 * eps
    if eta > 0:
        if noise is None:
            raise ValueError("ddim_step with eta > 0 needs noise")
        z_s = z_s + sigma * noise
    return z_s


def ddim_inverse_step(schedule: Schedule, z: torch.Tensor, eps: torch.Tensor, t: int) -> torch.Tensor:
    """From the level one step cleaner than t up to level t: ddim_step(eta=0) read backwards, for the same eps (SPDInv,
    suppl. Eq. 2).

    z, eps [B,4,h,w]. t: the TARGET timestep, one of schedule.timesteps; the one shown to the network to make eps is
    the caller's choice (inversion_timestep).
    """
    a_s, a_t = schedule.alpha_bar_at(schedule.previous(t)), schedule.alpha_bar_at(t)
    x0 = (z - (1 - a_s) ** 0.5 * eps) / a_s**0.5
    return a_t**0.5 * x0 + (1 - a_t) ** 0.5 * eps


def inversion_timestep(schedule: Schedule, t: int, convention: str = "target") -> int:
    """The timestep the network is shown while inverting up to level t. Two conventions are in use:

    "target": t itself, as in the released code of null-text inversion and SPDInv, and in diffusers' inverse scheduler.
    (That turns v into eps at the level that the latent has; predict_noise does at the timestep shown.)
    "source": the level the latent really has, eps(z_{t-1}, t-1), as the papers write it (SPDInv, Eq. 2 and Alg. 1,
    line 2); the clean latent is shown as timestep 0, the cleanest that the network knows.
    """
    return {"target": t, "source": max(schedule.previous(t), 0)}[convention]


def guide(eps_uncond: torch.Tensor, eps_cond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance: 1 is the conditional prediction alone, 0 the unconditional one."""
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def slerp(weight: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation from a (weight 0) to b (weight 1), each [B, ...] item as one flat vector, its length kept
    (as in the code of ProxEdit and of SVDiff); linear where they are parallel or opposite, which defines no arc."""
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)[:, None]
    angle, sine = cosine.acos(), (1 - cosine**2).sqrt()
    arc = (((1 - weight) * angle).sin() * flat_a + (weight * angle).sin() * flat_b) / sine
    line = (1 - weight) * flat_a + weight * flat_b
    return torch.where(sine > math.sqrt(torch.finfo(a.dtype).eps), arc, line).reshape(a.shape)
