"""Solving x = f(x) faster than Algorithm 1 does, and the inversions that are such a search at every level.

Each solver: solve(f, x, rounds, threshold) -> (x, rounds of each image); f(x [n,4,h,w], images) is Eq. 3 for the n
listed images of the batch.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions.residual import gradients, mean_square
from spdinv.inversions.result import Inversion
from spdinv.sampling import guided_noise

WINDOW = 3  # Anderson acceleration combines the newest point with at most so many earlier ones

Latents = list[torch.Tensor]  # one [n,4,h,w] per round, the newest last
Solved = tuple[torch.Tensor, list[int]]
Function = Callable[[torch.Tensor, list[int]], torch.Tensor]


@torch.no_grad()
def search(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    solve: Callable[..., Solved], rounds: int, threshold: float, guidance_scale: float = 1.0, thrifty: bool = False,
    remember_start: bool = False,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`: at every level the guess, then `solve` from it.

    rounds: after the guess, at most. threshold: of the mean square of the residual. guidance_scale: of classifier-free
    guidance inside eps; at 1 the network is not asked about "".
    thrifty: from the second level on the guess costs nothing: it is the step by the noise that the network saw last, at
    the level below, in the latent that was found there. That is nearer than DDIM's guess.
    remember_start: `solve` is told of z_{t-1} and f(z_{t-1}), the guess, as the first point and value.
    """
    null = encode_prompt(pipe, [""])[[0] * len(latents)] if guidance_scale != 1 else cond
    trajectory, spent, everyone = [latents], [], list(range(len(latents)))
    noise = torch.zeros_like(latents)  # what the network saw last in each image
    for level, t in enumerate(tqdm(schedule.timesteps[::-1], "fixed points", leave=False, disable=None)):
        z = trajectory[-1]

        def f(x, images, z=z, t=t):  # Eq. 3
            eps = guided_noise(pipe, schedule, x, t, null[images], cond[images], guidance_scale)
            noise[images] = eps.detach()
            return ddim_inverse_step(schedule, z[images], eps, t)

        free = thrifty and rounds > 0 and level > 0
        guess = ddim_inverse_step(schedule, z, noise, t) if free else f(z, everyone)
        x, rounds_here = solve(f, guess, rounds, threshold, **({"before": ([z], [guess])} if remember_start else {}))
        trajectory.append(x)
        spent.append(rounds_here)
    return Inversion(torch.stack(trajectory), torch.tensor(spent))


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
    propose: Callable[[Latents, Latents], tuple[torch.Tensor, torch.Tensor]], f: Function, x: torch.Tensor, rounds: int,
    threshold: float = 0.0, before: tuple[Latents, Latents] = ((), ()),
) -> Solved:  # fmt: skip
    """Search from x [B,4,h,w] with at most `rounds` evaluations and no gradient; 0 returns x.

    propose: from the points of an image and the values of f there (the newest WINDOW + 1) to the next point, and the
    answer in case there is no next round. Once an image's mean((f(x) - x)^2) is below `threshold` it is left alone; 0
    never stops early. before: points and values, [B,4,h,w] each, that are known already.
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


ANDERSON = partial(iterate, anderson)


def step_lengths(x: torch.Tensor, g: torch.Tensor, before: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Per image [n,1,1,1]: Barzilai and Borwein's <dx, dg> / <dg, dg>, the inverse curvature along the last step, from
    0.01 to 100. At first 1: f contracts, so the Jacobian of x - f(x) is near the identity or below it."""
    if before is None:
        return x.new_ones(len(x), 1, 1, 1)
    dx, dg = ((new - old).flatten(1) for new, old in zip((x, g), before, strict=True))
    return ((dx * dg).sum(1) / dg.square().sum(1)).nan_to_num(1.0).clamp(0.01, 100).reshape(-1, 1, 1, 1)


def descend(
    f: Function, x: torch.Tensor, rounds: int, threshold: float = 0.0, network_dtype: torch.dtype = torch.float32
) -> Solved:
    """Minimise |x - f(x)|^2 / 2 from x [B,4,h,w] without a learning rate, the gradient going through f. In each of at
    most `rounds` rounds f is evaluated once. An image whose mean((x - f(x))^2) is below `threshold` is done, without a
    backward pass; for the others the same evaluation serves the gradient. The answer is the last f(x)."""
    searching, spent, found, before = list(range(len(x))), [0] * len(x), x.clone(), None
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
        x, g = x.detach()[going], g[going]
        lengths = step_lengths(x, g, before and tuple(old[going] for old in before))
        before, x = (x, g), x - lengths * g
        searching = [searching[k] for k in going]
    return found, spent
