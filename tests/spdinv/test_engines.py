"""What holds for every engine: sampling written out, equal prompts, branches, hooks that come off, attention maps."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from common.ddim import ddim_step, make_schedule
from common.pipelines import encode_prompt, predict_noise
from spdinv import infer
from spdinv.attention_maps import Recorder
from spdinv.engines import ENGINES, p2p, pnp
from spdinv.engines.attention import hooked, layers
from spdinv.inversions.result import Inversion
from spdinv.sampling import Drawing
from tests.refusing import refuses
from tests.spdinv.toy import PROMPTS, Onlooker, inverted, random
from tests.tiny import tiny_sd, tiny_sdxl, tiny_tokenizer

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


MAPPED = ["a red cat", "a blue xyz cat"]


def test_maps_are_means_over_calls_and_heads_and_sums_over_a_words_tokens():
    recorder, calls = Recorder("p2p"), [torch.rand(4, 2, 24, 77) for _ in range(3)]
    refuses("no cross-attention map", recorder.words, tiny_tokenizer(), MAPPED, (4, 6))
    for maps in calls:
        assert recorder.edit_cross(maps) is maps
    recorder.edit_cross(torch.rand(4, 2, 6, 77))
    recorder.edit_cross(torch.rand(1, 2, 24, 77))  # a call for the source alone, as noise map guidance has
    found, mean = recorder.words(tiny_tokenizer(), MAPPED, (4, 6)), sum(calls).mean(1) / 3
    tokens = {"source": {"a": [1], "red": [2], "cat": [3]},
              "target": {"a": [1], "blue": [2], "xyz": [3, 4, 5], "cat": [6]}}  # fmt: skip
    for branch, item in (("source", 2), ("target", 3)):
        words, by_size = found[branch]
        assert words == list(tokens[branch]) and list(by_size) == [(4, 6), (2, 3)]
        for word, word_map in zip(words, by_size[4, 6], strict=True):
            naive = sum(mean[item, :, token] for token in tokens[branch][word])
            torch.testing.assert_close(word_map, naive.reshape(4, 6))


def test_the_maps_shown_are_those_after_the_engines_control(pipe, monkeypatch):
    edited = []
    original = p2p.PromptToPrompt.edit_cross

    def spy(self, maps):
        out = original(self, maps)
        edited.append(out[3].mean(0).clone())
        return out

    monkeypatch.setattr(p2p.PromptToPrompt, "edit_cross", spy)
    recorder, control = Recorder("p2p"), {"cross_replace_steps": 1.0, "equalizer": {"blue": 5.0}}
    with hooked(pipe.unet, recorder, layers(pipe.unet, "attn2")):
        ENGINES["p2p"](pipe, make_schedule(pipe.scheduler, 1), inverted(1), MAPPED, **control)
    assert len(edited) == 7
    fine = torch.stack([maps for maps in edited if len(maps) == 256]).mean(0)
    torch.testing.assert_close(recorder.sums[256][1] / recorder.counts[256], fine)


@pytest.mark.parametrize("engine, flags, branches", [
    ("none", [], ["source"]),
    ("p2p", ["--substruct_words", "cat", "cat", "--blended_words", "red", "blue"], ["source", "target"]),
    ("masactrl", ["--start_step", "1", "--mask_words", "cat", "cat"], ["source", "target"]),
    ("masactrl", ["--start_step", "1", "--source_mask", "MASK", "--target_mask", "MASK"], ["source", "target"]),
    ("pnp", ["--inversion_steps", "9", "--preset", "as_released"], ["target"]),
])  # fmt: skip
def test_every_engine_and_its_attention_maps(tiny_folder, tmp_path, engine, flags, branches):
    output, picture = tmp_path / "out", tmp_path / "in.png"
    Image.effect_noise((64, 64), 90).save(picture)
    base = ["--pretrained_model_name_or_path", str(tiny_folder), "--image_path", str(picture), "--output_dir",
            str(output), "--num_inference_steps", "3", "--spd_rounds", "1", "--engine", engine, "--source_prompt",
            "a red cat on grass", "--target_prompt", "a blue cat on grass"]  # fmt: skip
    flags = [str(picture) if flag == "MASK" else flag for flag in flags]
    infer.main([*base, *flags, "--save_attention"])
    metrics = json.loads((output / "metrics.json").read_text())
    assert len(metrics["rounds"]) == 3 and metrics["reconstruction"]["psnr"] > 0
    with safe_open(output / "attention.safetensors", "pt") as file:
        words = {branch: json.loads(text) for branch, text in file.metadata().items()}
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    assert words == {branch: ["a", {"source": "red", "target": "blue"}[branch], *"cat on grass".split()]
                     for branch in branches}  # fmt: skip
    assert shapes == {f"{b}_{n}x{n}": [5, n, n] for b in branches for n in (16, 8, 4)}
    sheet = Image.open(output / "attention.png")
    assert sheet.width > 6 * 160 and sheet.height > len(branches) * 3 * 160
    if engine == "none":  # one engine is enough to see that what is stale goes
        infer.main(base)
        assert not list(output.glob("attention*"))
