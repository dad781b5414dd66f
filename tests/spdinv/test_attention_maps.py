"""Attention maps: what is summed, that looking changes nothing, and what is written."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from common.ddim import make_schedule
from spdinv import infer
from spdinv.attention_maps import Recorder
from spdinv.engines import ENGINES, p2p
from spdinv.engines.attention import hooked, layers
from tests.refusing import refuses
from tests.spdinv.toy import inverted
from tests.tiny import tiny_tokenizer

PROMPTS = ["a red cat", "a blue xyz cat"]


def test_maps_are_means_over_calls_and_heads_and_sums_over_a_words_tokens():
    recorder, calls = Recorder("p2p"), [torch.rand(4, 2, 24, 77) for _ in range(3)]
    refuses("no cross-attention map", recorder.words, tiny_tokenizer(), PROMPTS, (4, 6))
    for maps in calls:
        assert recorder.edit_cross(maps) is maps
    recorder.edit_cross(torch.rand(4, 2, 6, 77))
    recorder.edit_cross(torch.rand(1, 2, 24, 77))  # a call for the source alone, as noise map guidance has
    found, mean = recorder.words(tiny_tokenizer(), PROMPTS, (4, 6)), sum(calls).mean(1) / 3
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
        ENGINES["p2p"](pipe, make_schedule(pipe.scheduler, 1), inverted(1), PROMPTS, **control)
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
