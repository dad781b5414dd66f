"""The extras of SPDInv's released code, each against a naive reading, and the two presets as they are defined."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv import extras, infer, options
from spdinv.editing import edit_picture, thin
from spdinv.inversions import ddim, nmg, proximal
from spdinv.inversions.result import Inversion
from tests.refusing import refuses
from tests.spdinv.toy import PROMPTS, inverted, random
from tests.tiny import tiny_sd, tiny_sdxl


def applied(pipe, inversion, engine, **switches):
    return extras.apply(pipe, inversion, encode_prompt(pipe, PROMPTS[:1]), engine, **switches)


NEGATIVE = "ugly, blurry, black, low res, unrealistic"
NOTHING = {"negative_prompt_embedding": False, "proximal": False, "inversion_guidance": False, "color_fix": False}
PLAIN = {"p2p": {"controller": "refine", "cross_replace_steps": 0.4, "self_replace_steps": 0.6,
                 "source_guidance_scale": None},
         "masactrl": {"start_step": 4, "start_layer": None, "inject_uncond": "src", "inject_cond": "src",
                      "source_guidance_scale": None},
         "pnp": {"feature_steps": 0.8, "attention_steps": 0.5, "negative_prompt": NEGATIVE,
                 "source_latents": "trajectory"}}  # fmt: skip
LITERALLY = [
    *(("inversion_only", engine, {}, {}) for engine in PLAIN),
    ("as_released", "p2p", {"cross_replace_steps": 0.8},
     {"negative_prompt_embedding": True, "proximal": True, "proximal_mode": "soft", "proximal_quantile": 0.7,
      "inversion_guidance": True, "proximal_recon_lr": 1.0, "proximal_recon_t": 400, "proximal_dilation": 1}),
    ("as_released", "masactrl", {"source_guidance_scale": 1.0},
     {"negative_prompt_embedding": True, "proximal": True, "proximal_mode": "soft", "proximal_quantile": 0.6}),
    ("as_released", "pnp", {}, {"color_fix": True}),
]  # fmt: skip


PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def resolved(capsys, *flags):
    infer.main(["--print_config", *flags])
    return json.loads(capsys.readouterr().out)["method"]


@pytest.mark.parametrize("preset, engine, settings, switches", LITERALLY)
def test_presets_to_the_letter(capsys, preset, engine, settings, switches):
    method = resolved(capsys, "--engine", engine, "--preset", preset)
    assert method["engine_options"] == {**PLAIN[engine], **settings}
    assert {name: method["extras"][name] for name in {**NOTHING, **switches}} == {**NOTHING, **switches}
    assert (method["guidance_scale"], method["num_inference_steps"]) == (7.5, 50)
    if preset == "inversion_only":
        assert resolved(capsys, "--engine", engine) == method  # with no preset


def test_flags_go_before_presets_and_presets_before_the_picturebooks_values(capsys, monkeypatch):
    for inversion, source in (("ddim", "reconstruction"), ("direct", "trajectory"), ("spd", "trajectory")):
        method = resolved(capsys, "--engine", "pnp", "--inversion", inversion)
        assert method["engine_options"]["source_latents"] == source
    monkeypatch.setattr(options, "PICTUREBOOK_PRESET", {"cross_replace_steps": 0.5, "self_replace_steps": 0.3,
                                                        "spd_rounds": 9})  # fmt: skip
    assert resolved(capsys)["engine_options"]["cross_replace_steps"] == 0.5
    method = resolved(capsys, "--preset", "as_released", "--no-proximal", "--color_fix")
    assert method["engine_options"] == {**PLAIN["p2p"], "cross_replace_steps": 0.8, "self_replace_steps": 0.3}
    assert method["inversion_options"]["rounds"] == 9
    assert [method["extras"][name] for name in NOTHING] == [True, False, True, True]


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_as_released_the_source_branch_ends_at_the_picture(make):
    """P2P: late latents of the source are put back onto the trajectory, so it ends at z_0; plain P2P does not."""
    pipe, ends = make(), {}
    flags = ["--num_inference_steps", "3", "--spd_rounds", "1", "--print_config"]
    for preset in ("as_released", "inversion_only"):
        method = options.method_of(infer.parse([*flags, "--preset", preset]), "spd", "p2p")
        edit = edit_picture(pipe, PICTURE, *PROMPTS, method)
        ends[preset] = (edit.reconstructed_latents - edit.latents).abs().max()
    assert ends["as_released"] < 1e-5 and ends["inversion_only"] > 1e-2


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
@pytest.mark.parametrize("engine, told", [("p2p", [0, 0]), ("none", [0, 0]), ("masactrl", [0, 1])])
def test_source_prompt_as_unconditional_text(make, engine, told):
    """In both branches; under MasaCtrl, as released, in the source's alone (the target keeps the null text)."""
    pipe = make()
    inversion = applied(pipe, inverted(3), engine, negative_prompt_embedding=True)
    texts = encode_prompt(pipe, [PROMPTS[0], ""])
    pair = texts[told]
    torch.testing.assert_close(inversion.uncond_embeds[2].expand_as(pair.embeds), pair.embeds)
    if pair.added:
        torch.testing.assert_close(inversion.uncond_pooled.expand(2, -1), pair.added["text_embeds"])
    assert inversion.step is None and torch.equal(inversion.trajectory, inverted(3).trajectory)


@pytest.mark.parametrize("engine, switches, settings", [
    ("p2p", {"inversion_guidance": True, "proximal_recon_lr": 0.5, "proximal_recon_t": 300},
     {"mode": "none", "branches": "all", "guidance": "inversion", "recon_lr": 0.5, "recon_t": 300}),
    *((engine, {"proximal": True, "proximal_mode": "hard", "proximal_quantile": 0.6},
       {"mode": "hard", "quantile": 0.6, "branches": branches, "guidance": "none"})
      for engine, branches in (("p2p", "all"), ("masactrl", "target"))),
])  # fmt: skip
def test_each_switch_is_its_own(pipe, engine, switches, settings):
    assert applied(pipe, inversion := inverted(3), "p2p") is inversion
    only = applied(pipe, inversion, engine, **switches)
    assert only.step.func is proximal.step and only.uncond_embeds is None and only.step.keywords == settings


@pytest.mark.parametrize("step", [nmg.step, lambda *a: None])
def test_a_step_that_is_no_guided_one_is_not_overruled(pipe, step):
    refuses("samples in its own way", applied, pipe, inverted(3, step=partial(step)), "p2p", proximal=True)


def naive_wavelet(picture, levels=5):
    """(details, low frequencies) of a picture [3,H,W], pixel by pixel, float64."""
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    high, low = np.zeros_like(picture), picture
    for level in range(levels):
        radius = 2**level
        padded = np.pad(low, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
        blurred = np.zeros_like(low)
        for i, j in np.ndindex(3, 3):
            rows, columns = (slice(k * radius, k * radius + n) for k, n in zip((i, j), low.shape[1:], strict=True))
            blurred += weights[i, j] * padded[:, rows, columns]
        high, low = high + low - blurred, blurred
    return high, low


def test_color_fix_keeps_details_takes_low_frequencies_and_is_for_the_edited_picture_alone(pipe):
    edited, source = random(2, 1, 3, 24, 40).double().sigmoid()
    expected = np.clip(naive_wavelet(edited[0].numpy())[0] + naive_wavelet(source[0].numpy())[1], 0, 1)
    torch.testing.assert_close(extras.color_fix(edited, source)[0], torch.from_numpy(expected))
    torch.testing.assert_close(extras.color_fix(edited, edited), edited)
    dark = edited / 2
    torch.testing.assert_close(extras.color_fix(dark + 0.4, dark), dark)  # a shift of all colours is undone
    plain, fixed = (edit_picture(pipe, PICTURE, *PROMPTS, options.Method("ddim", "p2p", 2, extras={"color_fix": on}))
                    for on in (False, True))  # fmt: skip
    assert torch.equal(fixed.reconstruction, plain.reconstruction)
    torch.testing.assert_close(fixed.edited, extras.color_fix(plain.edited, PICTURE))
    assert (fixed.edited - plain.edited).abs().max() > 0.01


def test_the_levels_of_the_sampler_are_taken_out_of_a_finer_inversion(pipe):
    fine, schedule = (make_schedule(pipe.scheduler, steps) for steps in (999, 50))
    assert fine.timesteps == list(range(999, 0, -1))
    every = Inversion(torch.arange(1000.0).reshape(1000, 1, 1, 1, 1), torch.ones(999, 1, dtype=torch.int64), {})
    found = thin(every, fine, schedule)
    assert found.trajectory.flatten().tolist() == [0, *range(1, 982, 20)]  # z_0, then the timesteps sampled at
    assert found.rounds.flatten().tolist() == [1] + [20] * 49
    method = options.Method("ddim", "none", 3, extras={}, inversion_steps=9)
    edit = edit_picture(pipe, PICTURE, PROMPTS[0], None, method)
    cond = encode_prompt(pipe, PROMPTS[:1])
    whole = ddim.invert(pipe, make_schedule(pipe.scheduler, 9), edit.latents, cond).trajectory
    torch.testing.assert_close(edit.inversion.trajectory, whole[[0, 1, 4, 7]])  # timesteps 1, 334, 667
