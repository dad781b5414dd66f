"""What holds for every inversion: names, images of a batch, costs; on networks identities, sizes, formats, engines."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

import spdinv
from common.ddim import make_schedule
from common.pipelines import encode_prompt
from common.runs import make_parser
from spdinv import options
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import LATENTS, TOLD, random, toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd, tiny_sdxl

# Few rounds, and thresholds at which some images of a batch stop before others.
QUICK = {
    "spd": [
        dict(rounds=7, learning_rate=1e-2, threshold=3e-4),
        dict(solver="sgd", guess="t-1", rounds=9, learning_rate=0.05, threshold=0.2),
        dict(solver="anderson", threshold=1e-5),
        dict(solver="descent", threshold=1e-5),
    ],
    "null_text": [dict(inner_steps=4, threshold=1.0, learning_rate=0.2)],
    "aidi": [dict(threshold=3e-5), dict(mode="empirical", threshold=3e-4)],
    "fixed_point": [dict(threshold=3e-5)],
    "exact": [dict(threshold=1e-5)],
}
CASES = [(name, case) for name in INVERSIONS for case in QUICK.get(name, [{}])]


@pytest.mark.parametrize("kind, entries, function", [
    ("inversions", INVERSIONS, "invert"), ("engines", ENGINES, "edit")])  # fmt: skip
def test_an_entry_says_what_its_function_takes(kind, entries, function):
    """Names, defaults and flags stand in the entry, because the function's file is heavy to import."""
    files = {path.stem for path in (Path(spdinv.__file__).parent / "inversions").glob("*.py")}
    assert files - {"__init__", "residual", "result", "solvers"} == set(INVERSIONS)
    parser = make_parser("")
    options.add_method_flags(parser)
    flags = {action.dest for action in parser._actions}
    for name, entry in entries.items():
        taken = inspect.signature(getattr(importlib.import_module(f"spdinv.{kind}.{name}"), function)).parameters
        for one in entry.settings:
            assert one.flag in flags
            if one.name in taken:  # or else among **settings, which a class or a step takes
                assert taken[one.name].default == (one.default if one.name != "source_latents" else "trajectory")
            else:
                assert any(own.kind is own.VAR_KEYWORD for own in taken.values()), (name, one.name)
        assert entry.title


@pytest.mark.parametrize("name, case", CASES)
def test_an_image_in_a_batch_behaves_as_if_alone(name, case):
    schedule, pipe, cond = toy_schedule(6), toy_pipe(), toy_cond(TOLD)
    together = INVERSIONS[name](pipe, schedule, LATENTS, cond, **case)
    assert not case or len(together.rounds.unique(dim=1).T) > 1  # they stop at different rounds
    for i in range(3):
        own, alone = together.picture(i), INVERSIONS[name](pipe, schedule, LATENTS[i : i + 1], cond[i], **case)
        assert torch.equal(own.rounds, alone.rounds) and own.cost["forward"] == together.cost["forward"] / 3
        for field in ("trajectory", "uncond_embeds", "corrections", "companion"):
            ours, theirs = getattr(own, field), getattr(alone, field)
            assert (ours is None) == (theirs is None), field
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name, case", CASES)
def test_the_network_is_not_asked_the_same_twice_and_its_answers_are_counted(name, case):
    pipe, asked = toy_pipe(), []

    def note(module, args, kwargs):
        for latent, text in zip(args[0], kwargs["encoder_hidden_states"], strict=True):
            asked.append((int(args[1]), latent.detach().numpy().tobytes(), text.detach().numpy().tobytes()))

    pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    inversion = INVERSIONS[name](pipe, toy_schedule(6), LATENTS, toy_cond(TOLD), **case)
    again = 6 * len(TOLD) if name == "null_text" else 0  # the prompt, with what ends a level, as released
    assert len(asked) == len(set(asked)) + again == inversion.cost["forward"] > 0
    assert inversion.cost["backward"] == sum(pipe.unet.gradients) and inversion.cost["seconds"] > 0
    assert pipe.unet.weight.requires_grad and pipe.unet.weight.grad is None


SOURCE, TARGET = "a red cat on grass", "a blue dog on grass"
STEPS = 2
# Few rounds: these tests look at what surrounds them.
FEW = {"spd": {"rounds": 1}, "aidi": {"rounds": 1}, "fixed_point": {"rounds": 1}, "null_text": {"inner_steps": 2},
         "exact": {"rounds": 2}}  # fmt: skip
NO_ROUNDS = [("spd", {"rounds": 0}), ("spd", {"rounds": 0, "solver": "anderson"}),
             ("spd", {"rounds": 0, "solver": "descent"}), ("aidi", {"rounds": 0}), ("exact", {"rounds": 0}),
             ("fixed_point", {"rounds": 0, "guidance_scale": 1.0}), ("null_text", {"inner_steps": 0})]  # fmt: skip


@pytest.fixture(scope="module")
def pipes():
    return {"sd": tiny_sd(), "v": tiny_sd(prediction_type="v_prediction"), "sdxl": tiny_sdxl()}


def inverted(pipe, name, latents, **settings):
    schedule = make_schedule(pipe.scheduler, STEPS)
    settings = FEW.get(name, {}) | settings
    return schedule, INVERSIONS[name](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]), **settings)


@pytest.mark.parametrize("name, settings", NO_ROUNDS)
@pytest.mark.parametrize("kind", ["sd", "v"])
def test_no_rounds_is_ddim_inversion_bit_for_bit(pipes, name, settings, kind):
    latents = random(1, 4, 8, 8)
    _, ddim = inverted(pipes[kind], "ddim", latents)
    _, none = inverted(pipes[kind], name, latents, **settings)
    _, some = inverted(pipes[kind], name, latents)
    assert torch.equal(ddim.trajectory, none.trajectory) and none.rounds.sum() == 0 and some.rounds.sum() > 0


@pytest.mark.parametrize("name", INVERSIONS)
def test_sizes_and_prediction_types(pipes, name):
    """Latents that are no square, a v-prediction model, and the way back with two prompts."""
    latents = random(1, 4, 8, 12)
    schedule, inversion = inverted(pipes["v"], name, latents)
    assert inversion.trajectory.shape == (STEPS + 1, 1, 4, 8, 12) and inversion.rounds.shape == (STEPS, 1)
    assert torch.equal(inversion.trajectory[0], latents.to(inversion.trajectory))
    drawn = ENGINES["none"](pipes["v"], schedule, inversion, [SOURCE, TARGET])
    assert drawn.shape == (2, 4, 8, 12) and drawn.isfinite().all()


@pytest.fixture(scope="module")
def halves():
    return {dtype: tiny_sd().to(dtype=dtype) for dtype in (torch.bfloat16, torch.float16)}


HALVES = [(name, torch.bfloat16) for name in INVERSIONS]
HALVES += [(name, torch.float16) for name in ("spd", "null_text", "nmg", "edict")]  # gradients, and float64 latents


@pytest.mark.parametrize("name, dtype", HALVES)
def test_half_precision_networks(pipes, halves, name, dtype):
    """The networks may be half as precise; latents and what is optimised stay whole, and end where they would have."""
    half, latents = halves[dtype], random(1, 4, 8, 8)
    _, whole = inverted(pipes["sd"], name, latents)
    schedule, inversion = inverted(half, name, latents)
    assert inversion.trajectory.dtype == (torch.float64 if name == "edict" else torch.float32)
    assert inversion.uncond_embeds is None or inversion.uncond_embeds.isfinite().all()
    assert ENGINES["none"](half, schedule, inversion, [SOURCE, TARGET]).isfinite().all()
    torch.testing.assert_close(inversion.trajectory, whole.trajectory, rtol=0, atol=0.1)
    assert not torch.equal(inversion.trajectory, whole.trajectory)


@pytest.mark.parametrize("name, kind", [(name, "sd") for name in INVERSIONS] + [
    (name, "sdxl") for name in ("null_text", "negative_prompt", "proximal", "nmg")  # these deal in unconditional text
])  # fmt: skip
def test_with_the_source_prompt_the_target_is_drawn_as_the_reconstruction(pipes, name, kind):
    """Direct Inversion and noise map guidance act on the source branch alone: there the target is DDIM inversion's.
    (ProxEdit without its guidance: where nothing is edited at all, rounding decides what counts as edited.)"""
    pipe, latents = pipes[kind], random(1, 4, 8, 8)
    schedule, inversion = inverted(pipe, name, latents, **({"guidance": "none"} if name == "proximal" else {}))
    both = ENGINES["none"](pipe, schedule, inversion, [SOURCE, SOURCE])
    alone = ENGINES["none"](pipe, schedule, inversion, [SOURCE])
    expected = alone
    if name in ("direct", "nmg"):
        expected = ENGINES["none"](pipe, *inverted(pipe, "ddim", latents), [SOURCE])
        assert (alone - expected).abs().max() > 1e-3
    torch.testing.assert_close(both[1:], expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name, engine", [(name, "p2p") for name in INVERSIONS] + [
    (name, "masactrl") for name in ("ddim", "null_text", "proximal", "nmg", "edict", "direct")
])  # fmt: skip
def test_every_inversion_under_the_engines(pipes, name, engine):
    """Attention control sees the guided steps only; the source branch is drawn as without it."""
    pipe, settings = pipes["sd"], {"start_step": 0, "start_layer": 0} if engine == "masactrl" else {}
    schedule, inversion = inverted(pipe, name, random(1, 4, 8, 8))
    before = pipe.unet.attn_processors
    edited = ENGINES[engine](pipe, schedule, inversion, [SOURCE, TARGET], **settings)
    plain = ENGINES["none"](pipe, schedule, inversion, [SOURCE, TARGET])
    if name != "proximal":  # its threshold looks at both branches together
        torch.testing.assert_close(edited[0], plain[0], rtol=0, atol=1e-3)
    assert not torch.allclose(edited[1], plain[1], atol=1e-2)
    assert list(pipe.unet.attn_processors.values()) == list(before.values())
