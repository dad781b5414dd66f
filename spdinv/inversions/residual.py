"""The fixed-point equation of one inversion step, and how far a latent is from solving it.

x = f(x),   f(x) = C_{t,1} z_{t-1} + C_{t,2} eps(x, t, c)                                                   (Eq. 3)
"""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule, ddim_inverse_step
from common.pipelines import Conditioning, predict_noise


def f_theta(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    z: torch.Tensor,
    t: int,
    cond: Conditioning,
    x: torch.Tensor,
    images: list[int],
) -> torch.Tensor:
    """Eq. 3 for the n listed `images` of the batch: z [B,4,h,w] is z_{t-1} of all, x [n,4,h,w] stands for their z_t."""
    return ddim_inverse_step(schedule, z[images], predict_noise(pipe, schedule, x, t, cond[images]), t)


def mean_square(residual: torch.Tensor) -> torch.Tensor:
    """Per image: the mean over all elements of residual [B,4,h,w] squared; the loss of the released code."""
    return residual.square().mean(dim=(1, 2, 3))


def norm(residual: torch.Tensor) -> torch.Tensor:
    """Per image: the unsquared L2 norm of residual [B,4,h,w]; the loss that the paper prints (Eq. 4)."""
    return torch.linalg.vector_norm(residual, dim=(1, 2, 3))


def gradients(
    loss: torch.Tensor, inputs: Sequence[torch.Tensor], network_dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """d sum(loss) / d inputs; the weights gather none.

    A float16 network has no numbers below 6e-8, and the gradients of a mean over thousands of elements lie there: on
    the way through it they are 65536 times larger, or less where that is more than float16 can hold. Other types go as
    they are.
    """
    if network_dtype != torch.float16:
        return torch.autograd.grad(loss.sum(), inputs)
    for scale in (2.0**16, 2.0**10, 2.0**4, 1.0):
        found = torch.autograd.grad(loss.sum() * scale, inputs, retain_graph=True)
        if all(gradient.isfinite().all() for gradient in found):
            break
    return tuple(gradient / scale for gradient in found)
