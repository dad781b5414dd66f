"""Plug-and-Play against naive readings: which layers, what is injected, how long, and that hooks come off."""

from functools import partial

import pytest
import torch

from common.ddim import ddim_step, make_schedule
from common.pipelines import encode_prompt, predict_noise
from spdinv.engines import ENGINES, pnp
from spdinv.inversions import nmg
from spdinv.inversions.result import Inversion
from tests.refusing import refuses
from tests.spdinv.toy import BLIND, PROMPTS, STABLE, XL, inverted, layout, random
from tests.tiny import tiny_sd, tiny_sdxl

FULL, OFF = {"feature_steps": 1.0, "attention_steps": 1.0}, {"feature_steps": 0.0, "attention_steps": 0.0}


def decoder(*places):
    return [f"up_blocks.{block}.attentions.{i}.transformer_blocks.{depth}.attn1.processor"
            for block, attentions, depths in places for i in attentions for depth in range(depths)]  # fmt: skip


def edited(pipe, inversion, **options):
    return ENGINES["pnp"](pipe, make_schedule(pipe.scheduler, 3), inversion, PROMPTS, **options)


def test_layers_of_published_layouts():
    assert pnp.feature_layer(layout(**STABLE)) == (
        "up_blocks.1.resnets.1", decoder((1, (1, 2), 1), (2, range(3), 1), (3, range(3), 1)))  # fmt: skip
    assert pnp.feature_layer(layout(**XL)) == ("up_blocks.0.resnets.1", decoder((0, (1, 2), 10), (1, range(3), 2)))
    picturebook = decoder((1, (1,), 1), (2, (0, 1), 1))
    assert pnp.feature_layer(tiny_sd().unet) == ("up_blocks.1.resnets.1", picturebook)
    refuses("decoder", pnp.feature_layer, layout(**BLIND))


def test_queries_and_keys_are_injected_and_values_are_not():
    injection = pnp.Injection(None, 10, 0.8, 0.5)
    query, key, value = (random(3, 2, 6, 4, seed=s).double() for s in range(3))
    out = torch.nn.functional.scaled_dot_product_attention(*injection.edit_self(query, key, value))
    source_map = torch.softmax(query[0] @ key[0].mT / 4**0.5, -1)
    for item in range(3):
        torch.testing.assert_close(out[item], source_map @ value[item])


def test_injection_lasts_as_long_as_published():
    injection, marked = pnp.Injection(None, 50, 0.8, 0.5), torch.arange(3.0).reshape(3, 1, 1, 1)
    for step in range(50):
        injection.step = step
        found = injection.inject_features(None, (), marked)
        assert torch.equal(found, 0 * marked) if step < 40 else found is marked
        assert injection.wants_self(64) == (step < 25)


def test_features_are_what_the_block_adds_to_its_own_input(pipe):
    """The source's branch of the residual block, and each item's own shortcut."""
    block = pipe.unet.get_submodule(pnp.feature_layer(pipe.unet)[0])
    x, time = random(3, block.in_channels, 8, 8), random(3, block.time_emb_proj.in_features)
    plain = block(x, time)
    with pnp.injected(pipe.unet, pnp.Injection(None, 10, 0.8, 0.5)):
        out = block(x, time)
    shortcut = block.conv_shortcut(x)
    torch.testing.assert_close(out, shortcut + (plain - shortcut)[:1])
    assert torch.equal(block(x, time), plain)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("layout", ["trajectory", "reconstruction"])
def test_sampling_written_out(make, layout):
    """Without injection: plain guidance with a negative prompt; with it, another picture."""
    pipe = make()
    schedule, inversion, options = make_schedule(pipe.scheduler, 3), inverted(3), {"negative_prompt": "a small dog"}
    negative, source, cond = (encode_prompt(pipe, [text]) for text in ("a small dog", *PROMPTS))
    z, x = inversion.noise, inversion.noise
    for t in (667, 334, 1):
        u, c = (predict_noise(pipe, schedule, z, t, condition) for condition in (negative, cond))
        z = ddim_step(schedule, z, u + 3.0 * (c - u), t)
        x = ddim_step(schedule, x, predict_noise(pipe, schedule, x, t, source), t)
    options["source_latents"] = layout
    free = ENGINES["pnp"](pipe, schedule, inversion, PROMPTS, 3.0, **options, **OFF)
    expected = {"trajectory": inversion.trajectory[0], "reconstruction": x}[layout]
    torch.testing.assert_close(free, torch.cat([expected, z]), rtol=1e-3, atol=1e-3)
    held = ENGINES["pnp"](pipe, schedule, inversion, PROMPTS, 3.0, **options, **FULL)
    assert (held[1] - free[1]).abs().max() > 1e-2 and torch.equal(held[:1], free[:1])


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_with_the_sources_own_text_and_latents_the_target_is_the_source(make):
    """A trajectory that is DDIM sampling with "", and "" as the target prompt: every item is the source."""
    pipe = make()
    schedule, z = make_schedule(pipe.scheduler, 3), [random(1, 4, 16, 16)]
    cond = encode_prompt(pipe, [""])
    for t in schedule.timesteps:
        z.append(ddim_step(schedule, z[-1], predict_noise(pipe, schedule, z[-1], t, cond), t))
    inversion = Inversion(torch.stack(z[::-1]), torch.zeros(3, 1), {})
    source, target = ENGINES["pnp"](pipe, schedule, inversion, [PROMPTS[0], ""], 7.5, negative_prompt="", **FULL)
    torch.testing.assert_close(target, source, rtol=1e-4, atol=1e-4)


def test_the_network_is_asked_for_three_items_and_sees_the_trajectory(pipe):
    """Batch [source, unconditional, conditional], the source at the level of the step."""
    inversion, seen, told = inverted(3), [], []
    hooks = (pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0])),
             pipe.unet.down_blocks[0].register_forward_pre_hook(
                 lambda module, args, kw: told.append(kw["encoder_hidden_states"]), with_kwargs=True))  # fmt: skip
    edited(pipe, inversion, negative_prompt="a bird")
    for hook in hooks:
        hook.remove()
    expected = encode_prompt(pipe, ["", "a bird", PROMPTS[1]]).embeds
    for z, texts, level in zip(seen, told, (3, 2, 1), strict=True):
        assert len(z) == 3 and torch.equal(z[1], z[2])
        torch.testing.assert_close(z[:1], inversion.trajectory[level])
        torch.testing.assert_close(texts, expected)
    torch.testing.assert_close(seen[0][1:2], inversion.noise)


def test_what_an_inversion_brings_along(pipe):
    """Embeddings take the place of the negative prompt. There is no source branch: corrections of one are left out,
    guidance of one is refused."""
    embeds = encode_prompt(pipe, ["a small dog"]).embeds
    found = inverted(3, uncond_embeds=embeds.expand(3, 1, *embeds.shape[1:]))
    told, plain = edited(pipe, inverted(3), negative_prompt="a small dog"), edited(pipe, inverted(3))
    assert torch.equal(edited(pipe, found, negative_prompt="a bird"), told) and not torch.equal(plain, told)
    assert torch.equal(edited(pipe, inverted(3, corrections=torch.ones(3, 1, 4, 16, 16))), plain)
    refuses("take inversion ddim", edited, pipe, inverted(3, step=partial(nmg.step)))
