"""How far a latent is from solving the fixed-point equation (Eq. 3) as the released code measures it, and gradients."""

from collections.abc import Sequence

import torch


def mean_square(residual: torch.Tensor) -> torch.Tensor:
    """Per image: the mean over all elements of residual [B,4,h,w] squared; the loss of the released code."""
    return residual.square().mean(dim=(1, 2, 3))


def gradients(
    loss: torch.Tensor, inputs: Sequence[torch.Tensor], network_dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """d sum(loss) / d inputs; the weights gather none. A float16 network has no numbers below 6e-8, and the gradients
    of a mean over thousands of elements lie there: on the way through it they are 65536 times larger, or less where
    that is more than float16 can hold. Other types go as they are."""
    if network_dtype != torch.float16:
        return torch.autograd.grad(loss.sum(), inputs)
    for scale in (2.0**16, 2.0**10, 2.0**4, 1.0):
        found = torch.autograd.grad(loss.sum() * scale, inputs, retain_graph=True)
        if all(gradient.isfinite().all() for gradient in found):
            break
    return tuple(gradient / scale for gradient in found)
