"""What holds for every inversion: names, images of a batch, costs."""

import numpy as np
import pytest
import torch

from spdinv import options
from spdinv.inversions import INVERSIONS
from tests.spdinv.toy import toy_cond, toy_pipe, toy_schedule

WEIGHT = np.random.default_rng(0).normal(size=(4, 4)) * 0.5
LATENTS = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 4, 5, 6)))
MEANS = [0.1, -0.4, 0.8]

# Few rounds, and thresholds at which some images of a batch stop before others.
QUICK = {
    "spd": [
        dict(rounds=7, learning_rate=1e-2, threshold=3e-4),
        dict(solver="anderson", threshold=1e-5),
        dict(solver="descent", threshold=1e-5),
    ],
    "null_text": [dict(inner_steps=4, threshold=1.0, learning_rate=0.2)],
    "aidi": [dict(threshold=3e-5), dict(mode="empirical", threshold=3e-4)],
    "fixed_point": [dict(threshold=3e-5)],
}
CASES = [(name, case) for name in INVERSIONS for case in QUICK.get(name, [{}])]
STOPS = [(name, case) for name, cases in QUICK.items() for case in cases]


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
    assert inversion.cost["forward"] == sum(images for images, _ in pipe.unet.calls)
    assert inversion.cost["backward"] == sum(pipe.unet.gradients)
    assert inversion.cost["seconds"] > 0
    assert pipe.unet.weight.grad is None
