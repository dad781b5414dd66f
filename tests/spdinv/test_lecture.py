"""The lecture runs in quick form, and its exercises have answers that its own checks call right."""

import pytest
import torch

from common.ddim import ddim_inverse_step, inversion_timestep
from common.pipelines import predict_noise
from spdinv.inversions.residual import mean_square
from spdinv.inversions.spd import f_theta
from tests import lectures


def printed_step(pipe, schedule, z, t, cond):
    eps = predict_noise(pipe, schedule, z, inversion_timestep(schedule, t, "source"), cond)
    return ddim_inverse_step(schedule, z, eps, t)


def heun(pipe, schedule, latents, cond):
    z = latents
    for t in schedule.timesteps[::-1]:
        first = predict_noise(pipe, schedule, z, t, cond)
        guess = ddim_inverse_step(schedule, z, first, t)
        z = ddim_inverse_step(schedule, z, (first + predict_noise(pipe, schedule, guess, t, cond)) / 2, t)
    return z


def needless(pipe, schedule, trajectory, cond, threshold=5e-6):
    count = 0
    for z, t in zip(trajectory, schedule.timesteps[::-1], strict=False):
        guess = f_theta(pipe, schedule, z, t, cond, z, [0])
        count += mean_square(f_theta(pipe, schedule, z, t, cond, guess, [0]) - guess).item() < threshold
    return count


def told_apart(codes, labels):
    right = 0
    for i, code in enumerate(codes):
        others = torch.arange(len(codes)) != i
        means = [codes[others & (labels == label)].mean(0) for label in (0, 1)]
        right += int((code - means[1]).norm() < (code - means[0]).norm()) == labels[i]
    return float(right) / len(codes)


@pytest.fixture(scope="module")
def lecture():
    return lectures.run_quickly("spdinv")


@pytest.mark.slow
def test_the_lecture_runs_and_its_exercises_have_answers(lecture):
    for number, answer in enumerate((printed_step, heun, needless, told_apart), start=1):
        check = lecture[f"check_{number}"]
        assert check(lambda *a, **k: None) == "not yet"
        said = check(answer)
        if number == 4:
            assert set(said) == {"ideal", "ddim", "exact"} and said["ideal"] == pytest.approx(said["exact"], abs=0.2)
        else:
            assert said.endswith(("right", ": smaller")), said
    assert lecture["check_1"](lambda *a: printed_step(*a) + 0.01) == "wrong"


@pytest.mark.slow
def test_on_the_exact_model_solving_better_comes_nearer(lecture):
    gaps = {name: float((one.noise - lecture["noise"]).square().mean()) for name, one in lecture["inverted"].items()}
    assert gaps["exact"] < 1e-6 < gaps["SPDInv"] < gaps["DDIM"]
