"""Solvers of the fixed point, and inversions that are calls of them, against closed forms and naive float64 loops."""

import numpy as np
import pytest
import torch

from spdinv.inversions import INVERSIONS, solvers
from tests.spdinv.toy import LATENTS, MEANS, TOLD, WEIGHT, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule

SOLVERS = [
    ("aidi", dict(rounds=40)), ("aidi", dict(rounds=80, mode="empirical")), ("fixed_point", dict(rounds=60)),
    ("fixed_point", dict(rounds=60, guidance_scale=1.0)), ("spd", dict(rounds=40, threshold=0.0, solver="anderson")),
    ("spd", dict(rounds=60, threshold=0.0, solver="descent")), ("exact", dict(threshold=0.0)),
    ("exact", dict(threshold=0.0, guidance_scale=2.0)),
]  # fmt: skip


@pytest.mark.parametrize("name, settings", SOLVERS)
def test_a_linear_network_is_inverted_exactly(name, settings):
    """x = C1 z + C2 (W x + s) is solved by (I - C2 W)^-1 (C1 z + C2 s), and sampling undoes it."""
    schedule, pipe = toy_schedule(6), toy_pipe(squash=lambda x: x)
    inversion = INVERSIONS[name](pipe, schedule, LATENTS, toy_cond(TOLD), **settings)
    scale = settings.get("guidance_scale", 2.0 if name == "fixed_point" else 1.0)
    z = LATENTS.numpy()
    shift = MEANS[""] + scale * (np.array(TOLD) - MEANS[""])  # a linear network's guidance guides its shift
    for level, t in enumerate(sorted(schedule.timesteps), start=1):
        c1, c2 = coefficients(schedule, t)
        constant = c1 * z + c2 * (shift + t / 1000)[:, None, None, None]
        z = np.einsum("oc,bchw->bohw", np.linalg.inv(np.eye(4) - c2 * WEIGHT), constant)
        np.testing.assert_allclose(inversion.trajectory[level].numpy(), z, rtol=0, atol=3e-6)  # float32 coefficients


def naive_anderson(points, values):
    """alpha = (R R^T)^-1 1, scaled to sum 1; x = sum alpha_i f(x_i)."""
    r = np.stack([value - point for value, point in zip(values, points, strict=True)]).reshape(len(values), -1)
    alpha = np.linalg.solve(r @ r.T, np.ones(len(r)))
    return np.tensordot(alpha / alpha.sum(), np.stack(values), 1)


def test_anderson_is_the_published_combination():
    random = np.random.default_rng(2)
    for m in (2, 3, 4):
        points, values = random.normal(size=(2, m, 3, 4, 2, 5))
        found, answer = solvers.anderson(list(torch.from_numpy(points)), list(torch.from_numpy(values)))
        for image in range(3):
            expected = naive_anderson(points[:, image], values[:, image])
            np.testing.assert_allclose(found[image].numpy(), expected, rtol=0, atol=1e-9)
        assert torch.equal(answer, torch.from_numpy(values)[-1])
    point, value = torch.randn(2, 1, 4, 3, 3)  # it survives points that repeat
    found, _ = solvers.anderson([point] * 3, [value] * 3)
    torch.testing.assert_close(found.float(), value)


def naive_aidi(z, mean, schedule, mode, rounds):
    """One image, numpy: every point and every value kept, the last four used."""
    trajectory = [z]
    for t in sorted(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        f = lambda x: c1 * z + c2 * naive_eps(x, t, mean)  # noqa: B023, E731
        points, values = [z], [f(z)]
        x = values[0]
        for _ in range(rounds):
            points.append(x)
            values.append(f(x))
            if mode == "empirical":
                x = (values[-2] + values[-1]) / 2
            else:
                x = naive_anderson(points[-4:], values[-4:])
        z = x if mode == "empirical" else values[-1]
        trajectory.append(z)
    return np.stack(trajectory)


@pytest.mark.parametrize("mode", ["anderson", "empirical"])
def test_aidi_against_a_naive_loop(mode):
    schedule, pipe = toy_schedule(6), toy_pipe()
    inversion = INVERSIONS["aidi"](pipe, schedule, LATENTS, toy_cond(TOLD), mode=mode, rounds=3)
    for i, mean in enumerate(TOLD):
        expected = naive_aidi(LATENTS[i].numpy(), mean, schedule, mode, 3)
        np.testing.assert_allclose(inversion.trajectory[:, i].numpy(), expected, rtol=0, atol=3e-6)


def test_published_numbers_of_evaluations():
    """AIDI: 6 per timestep. FPI: 20 iterations, each with and without the prompt."""
    for name, count in (("aidi", 6), ("fixed_point", 40)):
        pipe = toy_pipe()
        INVERSIONS[name](pipe, toy_schedule(4), LATENTS[:1], toy_cond(TOLD[:1]))
        assert sum(images for images, _ in pipe.unet.calls) == 4 * count


def test_a_stop_is_at_the_first_residual_below_the_threshold():
    calls = []

    def f(x, images):
        calls.append(images)
        return x / torch.tensor([2.0, 10.0])[images].reshape(-1, 1, 1, 1)

    x, spent = solvers.iterate(solvers.plain, f, torch.ones(2, 1, 1, 1), 10, threshold=1e-3)
    # image 0: points 1, 1/2, 1/4, ... with residuals of half that; image 1: points 1, 1/10, ... with 0.9 of that
    assert spent == [5, 3] and calls == [[0, 1], [0, 1], [0, 1], [0], [0]]
    torch.testing.assert_close(x.flatten(), torch.tensor([2.0**-5, 1e-3]))


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
            x = naive_anderson(points[-4:], values[-4:])
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


def test_descent_ends_where_plain_iteration_runs_away():
    """Eigenvalues -3 and 0.9: |x - f(x)|^2 is convex all the same."""
    matrix = torch.diag(torch.tensor([-3.0, 0.9, 0.0, 0.5], dtype=torch.float64))
    f = lambda x, images: torch.einsum("oc,bchw->bohw", matrix, x) + 1  # noqa: E731
    x, spent = solvers.descend(f, LATENTS, 300, 1e-20, network_dtype=torch.float64)
    exact = 1 / (1 - matrix.diagonal())
    torch.testing.assert_close(x, exact.reshape(1, 4, 1, 1).expand_as(x), rtol=0, atol=1e-8)
    assert max(spent) < 300
