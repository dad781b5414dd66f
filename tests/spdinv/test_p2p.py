"""Prompt-to-Prompt against naive readings: what is done to a map, when, at which layers; and that hooks come off."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.runs import InputError
from spdinv.engines import ENGINES, p2p
from spdinv.engines.attention import hooked, level_size
from tests.refusing import refuses
from tests.spdinv.toy import BLIND, PROMPTS, Onlooker, inverted, layout, random
from tests.tiny import tiny_sd

BLEND = {"blended_words": ("red", "blue"), "equalizer": {"blue": 2.0}}


def control_of(pipe, steps=50, latent_size=(16, 16), prompts=PROMPTS, **options):
    return p2p.PromptToPrompt(pipe, prompts, steps, latent_size, **options)


def naive_cross(maps, mapper, aligned, factors, alpha):
    """[4, H, Q, L], element by element, float64."""
    out = maps.clone()
    for h, q, n in np.ndindex(*maps.shape[1:]):
        target = maps[3, h, q, n]
        edited = maps[2, h, q, mapper[n]] if aligned[n] else target
        out[3, h, q, n] = alpha[n] * edited * factors[n] + (1 - alpha[n]) * target
    return out


def test_refine_and_reweight_during_the_cross_replace_steps_only(pipe):
    control = control_of(pipe, **BLEND)
    maps = torch.rand(4, 2, 16, 77, dtype=torch.float64)
    # start a red cat on grass end -> start a blue cat on the grass end
    mapper = [0, 1, -1, 3, 4, -1, 5, 6, *range(8, 77)]
    aligned = [index >= 0 for index in mapper]
    factors = [2.0 if n == 2 else 1.0 for n in range(77)]
    for step, alpha in [(0, 1), (19, 1), (20, 0), (49, 0)]:
        control.step = step
        expected = naive_cross(maps, mapper, aligned, factors, [alpha] * 77)
        torch.testing.assert_close(control.edit_cross(maps.clone()), expected)
    # as released, LocalBlend sees the target maps after replacing and reweighting
    control, maps = control_of(pipe, **BLEND), torch.rand(4, 2, 256, 77)
    out, total = control.edit_cross(maps.clone()), control.local_blend.total[0]
    for seen, item in zip(total, (maps[2], out[3]), strict=True):
        torch.testing.assert_close(seen, item[..., 2].sum(0))
    assert not torch.allclose(total[1], maps[3, ..., 2].sum(0))


def test_replace_takes_the_source_maps_and_a_word_may_keep_its_own_longer(pipe):
    maps = torch.rand(4, 2, 16, 77, dtype=torch.float64)
    out = control_of(pipe, prompts=["a red cat", "a xyz cat"], controller="replace").edit_cross(maps.clone())
    torch.testing.assert_close(out[3, ..., 2:5], maps[2, ..., 2:3].expand(-1, -1, 3) / 3)
    torch.testing.assert_close(out[3, ..., 5:], maps[2, ..., 5:])
    assert torch.equal(out[:3], maps[:3])
    out = control_of(pipe, cross_replace_steps={"default_": 0.0, "cat": 1.0}).edit_cross(maps.clone())
    changed = (out[3] != maps[3]).any(0).any(0).nonzero().flatten().tolist()
    assert changed == [3] and torch.equal(out[3, ..., 3], maps[2, ..., 3])


def test_self_replacement_is_the_source_map_on_the_target_values(pipe):
    control = control_of(pipe)
    query, key, value = (random(4, 2, 9, 5, seed=s) for s in range(3))
    maps = torch.softmax(query @ key.mT / 5**0.5, -1)
    maps[3] = maps[2]
    out = torch.nn.functional.scaled_dot_product_attention(*control.edit_self(query.clone(), key.clone(), value))
    torch.testing.assert_close(out, maps @ value)


def fake_unet(*levels):
    return SimpleNamespace(attn_processors={f"down_blocks.{i}.attentions.0.attn2.processor": None for i in levels})


def test_self_replacement_window_and_sizes():
    pipe64 = SimpleNamespace(unet=fake_unet(0, 1, 2), tokenizer=tiny_sd().tokenizer)
    control = control_of(pipe64, latent_size=(64, 64))
    for step in range(50):
        control.step = step
        assert [control.wants_self(n * n) for n in (64, 32, 16, 8)] == [False, *[step < 30] * 3]
        assert all(control.wants_cross(n * n) == (step < 20) for n in (64, 32, 16, 8))


@pytest.mark.parametrize("levels, latent_size, half, quarter", [
    ((0, 1, 2), (64, 64), (32, 32), (16, 16)),  # SD 1.x at 512
    ((0, 1, 2), (96, 96), (48, 48), (24, 24)),  # SD 2.x at 768
    ((1, 2), (128, 128), (64, 64), (32, 32)),  # SDXL at 1024
    ((0, 1), (16, 16), (16, 16), (16, 16)),  # picturebook
    ((0, 1, 2), (64, 96), (32, 48), (16, 24)), ((0, 1, 2), (40, 40), (20, 20), (20, 20)),
    ((1, 2), (16, 16), (8, 8), (8, 8)),  # a small SDXL: the finest it has
])  # fmt: skip
def test_official_sizes_at_64_and_sensible_ones_elsewhere(levels, latent_size, half, quarter):
    assert [level_size(fake_unet(*levels), latent_size, level) for level in (1, 2)] == [half, quarter]


def naive_blend(z, maps, tokens, size, spared=None):
    """z [2,4,h,w]; maps: one [2, heads, mh*mw, L] per layer and step; tokens per prompt; numpy, pixel by pixel."""

    def mask_of(words, pool):
        masks = []
        for item in range(2):
            total = sum(m[item][..., words[item]].sum(-1).mean(0) for m in maps).reshape(size)
            if pool:
                padded = np.pad(total, 1, constant_values=-np.inf)
                total = np.array([[padded[i : i + 3, j : j + 3].max() for j in range(size[1])] for i in range(size[0])])
            factor = z.shape[2] // size[0]
            total = total.repeat(factor, 0).repeat(factor, 1)
            masks.append(total / total.max() > 0.3)
        return masks[0] | masks[1]

    mask = mask_of(tokens, True)
    if spared:
        mask &= ~mask_of(spared, False)
    out = z.copy()
    out[1] = np.where(mask, z[1], z[0])
    return out, mask


BOTH = [[2], [2, 3]]


@pytest.mark.filterwarnings("ignore:invalid value")  # of a missing word: 0 / 0 in numpy
@pytest.mark.parametrize("tokens, spared", [
    (BOTH, None), (BOTH, [[5], [6, 7]]), ([[], [2, 3]], None), ([[2], []], None),
])  # fmt: skip
def test_local_blend_pastes_the_source_outside_the_words(tokens, spared):
    generator = np.random.default_rng(0)
    words, other = torch.zeros(2, 77), torch.zeros(2, 77)
    for item in range(2):
        words[item, tokens[item]] = 1
        if spared:
            other[item, spared[item]] = 1
    blend = p2p.LocalBlend(words, (8, 8), steps=10, substruct_words=other if spared else None)
    hot = generator.random((2, 1, 64, 77)) > 0.97
    maps = []
    for step in range(1, 5):
        z = generator.normal(size=(2, 4, 16, 16))
        for _ in range(3):  # layers
            layer = hot + 0.3 * generator.random((2, 2, 64, 77))
            maps.append(layer)
            blend.add(torch.from_numpy(layer))
        out = blend(torch.from_numpy(z)).numpy()
        expected, mask = naive_blend(z, maps, tokens, (8, 8), spared)
        assert 0 < mask.mean() < 1
        if step <= 2:  # int(0.2 * 10): untouched up to and including the second call
            assert np.array_equal(out, z)
        else:
            np.testing.assert_allclose(out, expected)


def test_a_hook_that_catches_nothing_raises(pipe, monkeypatch):
    with pytest.raises(InputError, match="attn1"), hooked(layout(**BLIND), Onlooker()):
        pass
    schedule, nowhere = make_schedule(pipe.scheduler, 2), (1, 1)
    for sizes, options, message in (([(16, 16), (5, 7)], BLEND, "LocalBlend"), ([nowhere] * 2, {}, "self-attention")):
        monkeypatch.setattr(p2p, "level_size", lambda unet, latent_size, level, sizes=sizes: sizes[level - 1])
        refuses(message, ENGINES["p2p"], pipe, schedule, inverted(2), PROMPTS, **options)
