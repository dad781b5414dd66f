"""Noise map guidance against a gradient worked out by hand."""

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv.inversions import INVERSIONS, nmg
from tests.spdinv.test_inversions import coefficients
from tests.spdinv.toy import MEANS, drawing_of, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd

WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) * 0.5
RANDOM = np.random.default_rng(1)
LATENTS, Z = torch.from_numpy(RANDOM.normal(size=(1, 4, 5, 6))), torch.from_numpy(RANDOM.normal(size=(2, 4, 5, 6)))
PROMPTS = ["a cat", "a dog"]


def naive_step(trajectory, z, step, schedule, gradient_scale, noise_map_scale, reference, text_scale):
    t = schedule.timesteps[step]
    c1, c2 = coefficients(schedule, t)
    eps = lambda z, text: np.tanh(np.einsum("oc,chw->ohw", WEIGHT, z) + t / 1000 + MEANS[text])  # noqa: E731
    back = lambda z, e: (z - c2 * e) / c1  # noqa: E731
    source = z[0]
    e0 = eps(source, "")
    aim = trajectory[{"current": 4, "previous": 3}[reference] - step, 0]
    outer = np.sign(back(source, e0) - aim) / source.size  # of the mean of |.|
    gradient = (outer - c2 * np.einsum("oc,ohw->chw", WEIGHT, outer * (1 - e0**2))) / c1
    size = source.size / 16384
    e_nm = e0 + np.sqrt(1 - float(schedule.alpha_bar[t])) * gradient_scale * size * gradient
    source = back(source, e0 + noise_map_scale * (e_nm - e0))
    result = []
    for latent, text in zip([source, z[1]], PROMPTS, strict=True):
        null = eps(latent, "")
        result.append(back(latent, null + text_scale * (eps(latent, text) - null)))
    return np.stack(result)


@pytest.mark.parametrize("settings", [{}, dict(reference="previous"), dict(gradient_scale=100.0, noise_map_scale=2.0)])
def test_a_step_is_the_published_one(settings):
    pipe, schedule = toy_pipe(WEIGHT), toy_schedule(4)
    inversion = INVERSIONS["nmg"](pipe, schedule, LATENTS, toy_cond([MEANS["a cat"]]), **settings)
    expected = {"gradient_scale": 5000.0, "noise_map_scale": 10.0, "reference": "current"} | settings
    for step in range(4):
        with torch.no_grad():
            found = drawing_of(pipe, schedule, inversion, PROMPTS, 6.0).step(Z, step)
        naive = naive_step(inversion.trajectory.numpy(), Z.numpy(), step, schedule, text_scale=6.0, **expected)
        np.testing.assert_allclose(found.numpy(), naive, rtol=0, atol=2e-5)
    assert pipe.unet.weight.grad is None


def test_the_gradient_leads_towards_the_trajectory():
    pipe, schedule = toy_pipe(WEIGHT), toy_schedule(4)
    aim, null = LATENTS + 0.5, toy_cond([MEANS[""]])
    distances = [
        (nmg.guided_by_noise_map(pipe, schedule, LATENTS, aim, 501, null, scale, 10.0) - aim).abs().mean()
        for scale in (0.0, 50.0, 500.0)
    ]
    assert distances[0] > distances[1] > distances[2]


def test_the_scale_is_that_of_the_published_latent_size():
    """A picture four times as large moves every element as far, though the mean over its elements is as flat again."""
    pipe, schedule = toy_pipe(WEIGHT), toy_schedule(4)
    large = LATENTS.repeat(1, 1, 2, 2)
    null = toy_cond([MEANS[""]])
    moved = [nmg.guided_by_noise_map(pipe, schedule, z, z + 0.5, 501, null, 5000.0, 10.0) for z in (LATENTS, large)]
    torch.testing.assert_close(moved[0].repeat(1, 1, 2, 2), moved[1], rtol=0, atol=1e-9)


def test_attention_is_left_alone_for_the_gradient_only():
    from spdinv.engines.attention import hooked

    pipe, seen = tiny_sd(), []

    class Witness:
        wants_cross = wants_self = staticmethod(lambda tokens: True)

        def edit_self(self, query, key, value):
            seen.append(len(query))
            return query, key, value

        def edit_cross(self, maps):
            seen.append(len(maps))
            return maps

    schedule, latents = make_schedule(pipe.scheduler, 3), torch.randn(1, 4, 16, 16)
    inversion = INVERSIONS["nmg"](pipe, schedule, latents, encode_prompt(pipe, ["a cat"]))
    with hooked(pipe.unet, Witness()), torch.no_grad():
        hooks = list(pipe.unet.attn_processors.values())
        drawing_of(pipe, schedule, inversion, ["a cat", "a dog"], 7.5).step(latents.repeat(2, 1, 1, 1), 0)
        assert list(pipe.unet.attn_processors.values()) == hooks
    assert set(seen) == {4} and len(seen) == len(hooks)
