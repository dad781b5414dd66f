"""What holds for every inversion: names, images of a batch, costs."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch

import spdinv
from common.runs import make_parser
from spdinv import options
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import LATENTS, TOLD, toy_cond, toy_pipe, toy_schedule

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
