"""Noise map guidance against a gradient worked out by hand."""

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv.engines.attention import hooked
from spdinv.inversions import INVERSIONS, nmg
from tests.spdinv import toy
from tests.spdinv.toy import LATENTS, MEANS, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule

START, Z, PROMPTS = LATENTS[:1], LATENTS[1:], ["a cat", "a dog"]


def naive_step(trajectory, z, step, schedule, gradient_scale, noise_map_scale, reference, text_scale):
    t = schedule.timesteps[step]
    c1, c2 = coefficients(schedule, t)
    eps = lambda z, text: naive_eps(z, t, MEANS[text])  # noqa: E731
    back = lambda z, e: (z - c2 * e) / c1  # noqa: E731
    source = z[0]
    e0 = eps(source, "")
    aim = trajectory[{"current": 4, "previous": 3}[reference] - step, 0]
    outer = np.sign(back(source, e0) - aim) / source.size  # of the mean of |.|
    gradient = (outer - c2 * np.einsum("oc,ohw->chw", toy.WEIGHT, outer * (1 - e0**2))) / c1
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
    pipe, schedule = toy_pipe(), toy_schedule(4)
    inversion = INVERSIONS["nmg"](pipe, schedule, START, toy_cond([MEANS["a cat"]]), **settings)
    expected = {"gradient_scale": 5000.0, "noise_map_scale": 10.0, "reference": "current"} | settings
    for step in range(4):
        with torch.no_grad():
            found = toy.drawing_of(pipe, schedule, inversion, PROMPTS, 6.0).step(Z, step)
        naive = naive_step(inversion.trajectory.numpy(), Z.numpy(), step, schedule, text_scale=6.0, **expected)
        np.testing.assert_allclose(found.numpy(), naive, rtol=0, atol=2e-5)
    assert pipe.unet.weight.grad is None


def test_the_gradient_leads_towards_the_trajectory():
    def moved(z, gradient_scale):
        return nmg.guided_by_noise_map(toy_pipe(), toy_schedule(4), z, z + 0.5, 501, toy_cond([MEANS[""]]),
                                       gradient_scale, 10.0)  # fmt: skip

    distances = [(moved(START, scale) - START - 0.5).abs().mean() for scale in (0.0, 50.0, 500.0)]
    assert distances[0] > distances[1] > distances[2]
    # a picture four times as large moves every element as far, though the mean over its elements is as flat again
    large = moved(START.repeat(1, 1, 2, 2), 5000.0)
    torch.testing.assert_close(moved(START, 5000.0).repeat(1, 1, 2, 2), large, rtol=0, atol=1e-9)


def test_attention_is_left_alone_for_the_gradient_only(pipe):
    schedule, latents, onlooker = make_schedule(pipe.scheduler, 3), toy.random(1, 4, 16, 16), toy.Onlooker()
    inversion = INVERSIONS["nmg"](pipe, schedule, latents, encode_prompt(pipe, ["a cat"]))
    with hooked(pipe.unet, onlooker), torch.no_grad():
        hooks = list(pipe.unet.attn_processors.values())
        toy.drawing_of(pipe, schedule, inversion, ["a cat", "a dog"], 7.5).step(latents.repeat(2, 1, 1, 1), 0)
        assert list(pipe.unet.attn_processors.values()) == hooks
    assert {batch for *_, batch in onlooker.seen} == {4} and len(onlooker.seen) == len(hooks)
