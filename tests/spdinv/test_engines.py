"""What holds for every engine: sampling written out, prompts that are equal, branches, hooks that come off."""

import pytest
import torch

from common.ddim import ddim_step, make_schedule
from common.pipelines import encode_prompt, predict_noise
from spdinv.engines import ENGINES, pnp
from spdinv.engines.attention import hooked
from spdinv.inversions.result import Inversion
from spdinv.sampling import Drawing
from tests.refusing import refuses
from tests.spdinv.toy import PROMPTS, Onlooker, inverted, random
from tests.tiny import tiny_sd, tiny_sdxl

FROM_THE_FIRST = {"start_step": 0, "start_layer": 0}
FREE = {"p2p": {"cross_replace_steps": 0.0, "self_replace_steps": 0.0},
        "masactrl": {"inject_uncond": "none", "inject_cond": "none", **FROM_THE_FIRST}}  # fmt: skip
HELD = {"p2p": {}, "masactrl": FROM_THE_FIRST}


def draw(pipe, engine, steps=3, prompts=PROMPTS, guidance_scale=3.0, found=None, **settings):
    schedule = make_schedule(pipe.scheduler, steps)
    return ENGINES[engine](pipe, schedule, found or inverted(steps), prompts, guidance_scale, **settings)


def test_guided_sampling_written_out(pipe):
    schedule, z = make_schedule(pipe.scheduler, 3), inverted(3).noise
    uncond, cond = encode_prompt(pipe, [""]), encode_prompt(pipe, PROMPTS[:1])
    for t in (667, 334, 1):
        u, c = (predict_noise(pipe, schedule, z, t, condition) for condition in (uncond, cond))
        z = ddim_step(schedule, z, u + 7.5 * (c - u), t)
    torch.testing.assert_close(draw(pipe, "none", 3, PROMPTS[:1], 7.5), z, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("engine, settings", [
    ("p2p", {"controller": "refine", "blended_words": ("cat", "cat")}),
    ("p2p", {"controller": "replace", "blended_words": ("cat", "cat")}),
    ("masactrl", FROM_THE_FIRST), ("masactrl", {"masks": (torch.ones(16, 16), torch.ones(16, 16)), **FROM_THE_FIRST}),
])  # fmt: skip
def test_the_same_prompt_twice_gives_the_same_picture_twice(make, engine, settings):
    source, target = draw(make(), engine, prompts=PROMPTS[:1] * 2, **settings)
    torch.testing.assert_close(target, source, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", FREE)
def test_without_control_both_branches_are_plain_sampling(pipe, engine):
    plain = draw(pipe, "none")
    torch.testing.assert_close(draw(pipe, engine, **FREE[engine]), plain, rtol=1e-4, atol=1e-4)
    assert (draw(pipe, engine, **HELD[engine])[1] - plain[1]).abs().max() > 0.01


@pytest.mark.parametrize("engine", FREE)
def test_branches_may_have_guidance_scales_of_their_own(pipe, engine):
    one, seven = (draw(pipe, engine, 2, guidance_scale=scale, **HELD[engine]) for scale in (1.0, 7.5))
    pair = draw(pipe, engine, 2, guidance_scale=7.5, source_guidance_scale=1.0, **HELD[engine])
    torch.testing.assert_close(pair[0], one[0], rtol=1e-4, atol=1e-4)
    assert (one[0] - seven[0]).abs().max() > 0.05 and (pair[1] - one[1]).abs().max() > 0.05


def test_embeddings_and_corrections_of_an_inversion_are_used(pipe):
    source = encode_prompt(pipe, PROMPTS[:1]).embeds
    negative = inverted(3, uncond_embeds=source.expand(3, 1, *source.shape[1:]))
    one, seven = (draw(pipe, "none", 3, PROMPTS[:1], scale, negative) for scale in (1.0, 7.5))
    torch.testing.assert_close(one, seven, rtol=1e-3, atol=1e-4)  # uncond = cond: guidance has nothing to amplify
    held = inverted(3, corrections=torch.zeros(3, 1, 4, 16, 16))
    moved = draw(pipe, "none", guidance_scale=1.0, found=held)
    assert torch.equal(moved[0], held.trajectory[0, 0])  # the source branch alone
    torch.testing.assert_close(moved[1], draw(pipe, "none", guidance_scale=1.0)[1])
    with pytest.raises(ValueError, match="one picture at a time"):
        draw(pipe, "p2p", 2, found=Inversion(random(3, 2, 4, 16, 16)))


@pytest.mark.parametrize("make, cross", [(tiny_sd, {256, 64}), (tiny_sdxl, {64, 16})])
def test_looking_changes_nothing_and_hooks_come_off(make, cross):
    pipe = make()
    schedule, cond, z = make_schedule(pipe.scheduler, 2), encode_prompt(pipe, PROMPTS), random(2, 4, 16, 16)
    before, onlooker = pipe.unet.attn_processors, Onlooker()
    plain = predict_noise(pipe, schedule, z, 501, cond)
    with hooked(pipe.unet, onlooker):
        watched = predict_noise(pipe, schedule, z, 501, cond)
    torch.testing.assert_close(watched, plain, rtol=1e-4, atol=1e-5)
    assert {tokens for kind, tokens, _ in onlooker.seen if kind == "cross"} >= cross
    after = pipe.unet.attn_processors
    assert before.keys() == after.keys() and all(after[path] is before[path] for path in before)


@pytest.mark.parametrize("engine, message", [
    ("p2p", "no self-attention and no cross-attention"), ("masactrl", "caught no self-attention"),
    ("pnp", "no feature and no self-attention"),
])  # fmt: skip
def test_hooks_come_off_after_an_error_and_raise_where_they_catch_nothing(pipe, monkeypatch, engine, message):
    before, block = pipe.unet.attn_processors, pipe.unet.get_submodule(pnp.feature_layer(pipe.unet)[0])
    settings = {"start_step": 0} if engine == "masactrl" else {}
    monkeypatch.setattr(Drawing, "step", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(pipe, engine, **settings)
    after = pipe.unet.attn_processors
    assert all(after[path] is before[path] for path in before) and not block.conv2._forward_hooks
    assert not pipe.unet._forward_hooks and not pipe.unet._forward_pre_hooks
    monkeypatch.setattr(Drawing, "step", lambda self, z, step: z)
    refuses(message, draw, pipe, engine, **settings)
