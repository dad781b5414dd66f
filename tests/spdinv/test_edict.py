"""EDICT: every step can be undone, so what was inverted comes back, to rounding."""

import numpy as np
import pytest
import torch

from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import LATENTS, MEANS, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 50])
def test_the_round_trip_is_exact(scale, steps):
    schedule, pipe = toy_schedule(steps), toy_pipe()
    inversion = INVERSIONS["edict"](pipe, schedule, LATENTS[:1], toy_cond([MEANS["a cat"]]), guidance_scale=scale)
    for prompts in (["a cat"], ["a cat", "a dog"], ["a cat"]):  # and a second run starts afresh
        drawn = ENGINES["none"](pipe, schedule, inversion, prompts, guidance_scale=scale)
        torch.testing.assert_close(drawn[:1], LATENTS[:1], rtol=0, atol=1e-9)
    other = ENGINES["none"](pipe, schedule, inversion, ["a cat"], guidance_scale=scale + 1)
    assert (other - LATENTS[:1]).abs().max() > 1e-2


def naive_invert(z, mean, schedule, p, scale):
    """One image, numpy, the equations of the paper undone in the open; the first latent begins at even steps."""
    x, y, trajectory = z, z, [z]
    for step in reversed(range(len(schedule.timesteps))):
        t = schedule.timesteps[step]
        c1, c2 = coefficients(schedule, t)

        def eps(z, t=t):
            e = [naive_eps(z, t, told) for told in (MEANS[""], mean)]
            return e[0] + scale * (e[1] - e[0])

        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        if step % 2 == 0:  # sampling stepped x and then y
            y = c1 * y + c2 * eps(x)
            x = c1 * x + c2 * eps(y)
        else:
            x = c1 * x + c2 * eps(y)
            y = c1 * y + c2 * eps(x)
        trajectory.append(x)
    return np.stack(trajectory)


def test_the_way_there_is_the_published_one():
    schedule, pipe = toy_schedule(5), toy_pipe()
    inversion = INVERSIONS["edict"](pipe, schedule, LATENTS[:1], toy_cond([MEANS["a cat"]]), mixing=0.9)
    expected = naive_invert(LATENTS[0].numpy(), MEANS["a cat"], schedule, 0.9, 3.0)
    np.testing.assert_allclose(inversion.trajectory[:, 0].numpy(), expected, rtol=0, atol=2e-5)
