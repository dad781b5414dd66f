"""Negative-prompt inversion: guidance has nothing to do in the source branch."""

import pytest
import torch

from common.ddim import ddim_step, make_schedule
from common.pipelines import encode_prompt, predict_noise
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import random
from tests.tiny import tiny_sd, tiny_sdxl

SOURCE = "a red cat on grass"


def inverted(pipe, name="negative_prompt", **settings):
    schedule = make_schedule(pipe.scheduler, 4)
    return schedule, INVERSIONS[name](pipe, schedule, random(1, 4, 16, 16), encode_prompt(pipe, [SOURCE]), **settings)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_the_reconstruction_is_unguided_at_every_scale(make):
    pipe = make()
    schedule, inversion = inverted(pipe)
    z, cond = inversion.noise, encode_prompt(pipe, [SOURCE])
    for t in schedule.timesteps:
        z = ddim_step(schedule, z, predict_noise(pipe, schedule, z, t, cond), t)
    for scale in (1.0, 3.0, 7.5):
        drawn = ENGINES["none"](pipe, schedule, inversion, [SOURCE], guidance_scale=scale)
        torch.testing.assert_close(drawn, z, rtol=0, atol=1e-4)
    _, plain = inverted(pipe, "ddim")
    assert (ENGINES["none"](pipe, schedule, plain, [SOURCE], guidance_scale=7.5) - z).abs().max() > 1e-2


def test_interpolation_goes_from_the_prompt_to_the_null_text(pipe):
    source, null = (encode_prompt(pipe, [text]).embeds.double() for text in (SOURCE, ""))
    ends = [inverted(pipe, interpolation=weight)[1].uncond_embeds for weight in (0.0, 1.0)]
    torch.testing.assert_close(ends[0].double(), source.expand(4, 1, -1, -1))
    torch.testing.assert_close(ends[1].double(), null.expand(4, 1, -1, -1), rtol=0, atol=1e-5)
    angle = torch.acos((source * null).sum() / source.norm() / null.norm())
    middle = (torch.sin(0.5 * angle) * (source + null)) / torch.sin(angle)
    found = inverted(pipe, interpolation=0.5)[1].uncond_embeds.double()
    torch.testing.assert_close(found, middle.expand(4, 1, -1, -1), rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], ((source + null) / 2), atol=1e-3)
