"""What holds for every inversion: batches, latent sizes, prediction types, number formats, costs, identities."""

import numpy as np
import pytest
import torch

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from spdinv import options
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import toy_cond, toy_pipe, toy_schedule
from tests.tiny import tiny_sd, tiny_sdxl

WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) * 0.5
LATENTS = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, 5, 6)))
MEANS = [0.1, -0.4, 0.8]
SOURCE, TARGET = "a red cat on grass", "a blue dog on grass"

# Few rounds, and thresholds at which some images of a batch stop before others.
QUICK = {
    "spd": [dict(rounds=7, learning_rate=1e-2, threshold=3e-4), dict(solver="anderson", threshold=1e-5)],
    "null_text": [dict(inner_steps=4, threshold=1.0, learning_rate=0.2)],
    "aidi": [dict(threshold=3e-5), dict(mode="empirical", threshold=3e-4)],
    "fixed_point": [dict(threshold=3e-5)],
}
CASES = [(name, case) for name in INVERSIONS for case in QUICK.get(name, [{}])]
STOPS = [(name, case) for name, cases in QUICK.items() for case in cases]
NO_ROUNDS = {"spd": {"rounds": 0}, "aidi": {"rounds": 0}, "fixed_point": {"rounds": 0, "guidance_scale": 1.0},
             "null_text": {"inner_steps": 0}}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return tiny_sd()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_names_are_those_of_the_command_line():
    assert tuple(INVERSIONS) == options.INVERSION_NAMES


@pytest.mark.parametrize("name, case", CASES)
def test_an_image_in_a_batch_behaves_as_if_alone(name, case):
    schedule, pipe, cond = toy_schedule(6), toy_pipe(WEIGHT), toy_cond(MEANS)
    together = INVERSIONS[name](pipe, schedule, LATENTS, cond, **case)
    for i in range(3):
        alone = INVERSIONS[name](pipe, schedule, LATENTS[i : i + 1], cond[i], **case)
        assert torch.equal(alone.rounds[:, 0], together.rounds[:, i])
        for field in ("trajectory", "uncond_embeds", "corrections"):
            one, all_of_them = getattr(alone, field), getattr(together, field)
            assert (one is None) == (all_of_them is None)
            if one is not None:
                torch.testing.assert_close(one[:, 0], all_of_them[:, i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name, case", STOPS)
def test_the_images_above_stop_at_different_rounds(name, case):
    rounds = INVERSIONS[name](toy_pipe(WEIGHT), toy_schedule(6), LATENTS, toy_cond(MEANS), **case).rounds
    assert len({tuple(column) for column in rounds.T.tolist()}) > 1


@pytest.mark.parametrize("name, case", CASES)
def test_cost_counts_what_the_network_really_did(name, case):
    pipe = toy_pipe(WEIGHT)
    inversion = INVERSIONS[name](pipe, toy_schedule(6), LATENTS, toy_cond(MEANS), **case)
    assert inversion.cost["forward"] == sum(images for images, _, _ in pipe.unet.calls)
    assert inversion.cost["backward"] == sum(images for images, _, graded in pipe.unet.calls if graded)
    assert inversion.cost["seconds"] > 0
    assert pipe.unet.weight.grad is None


@pytest.mark.parametrize("name", NO_ROUNDS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_no_rounds_is_ddim_inversion_bit_for_bit(name, prediction_type):
    pipe = tiny_sd(prediction_type=prediction_type)
    schedule, cond = make_schedule(pipe.scheduler, 3), encode_prompt(pipe, [SOURCE, "a red car"])
    latents = random(2, 4, 16, 16)
    ddim = INVERSIONS["ddim"](pipe, schedule, latents, cond)
    none = INVERSIONS[name](pipe, schedule, latents, cond, **NO_ROUNDS[name])
    assert torch.equal(ddim.trajectory, none.trajectory) and none.rounds.sum() == 0


@pytest.mark.parametrize("name", INVERSIONS)
def test_sizes_and_prediction_types(name):
    """Latents that are no square, a v-prediction model, and the way back with two prompts."""
    pipe = tiny_sd(prediction_type="v_prediction")
    schedule, latents = make_schedule(pipe.scheduler, 3), random(1, 4, 8, 12)
    inversion = INVERSIONS[name](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]))
    assert inversion.trajectory.shape == (4, 1, 4, 8, 12) and inversion.rounds.shape == (3, 1)
    assert torch.equal(inversion.trajectory[0], latents.to(inversion.trajectory))
    drawn = ENGINES["none"](pipe, schedule, inversion, [SOURCE, TARGET])
    assert drawn.shape == (2, 4, 8, 12) and drawn.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", INVERSIONS)
def test_half_precision_networks(name, dtype):
    """The networks may be half as precise; latents and what is optimised stay whole, and end where they would have."""
    pipe, latents = tiny_sd(), random(1, 4, 8, 8)
    schedule, trajectories = make_schedule(pipe.scheduler, 3), []
    for kind in (torch.float32, dtype):
        pipe.to(dtype=kind)
        inversion = INVERSIONS[name](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]))
        assert inversion.trajectory.dtype == (torch.float64 if name == "edict" else torch.float32)
        assert inversion.uncond_embeds is None or inversion.uncond_embeds.isfinite().all()
        assert ENGINES["none"](pipe, schedule, inversion, [SOURCE, TARGET]).isfinite().all()
        trajectories.append(inversion.trajectory)
    torch.testing.assert_close(*trajectories, rtol=0, atol=0.1)
    assert not torch.equal(*trajectories)


@pytest.mark.parametrize("name", INVERSIONS)
@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_with_the_source_prompt_the_target_is_drawn_as_the_reconstruction(name, make):
    """Direct Inversion and noise map guidance act on the source branch alone: there the target is DDIM inversion's."""
    pipe = make()
    schedule, latents = make_schedule(pipe.scheduler, 3), random(1, 4, 16, 16)
    inversion = INVERSIONS[name](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]))
    both = ENGINES["none"](pipe, schedule, inversion, [SOURCE, SOURCE])
    alone = ENGINES["none"](pipe, schedule, inversion, [SOURCE])
    if name in ("direct", "nmg"):
        plain = INVERSIONS["ddim"](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]))
        expected = ENGINES["none"](pipe, schedule, plain, [SOURCE])
        assert (alone - expected).abs().max() > 1e-3
    else:
        expected = alone
    torch.testing.assert_close(both[1:], expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=2e-4)


@pytest.mark.parametrize("engine", ["p2p", "masactrl"])
@pytest.mark.parametrize("name", INVERSIONS)
def test_every_inversion_under_the_engines(pipe, name, engine):
    """Attention control sees the guided steps only; the source branch is drawn as without it."""
    schedule, latents = make_schedule(pipe.scheduler, 5), random(1, 4, 16, 16)
    inversion = INVERSIONS[name](pipe, schedule, latents, encode_prompt(pipe, [SOURCE]))
    before = pipe.unet.attn_processors
    edited = ENGINES[engine](pipe, schedule, inversion, [SOURCE, TARGET])
    plain = ENGINES["none"](pipe, schedule, inversion, [SOURCE, TARGET])
    if name != "proximal":  # its threshold looks at both branches together
        torch.testing.assert_close(edited[0], plain[0], rtol=0, atol=2e-4)
    assert not torch.allclose(edited[1], plain[1], atol=1e-3)
    assert list(pipe.unet.attn_processors.values()) == list(before.values())
