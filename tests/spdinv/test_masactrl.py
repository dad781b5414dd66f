"""MasaCtrl against naive readings: whose keys and values are seen, where and when, with masks; hooks come off."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv.engines import ENGINES, masactrl
from spdinv.engines.attention import layers, token_grid
from tests.spdinv.toy import PROMPTS, STABLE, XL, inverted, layout, random
from tests.tiny import tiny_sd, tiny_sdxl


def control_of(pipe, steps=50, latent_size=(16, 16), **options):
    return masactrl.MutualSelfAttention(pipe, PROMPTS, steps, latent_size, **options)


def naive_attention(query, keys, values):
    """One head: query [n, d], keys and values [m, d], float64, number by number."""
    out = torch.zeros(len(query), values.shape[1], dtype=torch.float64)
    for i, q in enumerate(query):
        weights = [math.exp(sum(a * b for a, b in zip(q.tolist(), k.tolist(), strict=True)) / len(q) ** 0.5)
                   for k in keys]  # fmt: skip
        for weight, value in zip(weights, values, strict=True):
            out[i] += weight / sum(weights) * value
    return out


def tensors(heads, tokens):
    """Query, key and value of four items."""
    return [random(4, heads, tokens, 3, seed=seed).double() for seed in range(3)]


def run_edit(control, query, key, value):
    return F.scaled_dot_product_attention(*control.edit_self(query.clone(), key.clone(), value))


@pytest.mark.parametrize("inject_uncond", ["src", "joint", "none"])
@pytest.mark.parametrize("inject_cond", ["src", "joint", "none"])
def test_the_target_sees_what_it_is_told_to(pipe, inject_uncond, inject_cond):
    control = control_of(pipe, inject_uncond=inject_uncond, inject_cond=inject_cond)
    query, key, value = tensors(2, 6)
    out = run_edit(control, query, key, value)
    seen = {"src": lambda half: [half], "joint": lambda half: [half, half + 1], "none": lambda half: [half + 1]}
    items = [[0], seen[inject_uncond](0), [2], seen[inject_cond](2)]
    for item, head in torch.cartesian_prod(torch.arange(4), torch.arange(2)).tolist():
        keys, values = (torch.cat([x[other, head] for other in items[item]]) for x in (key, value))
        torch.testing.assert_close(out[item, head], naive_attention(query[item, head], keys, values))


@pytest.mark.parametrize("inject, others", [("src", [0]), ("joint", [0, 1])])
def test_given_masks_keep_foreground_and_background_apart(pipe, inject, others):
    """16 tokens under a 16x16 latent; masks of a 64-pixel picture; own keys are never masked."""
    source, target = torch.zeros(64, 64), torch.zeros(64, 64)
    source[:32], target[:, 16:] = 1, 1
    control = control_of(pipe, masks=(source, target), inject_uncond=inject, inject_cond=inject)
    query, key, value = tensors(1, 16)
    out = run_edit(control, query, key, value)
    in_source, in_target = (torch.tensor(rows).flatten() for rows in (
        [[1] * 4, [1] * 4, [0] * 4, [0] * 4], [[0, 1, 1, 1]] * 4))  # fmt: skip
    for half in (0, 2):
        torch.testing.assert_close(out[half, 0], naive_attention(query[half, 0], key[half, 0], value[half, 0]))
        for token in range(16):
            kept = in_source == in_target[token]
            keys, values = (torch.cat([x[half, 0][kept], *(x[half + o, 0] for o in others[1:])]) for x in (key, value))
            expected = naive_attention(query[half + 1, 0, token : token + 1], keys, values)
            torch.testing.assert_close(out[half + 1, 0, token : token + 1], expected)
    lacking = control_of(pipe, masks=(torch.zeros(8, 8), torch.ones(8, 8)))  # no foreground in the source: all is seen
    torch.testing.assert_close(run_edit(lacking, query, key, value), run_edit(control_of(pipe), query, key, value))


def test_masks_read_off_the_words_of_this_step(pipe):
    """Token maps of source and target, summed over a word's tokens and over layers, scaled to [0,1], above 0.1."""
    control = control_of(pipe, mask_words=("red", "grass"))  # token 2 of the source; token 6 of the target
    control.step = 4
    assert control.wants_cross(256) and not control.wants_cross(64)
    assert control.masks_at(256) is None  # no map yet: unmasked
    maps = [torch.rand(4, 2, 256, 77) ** 8 for _ in range(2)]
    for layer in maps:
        assert control.edit_cross(layer) is layer
    for mask, item, token in zip(control.masks_at(64), (2, 3), (2, 6), strict=True):
        total = sum(layer[item, :, :, token].mean(0) for layer in maps).reshape(16, 16)
        scaled = (total - total.min()) / (total.max() - total.min())
        assert torch.equal(mask, (scaled >= 0.1)[::2, ::2].flatten()) and 0 < mask.float().mean() < 1
    control.seen.add("self-attention")
    control.end_step()
    assert control.masks_at(64) is None


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_layers_are_counted_as_they_are_called(make, kind):
    pipe, order = make(), []
    for name, module in pipe.unet.named_modules():
        if name.endswith(f".{kind}"):
            module.register_forward_hook(lambda *_, name=name: order.append(f"{name}.processor"))
    cond = encode_prompt(pipe, PROMPTS[:1])
    pipe.unet(random(1, 4, 16, 16), 1, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added)
    assert layers(pipe.unet, kind) == order


def test_published_layouts_start_where_the_papers_do():
    stable, xl = SimpleNamespace(unet=layout(**STABLE)), SimpleNamespace(unet=layout(**XL))
    assert len(layers(stable.unet, "attn1")) == len(layers(stable.unet, "attn2")) == 16
    expected = [f"up_blocks.{block}.attentions.{i}.transformer_blocks.0.attn1.processor"
                for block in (2, 3) for i in range(3)]  # fmt: skip
    assert control_of(stable, latent_size=(64, 64)).layers == expected  # layers 10 to 15
    assert control_of(stable, latent_size=(64, 64), start_layer=13).layers == expected[3:]
    assert len(layers(xl.unet, "attn1")) == 70
    assert len(control_of(xl, latent_size=(128, 128)).layers) == 70 - 44  # the first of the authors' three for SDXL
    assert len(control_of(SimpleNamespace(unet=tiny_sd().unet)).layers) == 7 - 4
    assert [token_grid(tokens, (64, 96)) for tokens in (64 * 96, 32 * 48, 96)] == [(64, 96), (32, 48), (8, 12)]
    assert [token_grid(tokens, (25, 40)) for tokens in (1000, 260, 70, 20)] == [(25, 40), (13, 20), (7, 10), (4, 5)]


def test_only_late_layers_and_late_steps_are_touched(pipe, monkeypatch):
    seen = []
    original = masactrl.MutualSelfAttention.edit_self

    def spy(self, *tensors):
        seen.append((self.step, tensors[0].shape[2]))
        return original(self, *tensors)

    monkeypatch.setattr(masactrl.MutualSelfAttention, "edit_self", spy)
    ENGINES["masactrl"](pipe, make_schedule(pipe.scheduler, 4), inverted(4), PROMPTS, start_step=2, start_layer=4)
    assert seen == [(step, tokens) for step in (2, 3) for tokens in (64, 256, 256)]
