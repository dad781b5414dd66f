"""Proximal guidance against a float64 reading element by element."""

from functools import partial

import numpy as np
import pytest
import torch

from spdinv.inversions import INVERSIONS, proximal
from tests.spdinv.toy import LATENTS, MEANS, coefficients, drawing_of, naive_eps, toy_cond, toy_pipe, toy_schedule

START, Z = LATENTS[:1], LATENTS[1:]
PROMPTS = ["a cat", "a dog"]
STEPS = 5  # timesteps 801, 601, 401, 201, 1
DEFAULTS = dict(mode="soft", quantile=0.7, branches="all", guidance="inversion", recon_lr=1.0, recon_t=400, dilation=1)


def naive_step(trajectory, z, step, scale, negative, mode, quantile, branches, guidance, recon_lr, recon_t, dilation):
    """z, trajectory: numpy. negative: the means of what the unconditional half is told, per branch."""
    t = [801, 601, 401, 201, 1][step]
    schedule = toy_schedule(STEPS)
    c1, c2 = coefficients(schedule, t)
    a_t = float(schedule.alpha_bar[t])
    a_s = float(schedule.alpha_bar[t - 200]) if t > 200 else schedule.final_alpha_bar
    eps = lambda means: naive_eps(z, t, np.reshape(means, (-1, 1, 1, 1)))  # noqa: E731
    uncond = eps(negative)
    delta = eps([MEANS[prompt] for prompt in PROMPTS]) - uncond
    looked_at = np.sort(np.abs(delta[1:] if branches == "target" else delta).ravel())
    place = quantile * (len(looked_at) - 1)
    low = looked_at[int(np.floor(place))]
    threshold = low + (looked_at[int(np.ceil(place))] - low) * (place % 1) if quantile > 0 else -quantile
    for index, d in np.ndenumerate(delta):
        if index[0] == 0 and branches == "target":
            continue
        if mode == "soft":
            delta[index] = np.sign(d) * max(abs(d) - threshold, 0)
        elif mode == "hard":
            delta[index] = d if abs(d) > threshold else 0
    noise = uncond + scale * delta
    outside = np.zeros_like(delta)
    for p, c, y, x in np.ndindex(*delta.shape):
        rows, columns = slice(max(y - dilation, 0), y + dilation + 1), slice(max(x - dilation, 0), x + dilation + 1)
        outside[p, c, y, x] = not (np.abs(delta[p, c, rows, columns]) > threshold).any()
    active = t < recon_t if recon_t > 0 else t > -recon_t
    x0 = (z - (1 - a_t) ** 0.5 * noise) / a_t**0.5
    if guidance == "reconstruction" and active:
        x0 = x0 - recon_lr * (x0 - trajectory[0]) * outside
    z = a_s**0.5 * x0 + (1 - a_s) ** 0.5 * noise
    if guidance == "inversion" and active:
        z = z - recon_lr * (z - trajectory[STEPS - 1 - step]) * outside
    return z


VARIANTS = [
    {}, dict(quantile=0.3), dict(mode="hard"), dict(mode="none", recon_lr=0.3),
    dict(branches="target", quantile=0.6, guidance="none"),
    dict(guidance="reconstruction", recon_lr=0.4, dilation=2, recon_t=700),
    dict(quantile=-0.15, dilation=0, recon_t=-300),
]  # fmt: skip


@pytest.mark.parametrize("change", VARIANTS)
@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_a_step_is_the_published_one(change, step):
    pipe, schedule = toy_pipe(), toy_schedule(STEPS)
    inversion = INVERSIONS["proximal"](pipe, schedule, START, toy_cond([MEANS["a cat"]]), **change)
    found = drawing_of(pipe, schedule, inversion, PROMPTS, 4.0).step(Z, step)
    settings = {**DEFAULTS, **change}
    negative = [MEANS["a cat"]] * 2  # proximal guidance is built on negative-prompt inversion
    expected = naive_step(inversion.trajectory.numpy(), Z.numpy(), step, 4.0, negative, **settings)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_without_negative_prompts_and_with_a_scale_per_branch():
    """As an extra on any inversion: here on DDIM's, the source branch at scale 1."""
    pipe, schedule = toy_pipe(), toy_schedule(STEPS)
    inversion = INVERSIONS["ddim"](pipe, schedule, START, toy_cond([MEANS["a cat"]]))
    scale = torch.tensor([1.0, 4.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    settings = {**DEFAULTS, "quantile": 0.6, "branches": "target", "guidance": "none"}
    step = partial(proximal.step, **settings)
    found = step(drawing_of(pipe, schedule, inversion, PROMPTS, scale), Z, 1)
    expected = naive_step(inversion.trajectory.numpy(), Z.numpy(), 1, scale.numpy(), [MEANS[""]] * 2, **settings)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_the_source_branch_ends_in_the_latents_that_were_inverted():
    """With one prompt d is 0: nothing is edited, and inversion guidance puts the whole trajectory back."""
    pipe, schedule = toy_pipe(), toy_schedule(STEPS)
    inversion = INVERSIONS["proximal"](pipe, schedule, START, toy_cond([MEANS["a cat"]]))
    z = inversion.noise
    for step in range(STEPS):
        z = drawing_of(pipe, schedule, inversion, PROMPTS[:1], 7.5).step(z, step)
    torch.testing.assert_close(z, START, rtol=0, atol=1e-12)
