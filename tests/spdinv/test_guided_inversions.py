"""Inversions with a way back of their own: EDICT, Direct Inversion, negative prompts, noise map, proximal guidance."""

from functools import partial

import numpy as np
import pytest
import torch

from common.ddim import ddim_step, make_schedule
from common.pipelines import encode_prompt, predict_noise
from spdinv import extras
from spdinv.engines import ENGINES
from spdinv.engines.attention import hooked
from spdinv.inversions import INVERSIONS, nmg, proximal
from spdinv.sampling import start
from tests.small_data import random
from tests.spdinv import toy
from tests.spdinv.toy import LATENTS, MEANS, coefficients, drawing_of, naive_eps, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd, tiny_sdxl

START, Z, PROMPTS = LATENTS[:1], LATENTS[1:], ["a cat", "a dog"]  # of the toy
TEXTS = ["a red cat on grass", "a blue dog on grass"]


def toy_inverted(name, steps, **settings):
    """(pipe, schedule, inversion) of the toy's first latent, a cat."""
    pipe, schedule = toy_pipe(), toy_schedule(steps)
    return pipe, schedule, INVERSIONS[name](pipe, schedule, START, toy_cond([MEANS["a cat"]]), **settings)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 50])
def test_edict_comes_back_exactly(scale, steps):
    pipe, schedule, inversion = toy_inverted("edict", steps, guidance_scale=scale)
    for prompts in (["a cat"], ["a cat", "a dog"], ["a cat"]):  # and a second run starts afresh
        drawn = ENGINES["none"](pipe, schedule, inversion, prompts, guidance_scale=scale)
        torch.testing.assert_close(drawn[:1], START, rtol=0, atol=1e-9)
    other = ENGINES["none"](pipe, schedule, inversion, ["a cat"], guidance_scale=scale + 1)
    assert (other - START).abs().max() > 1e-2


def naive_edict(z, mean, schedule, p, scale):
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


def test_edict_goes_the_published_way():
    pipe, schedule, inversion = toy_inverted("edict", 5, mixing=0.9)
    expected = naive_edict(START[0].numpy(), MEANS["a cat"], schedule, 0.9, 3.0)
    np.testing.assert_allclose(inversion.trajectory[:, 0].numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_direct_returns_the_trajectory_at_every_level(make):
    pipe = make()
    schedule = make_schedule(pipe.scheduler, 5)
    latents = random(1, 4, 16, 16)
    inversion = INVERSIONS["direct"](pipe, schedule, latents, encode_prompt(pipe, TEXTS[:1]), guidance_scale=7.5)
    drawing, z = start(pipe, schedule, inversion, TEXTS, 7.5)
    for step in range(5):
        with torch.no_grad():
            z = drawing.step(z, step)
        assert torch.equal(z[:1], inversion.trajectory[4 - step])  # in float32 too: guidance would enlarge any rounding
    ddim = INVERSIONS["ddim"](pipe, schedule, latents, encode_prompt(pipe, TEXTS[:1]))
    plain = ENGINES["none"](pipe, schedule, ddim, TEXTS)
    assert torch.equal(z[1:], plain[1:])  # the target is left alone
    assert (plain[:1] - latents).abs().max() > 1e-2


def test_corrections_of_direct_are_what_guided_sampling_misses():
    pipe, schedule, inversion = toy_inverted("direct", 4, guidance_scale=5.0)
    levels = inversion.trajectory.numpy()
    for step, t in enumerate(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        z, aim = levels[4 - step], levels[3 - step]
        null, cat = (naive_eps(z, t, MEANS[text]) for text in ("", "a cat"))
        expected = aim - (z - c2 * (null + 5 * (cat - null))) / c1
        np.testing.assert_allclose(inversion.corrections[step].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["none", "masactrl"])
def test_direct_holds_the_source_branch_under_other_guidance_too(engine):
    """Corrections are made for plain guidance; the extras of the released code change what they would have to be."""
    pipe = tiny_sd()
    schedule, cond = make_schedule(pipe.scheduler, 3), encode_prompt(pipe, TEXTS[:1])
    latents = random(1, 4, 16, 16)
    inversion = INVERSIONS["direct"](pipe, schedule, latents, cond)
    for switches in ({"negative_prompt_embedding": True}, {"proximal": True, "inversion_guidance": True}):
        changed = extras.apply(pipe, inversion, cond, engine, **switches)
        drawn = ENGINES[engine](pipe, schedule, changed, TEXTS, **({"start_step": 0} if engine == "masactrl" else {}))
        assert torch.equal(drawn[:1], latents) and not torch.equal(drawn[1:], latents)


def negative(pipe, name="negative_prompt", **settings):
    schedule = make_schedule(pipe.scheduler, 4)
    return schedule, INVERSIONS[name](pipe, schedule, random(1, 4, 16, 16), encode_prompt(pipe, TEXTS[:1]), **settings)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_with_a_negative_prompt_the_reconstruction_is_unguided_at_every_scale(make):
    pipe = make()
    schedule, inversion = negative(pipe)
    z, cond = inversion.noise, encode_prompt(pipe, TEXTS[:1])
    for t in schedule.timesteps:
        z = ddim_step(schedule, z, predict_noise(pipe, schedule, z, t, cond), t)
    for scale in (1.0, 3.0, 7.5):
        drawn = ENGINES["none"](pipe, schedule, inversion, TEXTS[:1], guidance_scale=scale)
        torch.testing.assert_close(drawn, z, rtol=0, atol=1e-4)
    _, plain = negative(pipe, "ddim")
    assert (ENGINES["none"](pipe, schedule, plain, TEXTS[:1], guidance_scale=7.5) - z).abs().max() > 1e-2


def test_interpolation_goes_from_the_prompt_to_the_null_text(pipe):
    source, null = (encode_prompt(pipe, [text]).embeds.double() for text in (TEXTS[0], ""))
    ends = [negative(pipe, interpolation=weight)[1].uncond_embeds for weight in (0.0, 1.0)]
    torch.testing.assert_close(ends[0].double(), source.expand(4, 1, -1, -1))
    torch.testing.assert_close(ends[1].double(), null.expand(4, 1, -1, -1), rtol=0, atol=1e-5)
    angle = torch.acos((source * null).sum() / source.norm() / null.norm())
    middle = (torch.sin(0.5 * angle) * (source + null)) / torch.sin(angle)
    found = negative(pipe, interpolation=0.5)[1].uncond_embeds.double()
    torch.testing.assert_close(found, middle.expand(4, 1, -1, -1), rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], ((source + null) / 2), atol=1e-3)


def naive_nmg(trajectory, z, step, schedule, gradient_scale, noise_map_scale, reference, text_scale):
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
def test_a_step_of_noise_map_guidance_is_the_published_one(settings):
    pipe, schedule, inversion = toy_inverted("nmg", 4, **settings)
    expected = {"gradient_scale": 5000.0, "noise_map_scale": 10.0, "reference": "current"} | settings
    for step in range(4):
        with torch.no_grad():
            found = drawing_of(pipe, schedule, inversion, PROMPTS, 6.0).step(Z, step)
        naive = naive_nmg(inversion.trajectory.numpy(), Z.numpy(), step, schedule, text_scale=6.0, **expected)
        np.testing.assert_allclose(found.numpy(), naive, rtol=0, atol=2e-5)
    assert pipe.unet.weight.grad is None


def test_the_gradient_of_noise_map_guidance_leads_towards_the_trajectory():
    def moved(z, gradient_scale):
        return nmg.guided_by_noise_map(toy_pipe(), toy_schedule(4), z, z + 0.5, 501, toy_cond([MEANS[""]]),
                                       gradient_scale, 10.0)  # fmt: skip

    distances = [(moved(START, scale) - START - 0.5).abs().mean() for scale in (0.0, 50.0, 500.0)]
    assert distances[0] > distances[1] > distances[2]
    # a picture four times as large moves every element as far, though the mean over its elements is as flat again
    large = moved(START.repeat(1, 1, 2, 2), 5000.0)
    torch.testing.assert_close(moved(START, 5000.0).repeat(1, 1, 2, 2), large, rtol=0, atol=1e-9)


def test_attention_is_left_alone_for_the_gradient_only(pipe):
    schedule, latents, onlooker = make_schedule(pipe.scheduler, 3), random(1, 4, 16, 16), toy.Onlooker()
    inversion = INVERSIONS["nmg"](pipe, schedule, latents, encode_prompt(pipe, ["a cat"]))
    with hooked(pipe.unet, onlooker), torch.no_grad():
        hooks = list(pipe.unet.attn_processors.values())
        drawing_of(pipe, schedule, inversion, ["a cat", "a dog"], 7.5).step(latents.repeat(2, 1, 1, 1), 0)
        assert list(pipe.unet.attn_processors.values()) == hooks
    assert {batch for *_, batch in onlooker.seen} == {4} and len(onlooker.seen) == len(hooks)


STEPS = 5  # timesteps 801, 601, 401, 201, 1
PROXIMAL = dict(mode="soft", quantile=0.7, branches="all", guidance="inversion", recon_lr=1.0, recon_t=400, dilation=1)


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
def test_a_step_of_proximal_guidance_is_the_published_one(change, step):
    pipe, schedule, inversion = toy_inverted("proximal", STEPS, **change)
    found = drawing_of(pipe, schedule, inversion, PROMPTS, 4.0).step(Z, step)
    settings = {**PROXIMAL, **change}
    negative = [MEANS["a cat"]] * 2  # proximal guidance is built on negative-prompt inversion
    expected = naive_step(inversion.trajectory.numpy(), Z.numpy(), step, 4.0, negative, **settings)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_without_negative_prompts_and_with_a_scale_per_branch():
    """As an extra on any inversion: here on DDIM's, the source branch at scale 1."""
    pipe, schedule, inversion = toy_inverted("ddim", STEPS)
    scale = torch.tensor([1.0, 4.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    settings = {**PROXIMAL, "quantile": 0.6, "branches": "target", "guidance": "none"}
    step = partial(proximal.step, **settings)
    found = step(drawing_of(pipe, schedule, inversion, PROMPTS, scale), Z, 1)
    expected = naive_step(inversion.trajectory.numpy(), Z.numpy(), 1, scale.numpy(), [MEANS[""]] * 2, **settings)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5)


def test_under_proximal_guidance_the_source_branch_ends_in_the_latents_that_were_inverted():
    """With one prompt d is 0: nothing is edited, and inversion guidance puts the whole trajectory back."""
    pipe, schedule, inversion = toy_inverted("proximal", STEPS)
    z = inversion.noise
    for step in range(STEPS):
        z = drawing_of(pipe, schedule, inversion, PROMPTS[:1], 7.5).step(z, step)
    torch.testing.assert_close(z, START, rtol=0, atol=1e-12)
