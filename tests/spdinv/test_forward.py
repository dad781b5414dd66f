"""Solvers without gradients (AIDI, FPI, SPDInv's Anderson) against closed forms and naive float64 loops."""

import numpy as np
import pytest
import torch

from spdinv.inversions import INVERSIONS, solvers
from tests.spdinv.toy import LATENTS, MEANS, TOLD, WEIGHT, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule

SOLVERS = [
    ("aidi", dict(rounds=40)),
    ("aidi", dict(rounds=80, mode="empirical")),
    ("fixed_point", dict(rounds=60)),
    ("fixed_point", dict(rounds=60, guidance_scale=1.0)),
    ("spd", dict(rounds=40, threshold=0.0, solver="anderson")),
    ("spd", dict(rounds=60, threshold=0.0, solver="descent")),
    ("exact", dict(threshold=0.0)),
    ("exact", dict(threshold=0.0, guidance_scale=2.0)),
]


@pytest.mark.parametrize("name, settings", SOLVERS)
def test_a_linear_network_is_inverted_exactly(name, settings):
    """x = C1 z + C2 (W x + s) is solved by (I - C2 W)^-1 (C1 z + C2 s), and sampling undoes it."""
    schedule, pipe = toy_schedule(6), toy_pipe(squash=lambda x: x)
    inversion = INVERSIONS[name](pipe, schedule, LATENTS, toy_cond(TOLD), **settings)
    scale = settings.get("guidance_scale", 2.0) if name == "fixed_point" else settings.get("guidance_scale", 1.0)
    z = LATENTS.numpy()
    shift = MEANS[""] + scale * (np.array(TOLD) - MEANS[""])  # a linear network's guidance guides its shift
    for level, t in enumerate(sorted(schedule.timesteps), start=1):
        c1, c2 = coefficients(schedule, t)
        constant = c1 * z + c2 * (shift + t / 1000)[:, None, None, None]
        z = np.einsum("oc,bchw->bohw", np.linalg.inv(np.eye(4) - c2 * WEIGHT), constant)
        np.testing.assert_allclose(inversion.trajectory[level].numpy(), z, rtol=0, atol=3e-6)  # float32 coefficients


def test_anderson_solves_a_linear_network_to_float64():
    matrix = torch.from_numpy(WEIGHT * 0.8)
    f = lambda x, images: torch.einsum("oc,bchw->bohw", matrix, x) + 0.3  # noqa: E731
    x, _ = solvers.iterate(solvers.anderson, f, LATENTS, 60)
    exact = torch.linalg.solve(torch.eye(4) - matrix, torch.full((4,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(x, exact.reshape(1, 4, 1, 1).expand_as(x), rtol=0, atol=1e-12)


def test_anderson_is_the_published_combination():
    """alpha = (R R^T)^-1 1, scaled to sum 1; x = sum alpha_i f(x_i)."""
    random = np.random.default_rng(2)
    for m in (2, 3, 4):
        points, values = random.normal(size=(2, m, 3, 4, 2, 5))
        found, answer = solvers.anderson(list(torch.from_numpy(points)), list(torch.from_numpy(values)))
        for image in range(3):
            r = (values - points)[:, image].reshape(m, -1)
            alpha = np.linalg.solve(r @ r.T, np.ones(m))
            expected = np.tensordot(alpha / alpha.sum(), values[:, image], 1)
            np.testing.assert_allclose(found[image].numpy(), expected, rtol=0, atol=1e-9)
        assert torch.equal(answer, torch.from_numpy(values)[-1])


def test_anderson_survives_points_that_repeat():
    point, value = torch.randn(2, 1, 4, 3, 3)
    found, _ = solvers.anderson([point, point, point], [value, value, value])
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
                r = np.stack([v - p for v, p in zip(values[-4:], points[-4:], strict=True)]).reshape(-1, z.size)
                alpha = np.linalg.solve(r @ r.T, np.ones(len(r)))
                x = np.tensordot(alpha / alpha.sum(), np.stack(values[-4:]), 1)
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
