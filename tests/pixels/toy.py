"""A backbone of a few lines of algebra, so that a test can run Algorithms 1 and 2 by hand in float64."""

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.options import Sampling

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
          "timestep_spacing": "leading"}  # fmt: skip
SPREAD = 0.05  # deviation of the toy VAE's posterior
WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) * 0.3


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(generator: torch.Generator | None = None):
    """What a generator gives as float64 noise of the latents' shape, one after the other."""
    generator = generator or seeded()
    while True:
        yield torch.randn(1, 4, 4, 6, generator=generator, dtype=torch.float64).numpy()


def alpha_bars() -> np.ndarray:
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def network(z: np.ndarray, t: float) -> np.ndarray:
    """[B, 4, h, w] -> [B, 4, h, w]; it looks at neighbours, so that regions influence each other."""
    around = (z + np.roll(z, 1, -1) + np.roll(z, 1, -2)) / 3
    return np.tanh(np.einsum("oc,bchw->bohw", WEIGHT, around) + t / 1000)


def reduce(edit_map: torch.Tensor) -> np.ndarray:
    """The mean of the central 2x2 of each 8x8 block."""
    m = edit_map[0, 0].numpy()
    return np.array([[m[8 * y + 3 : 8 * y + 5, 8 * x + 3 : 8 * x + 5].mean() for x in range(6)] for y in range(4)])


def ddim(z: np.ndarray, t: int, below: int) -> np.ndarray:
    """A step of DDIM with the network, from timestep t to the one below, in float64."""
    e, a, b = network(z, t), alpha_bars()[t], alpha_bars()[max(below, 0)]
    return np.sqrt(b) * (z - np.sqrt(1 - a) * e) / np.sqrt(a) + np.sqrt(1 - b) * e


def decoded(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(z[:, :3] / 2 + 0.5, scale_factor=8)


def mean_latents(picture: np.ndarray) -> np.ndarray:
    """[B, 3, H, W] -> [B, 4, H / 8, W / 8]: means over blocks, and their mean."""
    b, c, h, w = picture.shape
    blocks = picture.reshape(b, c, h // 8, 8, w // 8, 8).mean((3, 5)) * 2 - 1
    return np.concatenate([blocks, blocks.mean(1, keepdims=True)], 1)


def toy_backbone(kind="ddim", steps=10, strength=1.0, discarded=(), **config) -> Backbone:
    cls = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "euler": EulerDiscreteScheduler}[kind]
    extra = {"ddim": {"clip_sample": False, "set_alpha_to_one": False}, "ddpm": {"clip_sample": False}}.get(kind, {})
    scheduler = cls(**CONFIG, **extra, **config)

    def encode(picture, sample, generator):
        z = torch.from_numpy(mean_latents(picture.numpy()))
        return z + SPREAD * randn_tensor(z.shape, generator, dtype=z.dtype) if sample else z

    def predict(z, t):
        return torch.from_numpy(network(scheduler.scale_model_input(z, t).numpy(), float(t)))

    told = Sampling(num_inference_steps=steps, strength=strength)
    return Backbone(scheduler, lambda: select_timesteps(scheduler, "cpu", told), encode, predict,
                    lambda z: decoded(z).float(), 8, torch.device("cpu"), discarded)  # fmt: skip
