"""Null-text inversion against a float64 loop whose gradients and Adam are worked out by hand."""

import numpy as np
import pytest
import torch

from common.ddim import ddim_step, guide, make_schedule
from common.pipelines import encode_prompt
from spdinv.inversions import INVERSIONS
from tests.small_data import random
from tests.spdinv.toy import LATENTS, MEANS, TOLD, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd


def naive_null_text(z, mean, schedule, inner_steps, rate, threshold, scale):
    """One image [4,5,6]; all six elements of the toy's embedding are equal and stay equal."""
    trajectory, embeds, rounds = [z], [], []
    for t in sorted(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        trajectory.append(c1 * trajectory[-1] + c2 * naive_eps(trajectory[-1], t, mean))
    z, u = trajectory[-1], MEANS[""]
    for i, t in enumerate(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        aim, e_c, m, v = trajectory[-2 - i], naive_eps(z, t, mean), 0.0, 0.0
        back = lambda e_u: (z - c2 * (e_u + scale * (e_c - e_u))) / c1  # noqa: B023, E731
        for k in range(1, inner_steps + 1):
            e_u = naive_eps(z, t, u)
            difference = back(e_u) - aim
            loss = (difference**2).mean()
            slope = 2 * difference / difference.size * (-c2 / c1) * (1 - scale) * (1 - e_u**2)
            gradient = slope.sum() / 6  # the network sees the mean of the six
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            u -= rate * (1 - i / 100) * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
            if loss < threshold + i * 2e-5:
                break
        embeds.append(u)
        rounds.append(k)
        z = back(naive_eps(z, t, u))
    return np.stack(trajectory), embeds, rounds[::-1], z


@pytest.mark.parametrize("rate, threshold", [(1e-2, 1e-5), (0.2, 0.4)])
def test_null_text_follows_the_released_loop_for_every_image_of_a_batch(rate, threshold):
    schedule, pipe = toy_schedule(6), toy_pipe()
    settings = dict(inner_steps=5, learning_rate=rate, threshold=threshold)
    inversion = INVERSIONS["null_text"](pipe, schedule, LATENTS, toy_cond(TOLD), guidance_scale=4.0, **settings)
    assert threshold < 0.1 or 1 < inversion.rounds.float().mean() < 5  # the second case stops early
    for i, mean in enumerate(TOLD):
        trajectory, embeds, rounds, _ = naive_null_text(LATENTS[i].numpy(), mean, schedule, 5, rate, threshold, 4.0)
        np.testing.assert_allclose(inversion.trajectory[:, i].numpy(), trajectory, rtol=0, atol=3e-6)
        found = inversion.uncond_embeds[:, i].numpy()
        np.testing.assert_allclose(found, np.broadcast_to(np.reshape(embeds, (-1, 1, 1)), found.shape), atol=3e-5)
        assert inversion.rounds[:, i].tolist() == rounds


def test_more_than_a_hundred_steps():
    inversion = INVERSIONS["null_text"](toy_pipe(), toy_schedule(125), LATENTS[:1], toy_cond([MEANS["a cat"]]),
                                        inner_steps=1, threshold=0)  # fmt: skip
    changes = inversion.uncond_embeds.diff(dim=0).abs().amax(dim=(1, 2, 3))
    assert changes.min() > 0 and inversion.rounds.unique().tolist() == [1]


def test_a_real_network_is_asked_in_the_released_batches_so_that_embeddings_agree_to_the_bit():
    """Whatever another batch rounds, Adam enlarges: five steps from 1e-7 to 1e-3."""
    pipe = tiny_sd()
    schedule = make_schedule(pipe.scheduler, 5)
    u, cond = encode_prompt(pipe, [""]), encode_prompt(pipe, ["a red cat on grass"])
    inversion = INVERSIONS["null_text"](pipe, schedule, random(1, 4, 16, 16), cond, inner_steps=3)
    eps = lambda z, t, text: pipe.unet(z, t, encoder_hidden_states=text).sample  # noqa: E731
    z, u = inversion.noise, u.embeds
    for i, t in enumerate(schedule.timesteps):
        u = u.detach().requires_grad_()
        adam, e_c = torch.optim.Adam([u], lr=1e-2 * (1 - i / 100)), eps(z, t, cond.embeds)
        for _ in range(3):
            found = ddim_step(schedule, z, guide(eps(z, t, u), e_c, 7.5), t)
            loss = torch.nn.functional.mse_loss(found, inversion.trajectory[4 - i])
            (u.grad,) = torch.autograd.grad(loss, u)
            adam.step()
            if loss < 1e-5 + i * 2e-5:
                break
        with torch.no_grad():
            both = eps(torch.cat([z, z]), t, torch.cat([u, cond.embeds])).chunk(2)
            z = ddim_step(schedule, z, guide(*both, 7.5), t)
        assert torch.equal(inversion.uncond_embeds[i], u)
