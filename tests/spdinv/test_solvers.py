"""SPDInv's thrifty solvers against float64 loops with gradients worked out by hand."""

import numpy as np
import pytest
import torch

from spdinv.inversions import INVERSIONS
from spdinv.inversions.solvers import descend
from tests.spdinv.toy import LATENTS, TOLD, WEIGHT, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule


def naive_search(f, gradient_of, x, solver, rounds, delta):
    """f(x), the rounds and the gradients of one image at one level."""
    points, values, gradients = [], [], []
    for k in range(1, rounds + 1):
        points.append(x)
        values.append(f(x))
        if ((x - values[-1]) ** 2).mean() < delta or k == rounds:
            break
        if solver == "descent":
            gradients.append(gradient_of(x))
            length = 1.0
            if k > 1:
                dx, dg = points[-1] - points[-2], gradients[-1] - gradients[-2]
                length = min(max((dx * dg).sum() / (dg * dg).sum(), 0.01), 100)
            x = x - length * gradients[-1]
        else:
            r = np.stack([v - p for v, p in zip(values[-4:], points[-4:], strict=True)]).reshape(-1, x.size)
            alpha = np.linalg.solve(r @ r.T, np.ones(len(r)))
            x = np.tensordot(alpha / alpha.sum(), np.stack(values[-4:]), 1)
    return values[-1], k, len(gradients)


def naive_spd(z, mean, schedule, solver, rounds, delta):
    """One image; the guess of each level but the first steps by the noise seen last."""
    trajectory, spent, backward, noise = [z], [], 0, None
    for t in sorted(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        eps = lambda x: naive_eps(x, t, mean)  # noqa: B023, E731
        f = lambda x: c1 * z + c2 * eps(x)  # noqa: B023, E731

        def gradient_of(x):  # of |x - f(x)|^2 / 2
            residual, e = x - f(x), eps(x)  # noqa: B023
            return residual - c2 * np.einsum("oc,ohw->chw", WEIGHT, residual * (1 - e**2))  # noqa: B023

        x, k, steps = naive_search(
            f, gradient_of, c1 * z + c2 * (eps(z) if noise is None else noise), solver, rounds, delta
        )
        noise = (x - c1 * z) / c2
        z = x
        spent.append(k)
        backward += steps
        trajectory.append(z)
    return np.stack(trajectory), spent, backward


@pytest.mark.parametrize("solver", ["descent", "anderson"])
@pytest.mark.parametrize("rounds, delta", [(20, 1e-5), (3, 1e-9), (1, 0.0)])
def test_a_solver_follows_its_equations_for_every_image_of_a_batch(solver, rounds, delta):
    schedule, settings = toy_schedule(6), dict(rounds=rounds, threshold=delta, solver=solver)
    together = INVERSIONS["spd"](toy_pipe(), schedule, LATENTS, toy_cond(TOLD), **settings)
    assert rounds < 20 or (together.rounds.min() == 1 and 2 < together.rounds.float().mean() < 10)
    for i, mean in enumerate(TOLD):
        trajectory, spent, backward = naive_spd(LATENTS[i].numpy(), mean, schedule, solver, rounds, delta)
        assert together.rounds[:, i].tolist() == spent
        np.testing.assert_allclose(together.trajectory[:, i].numpy(), trajectory, rtol=0, atol=1e-5)
        alone = INVERSIONS["spd"](toy_pipe(), schedule, LATENTS[i : i + 1], toy_cond([mean]), **settings)
        assert alone.cost["forward"] == 1 + sum(spent)  # the first guess is the only one that is asked for
        assert alone.cost["backward"] == backward


def test_a_perfect_guess_costs_its_check_only():
    pipe = toy_pipe(np.zeros((4, 4)), squash=lambda x: 0 * x + 0.3)  # eps is the same everywhere
    inversion = INVERSIONS["spd"](pipe, toy_schedule(4), LATENTS, toy_cond(TOLD), solver="descent")
    plain = INVERSIONS["ddim"](pipe, toy_schedule(4), LATENTS, toy_cond(TOLD))
    assert inversion.cost["backward"] == 0 and inversion.cost["forward"] == 3 * (1 + 4)
    torch.testing.assert_close(inversion.trajectory, plain.trajectory, rtol=0, atol=1e-9)


def test_descent_converges_where_plain_iteration_runs_away():
    """f(x) = A x + b with eigenvalues -3 and 0.9 of A: |x - f(x)|^2 is convex all the same."""
    matrix = torch.diag(torch.tensor([-3.0, 0.9, 0.0, 0.5], dtype=torch.float64))
    f = lambda x, images: torch.einsum("oc,bchw->bohw", matrix, x) + 1  # noqa: E731
    x, spent = descend(f, LATENTS, 300, 1e-20, network_dtype=torch.float64)
    exact = 1 / (1 - matrix.diagonal())
    torch.testing.assert_close(x, exact.reshape(1, 4, 1, 1).expand_as(x), rtol=0, atol=1e-8)
    assert max(spent) < 300
