"""Solving x = f(x) by evaluating f alone: no gradient, so no backward pass through the network.

Every round looks at f in one more point; what differs is where the next point is put.
"""

from collections.abc import Callable

import torch

from spdinv.inversions.residual import mean_square

WINDOW = 3  # Anderson acceleration combines the newest point with at most so many earlier ones

Latents = list[torch.Tensor]  # one [n,4,h,w] per round, the newest last
Propose = Callable[[Latents, Latents], tuple[torch.Tensor, torch.Tensor]]


def plain(points: Latents, values: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """x_{n+1} = f(x_n)."""
    return values[-1], values[-1]


def average(points: Latents, values: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """x_{n+1} = f(x_{n-1}) / 2 + f(x_n) / 2 (AIDI_E)."""
    mean = 0.5 * values[-2] + 0.5 * values[-1]
    return mean, mean


def anderson(points: Latents, values: Latents) -> tuple[torch.Tensor, torch.Tensor]:
    """x_{n+1} = sum_i alpha_i f(x_i), where alpha, of sum 1, makes |sum_i alpha_i (f(x_i) - x_i)| smallest.

    The answer, if this is the last round, is f(x_n). Written with differences of neighbours, which turns the sum into
    an unconstrained least-squares problem per image: in float64, its columns scaled to length 1, and with a ridge at
    rounding level, so that directions which repeat do no harm.
    """
    points, values = torch.stack(points).double(), torch.stack(values).double()  # [m, n, 4, h, w]
    residuals = (values - points).flatten(2).transpose(0, 1)  # [n, m, N]
    changes = residuals.diff(dim=1)
    lengths = torch.linalg.vector_norm(changes, dim=2, keepdim=True)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    changes = changes / lengths
    gram = changes @ changes.mT + 1e-12 * torch.eye(changes.shape[1], device=changes.device, dtype=changes.dtype)
    gamma = torch.linalg.solve_ex(gram, changes @ residuals[:, -1:].mT)[0] / lengths  # [n, m-1, 1]; NaN where f is
    moves = values.flatten(2).transpose(0, 1).diff(dim=1)
    return values[-1] - (gamma.mT @ moves).reshape(values[-1].shape), values[-1]


def iterate(
    f: Callable[[torch.Tensor, list[int]], torch.Tensor],
    x: torch.Tensor,
    rounds: int,
    threshold: float = 0.0,
    propose: Propose = plain,
    before: tuple[Latents, Latents] = ((), ()),
) -> tuple[torch.Tensor, list[int]]:
    """Search the fixed point of f, at first in x [B,4,h,w], with at most `rounds` evaluations; 0 returns x.

    f(x [n,4,h,w], images): f of the n listed images. propose: from the points of an image and the values of f there
    (the newest WINDOW + 1) to the next point, and the answer in case there is no next round. Once an image's
    mean((f(x) - x)^2) is below `threshold` it is left alone; 0 never stops early. before: points and values, [B,4,h,w]
    each, that are known already.
    Returns the answers [B,4,h,w] and the rounds spent on each image.
    """
    searching, spent, found = list(range(len(x))), [0] * len(x), x.clone()
    points, values = before
    for _ in range(rounds):
        points, values = [*points[-WINDOW:], x], [*values[-WINDOW:], f(x, searching)]
        loss = mean_square(values[-1] - x)
        x, answer = (latents.to(x.dtype) for latents in propose(points, values))
        found[searching] = answer
        for i in searching:
            spent[i] += 1
        going = [k for k, value in enumerate(loss.tolist()) if not value < threshold]
        if not going:
            break
        searching, x = [searching[k] for k in going], x[going]
        points, values = [p[going] for p in points], [v[going] for v in values]
    return found, spent
