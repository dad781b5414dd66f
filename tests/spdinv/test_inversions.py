"""DDIM, SPDInv and null-text inversion against independent float64 readings of their equations and of the facts about
their code.
"""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from common.ddim import ddim_step, guide, make_schedule
from common.pipelines import encode_prompt, load_pipeline
from spdinv.inversions import INVERSIONS
from spdinv.inversions.residual import gradients, mean_square
from spdinv.inversions.result import clock
from tests.small_data import random
from tests.spdinv.toy import LATENTS, MEANS, TOLD, WEIGHT, coefficients, naive_eps, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd


def naive_spd(z, mean, schedule, solver, rounds, eta, delta, guess="t"):
    """One image [4,5,6], numpy, gradients and AdamW worked out by hand."""
    trajectory, spent = [z], []
    for t in sorted(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        x = c1 * z + c2 * naive_eps(z, t if guess == "t" else max(t - schedule.stride, 0), mean)
        m = v = np.zeros_like(x)
        for k in range(1, rounds + 1):
            e = naive_eps(x, t, mean)
            residual = x - (c1 * z + c2 * e)
            if solver == "adamw":
                loss, outer = (residual**2).mean(), 2 * residual / residual.size
            else:
                loss = np.sqrt((residual**2).sum())
                outer = residual / loss
            gradient = outer - c2 * np.einsum("oc,ohw->chw", WEIGHT, outer * (1 - e**2))  # (I - C2 J)^T outer
            if solver == "adamw":
                x = x * (1 - eta * 0.01)
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                x = x - eta * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
            else:
                x = x - eta * gradient
            if loss < delta:
                break
        spent.append(k)
        z = x
        trajectory.append(z)
    return np.stack(trajectory), spent


@pytest.mark.parametrize("solver, eta, delta, guess", [
    ("adamw", 1e-3, 5e-6, "t"), ("adamw", 1e-2, 3e-4, "t"), ("adamw", 1e-3, 5e-6, "t-1"), ("sgd", 1e-3, 5e-6, "t"),
    ("sgd", 0.05, 0.2, "t-1"),
])  # fmt: skip
def test_spd_follows_the_equations_for_every_image_of_a_batch(solver, eta, delta, guess):
    schedule, pipe = toy_schedule(6), toy_pipe()
    options = dict(rounds=7, learning_rate=eta, threshold=delta, solver=solver, guess=guess)
    inversion = INVERSIONS["spd"](pipe, schedule, LATENTS, toy_cond(TOLD), **options)
    assert delta != 3e-4 or (len(inversion.rounds.unique(dim=1).T) > 1 and 1 < inversion.rounds.float().mean() < 7)
    for i, mean in enumerate(TOLD):
        trajectory, spent = naive_spd(LATENTS[i].numpy(), mean, schedule, solver, 7, eta, delta, guess)
        assert inversion.rounds[:, i].tolist() == spent
        np.testing.assert_allclose(inversion.trajectory[:, i].numpy(), trajectory, rtol=0, atol=2e-6)


def test_ddim_is_a_product_of_factors_for_a_linear_network():
    schedule = toy_schedule(20)
    pipe = toy_pipe(0.3 * np.eye(4), squash=lambda x: x)
    inversion = INVERSIONS["ddim"](pipe, schedule, LATENTS, toy_cond([0.0] * 3))
    z = LATENTS
    for level, t in enumerate(sorted(schedule.timesteps), start=1):
        c1, c2 = coefficients(schedule, t)
        z = (c1 + 0.3 * c2) * z + c2 * t / 1000
        torch.testing.assert_close(inversion.trajectory[level], z, rtol=1e-5, atol=1e-6)
    assert inversion.trajectory.shape == (21, 3, 4, 5, 6)
    assert torch.equal(inversion.trajectory[0], LATENTS) and inversion.noise is not None
    assert [t for _, t in pipe.unet.calls] == sorted(schedule.timesteps)  # it sees the timestep that it goes to


def test_a_perfect_guess_still_takes_one_step():
    """The test comes after the step, so a residual of zero is worsened by it: as released."""
    schedule = toy_schedule(3)
    pipe = toy_pipe(np.zeros((4, 4)))  # eps does not depend on x: the guess solves the equation
    inversion = INVERSIONS["spd"](pipe, schedule, LATENTS, toy_cond(TOLD))
    assert inversion.rounds.unique().tolist() == [1]
    plain = INVERSIONS["ddim"](pipe, schedule, LATENTS, toy_cond(TOLD))
    assert not torch.equal(inversion.trajectory[1], plain.trajectory[1])
    never = INVERSIONS["spd"](pipe, schedule, LATENTS, toy_cond(TOLD), rounds=4, threshold=0)
    assert never.rounds.unique().tolist() == [4]


def test_float32_rounding_is_that_of_the_released_loop(tiny_folder):
    """AdamW's first step has length eta whatever the gradient's: a last bit that differs, on an element whose gradient
    is almost zero, is a difference of 2e-3 there. So loaded networks and the loop must round as the released ones."""
    pipe = load_pipeline(tiny_folder, "cpu")
    schedule, cond = make_schedule(pipe.scheduler, 10), encode_prompt(pipe, ["a red cat"])
    z0 = random(1, 4, 16, 16, seed=3)
    levels = [torch.tensor(schedule.final_alpha_bar), *(schedule.alpha_bar[t] for t in sorted(schedule.timesteps))]
    unet = UNet2DConditionModel.from_pretrained(tiny_folder, subfolder="unet").eval()
    expected = [z0]
    for t, a_s, a_t in zip(sorted(schedule.timesteps), levels[:-1], levels[1:], strict=True):

        def f(x, z=expected[-1], t=t, a_s=a_s, a_t=a_t):
            eps = unet(x, t, encoder_hidden_states=cond.embeds).sample
            return a_t**0.5 * ((z - (1 - a_s) ** 0.5 * eps) / a_s**0.5) + (1 - a_t) ** 0.5 * eps

        x = f(expected[-1]).detach().requires_grad_()
        optimizer = torch.optim.AdamW([x], lr=1e-3)
        for _ in range(6):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(x, f(x))
            loss.backward()
            optimizer.step()
            if loss < 5e-6:
                break
        expected.append(x.detach())
    found = INVERSIONS["spd"](pipe, schedule, z0, cond, rounds=6).trajectory
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU works on behind its caller")
def test_seconds_wait_for_the_gpu():
    matrix = torch.randn(8192, 8192, device="cuda")
    start = clock(matrix)
    for _ in range(50):
        matrix = (matrix @ matrix).tanh()
    unfinished = not torch.cuda.current_stream().query()
    assert unfinished and clock(matrix) > start and torch.cuda.current_stream().query()


@pytest.mark.parametrize("x, power, dtype", [
    *((torch.linspace(-1, 1, 16384), -10, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    (torch.tensor([1.0, -1.0, 0.5, 0.25]), 5, torch.float16),
])  # fmt: skip
def test_small_and_large_gradients_survive_the_way_through_a_narrow_network(x, power, dtype):
    """d mean((2^p x)^2) / dx = 2^(2p+1) x / N: for p = -10 and N = 16384 that is 1e-10, and float16 ends at 6e-8; on
    the way it is 2^16 times as much, for p = 5 and N = 4 more than float16's 65504."""
    x = x.reshape(1, 4, -1, 1).requires_grad_()
    (found,) = gradients(mean_square((x.to(dtype) * 2.0**power).float()), [x], dtype)
    torch.testing.assert_close(found, 2.0 ** (2 * power + 1) * x.detach() / x.numel(), rtol=0.02, atol=1e-12)
    assert x.grad is None


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
