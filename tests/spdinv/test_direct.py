"""Direct Inversion: with its corrections the source branch walks the inversion's trajectory backwards."""

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv import extras
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from spdinv.sampling import start
from tests.spdinv.toy import LATENTS, MEANS, coefficients, naive_eps, random, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd, tiny_sdxl

PROMPTS = ["a red cat on grass", "a blue dog on grass"]


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_the_source_branch_returns_the_trajectory_at_every_level(make):
    pipe = make()
    schedule = make_schedule(pipe.scheduler, 5)
    latents = random(1, 4, 16, 16)
    inversion = INVERSIONS["direct"](pipe, schedule, latents, encode_prompt(pipe, PROMPTS[:1]), guidance_scale=7.5)
    drawing, z = start(pipe, schedule, inversion, PROMPTS, 7.5)
    for step in range(5):
        with torch.no_grad():
            z = drawing.step(z, step)
        assert torch.equal(z[:1], inversion.trajectory[4 - step])  # in float32 too: guidance would enlarge any rounding
    ddim = INVERSIONS["ddim"](pipe, schedule, latents, encode_prompt(pipe, PROMPTS[:1]))
    plain = ENGINES["none"](pipe, schedule, ddim, PROMPTS)
    assert torch.equal(z[1:], plain[1:])  # the target is left alone
    assert (plain[:1] - latents).abs().max() > 1e-2


def test_corrections_are_what_guided_sampling_misses():
    schedule, pipe = toy_schedule(4), toy_pipe()
    inversion = INVERSIONS["direct"](pipe, schedule, LATENTS[:1], toy_cond([MEANS["a cat"]]), guidance_scale=5.0)
    levels = inversion.trajectory.numpy()
    for step, t in enumerate(schedule.timesteps):
        c1, c2 = coefficients(schedule, t)
        z, aim = levels[4 - step], levels[3 - step]
        null, cat = (naive_eps(z, t, MEANS[text]) for text in ("", "a cat"))
        expected = aim - (z - c2 * (null + 5 * (cat - null))) / c1
        np.testing.assert_allclose(inversion.corrections[step].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["none", "masactrl"])
def test_the_source_branch_is_held_under_other_guidance_too(engine):
    """Corrections are made for plain guidance; the extras of the released code change what they would have to be."""
    pipe = tiny_sd()
    schedule, cond = make_schedule(pipe.scheduler, 3), encode_prompt(pipe, PROMPTS[:1])
    latents = random(1, 4, 16, 16)
    inversion = INVERSIONS["direct"](pipe, schedule, latents, cond)
    for switches in ({"negative_prompt_embedding": True}, {"proximal": True, "inversion_guidance": True}):
        changed = extras.apply(pipe, inversion, cond, engine, **switches)
        drawn = ENGINES[engine](pipe, schedule, changed, PROMPTS, **({"start_step": 0} if engine == "masactrl" else {}))
        assert torch.equal(drawn[:1], latents) and not torch.equal(drawn[1:], latents)
