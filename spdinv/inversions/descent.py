"""A fixed point by gradient descent, without a learning rate and with no evaluation of f to spare."""

from collections.abc import Callable

import torch

from spdinv.inversions.residual import gradients, mean_square


def step_lengths(x: torch.Tensor, g: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Per image [n,1,1,1]: Barzilai and Borwein's <dx, dg> / <dg, dg>, the inverse curvature along the last step, from
    0.01 to 100. At first 1: f contracts, so the Jacobian of x - f(x) is near the identity or below it."""
    if before is None:
        return x.new_ones(len(x), 1, 1, 1)
    dx, dg = ((new - old).flatten(1) for new, old in zip((x, g), before, strict=True))
    return ((dx * dg).sum(1) / dg.square().sum(1)).nan_to_num(1.0).clamp(0.01, 100).reshape(-1, 1, 1, 1)


def descend(
    f: Callable[[torch.Tensor, list[int]], torch.Tensor],
    x: torch.Tensor,
    rounds: int,
    threshold: float,
    network_dtype: torch.dtype,
) -> tuple[torch.Tensor, list[int], int]:
    """Minimise |x - f(x)|^2 / 2 from x [B,4,h,w], the gradient going through f(x [n,4,h,w], images).

    In each of at most `rounds` rounds f is evaluated once. An image whose mean((x - f(x))^2) is below `threshold` is
    done, without a backward pass; for the others the same evaluation serves the gradient. The answer is the last f(x).
    Returns it, the rounds of each image, and the number of backward passes, one for each image of such a call.
    """
    found, spent, backward = x.clone(), [0] * len(x), 0
    searching, before = list(range(len(x))), None
    for remaining in reversed(range(rounds)):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = f(x, searching)
            residual = x - values
            loss = mean_square(residual)
            going = [k for k, value in enumerate(loss.tolist()) if not value < threshold]
            found[searching] = values.detach()
            for i in searching:
                spent[i] += 1
            if not going or not remaining:
                break
            (g,) = gradients(residual.square().sum() / 2, [x], network_dtype)
            backward += len(searching)
        x, g = x.detach()[going], g[going]
        lengths = step_lengths(x, g, before and tuple(old[going] for old in before))
        before, x = (x, g), x - lengths * g
        searching = [searching[k] for k in going]
    return found, spent, backward
