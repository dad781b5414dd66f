"""Drift: norms by hand, restored models, merged LoRA, scores of known pictures."""

import pytest
import torch

from common.training import step_generator
from lipschitz_personalize.objectives import load_backbone
from lipschitz_personalize.reproduction import drift
from tests.refusing import refuses
from tests.small_data import MeanColor


@pytest.fixture
def pair(models):
    return load_backbone(str(models["sd"]), "cpu"), load_backbone(str(models["sd"]), "cpu")


def test_no_drift_between_a_model_and_itself(pair):
    found = drift.measure_drift(*pair, prompts=["a cat"], ratios=True)
    assert found == {"delta_theta": 0, "delta_theta_sum": 0, "delta_theta_relative": 0, "delta_eps": 0,
                     "delta_eps_relative": 0}  # fmt: skip


def test_norms_of_weights_by_hand():
    base = {"a": torch.zeros(2, 2), "b": torch.tensor([5.0])}
    moved = {"a": torch.tensor([[3.0, 0], [0, 4]]), "b": torch.tensor([5.0 + 12])}
    found = drift.weight_drift(moved, base)
    assert found == {"delta_theta": 13.0, "delta_theta_sum": 17.0, "delta_theta_relative": 13 / 5}
    refuses("different weights", drift.weight_drift, moved, {"a": base["a"]})


@torch.no_grad()
def test_ratio_of_the_last_bias_is_known_and_the_base_is_restored(pair):
    """A shift d of the last bias shifts every output: ||delta eps|| / ||delta theta|| = sqrt(64 places)."""
    pipe, base_pipe = pair
    pipe.unet.conv_out.bias += torch.tensor([0.3, 0, 0.4, 0])
    before = {name: tensor.clone() for name, tensor in base_pipe.unet.state_dict().items()}
    latents = drift.latents_of(base_pipe, ["a cat", "a dog"], num_inference_steps=1)
    found = drift.eps_per_theta(pipe, base_pipe, ["a cat", "a dog"], latents)
    assert found == dict.fromkeys(("eps_per_theta convolution", "eps_per_theta all"), pytest.approx(8, rel=1e-3))
    assert all(torch.equal(before[name], tensor) for name, tensor in base_pipe.unet.state_dict().items())
    change = drift.prediction_drift(pipe, base_pipe, ["a cat"], latents)
    assert change["delta_eps"] == pytest.approx(0.5 * 8, rel=1e-3)


@torch.no_grad()
def test_models_are_asked_about_noised_pictures_that_the_base_draws(pair, monkeypatch):
    """At the lowest level z is all but the picture's own latents: noise has little part in it."""
    pipe, seen = pair[0], []
    latents = drift.latents_of(pipe, ["a cat", "a dog"], 3, num_inference_steps=2)
    own = drift.sample(pipe, ["a cat", "a dog"], [step_generator(3, n) for n in (0, 1)], num_inference_steps=2)
    assert torch.allclose(latents, drift.encode_pictures(pipe, own, step_generator(3, 2)))
    monkeypatch.setattr(drift, "predict", lambda pipe, z, t, cond: seen.append((z, t)) or z)
    drift.predictions(pipe, ["a cat", "a dog"], latents)
    assert [int(t) for _, t in seen[:5]] == [100, 300, 500, 699, 899]
    a = pipe.scheduler.alphas_cumprod[100]
    for number, (z, _) in enumerate(seen[::5]):
        noise = (z - a.sqrt() * latents[number]) / (1 - a).sqrt()
        assert 0.5 < noise.std() < 1.5 and (noise - z).norm() > 0.1 * z.norm()


@torch.no_grad()
def test_a_groups_ratio_is_that_of_a_model_in_which_it_alone_was_changed(models):
    def ratios(*names):
        pipe, base_pipe = (load_backbone(str(models["sd"]), "cpu") for _ in range(2))
        for name in names:
            pipe.unet.get_parameter(name).add_(torch.linspace(-0.5, 0.7, pipe.unet.get_parameter(name).numel()))
        return drift.eps_per_theta(pipe, base_pipe, ["a cat"], torch.zeros(1, 4, 8, 8))

    both = ratios("conv_out.bias", "conv_norm_out.weight")
    assert both.keys() == {"eps_per_theta convolution", "eps_per_theta norm", "eps_per_theta all"}
    assert both["eps_per_theta convolution"] == ratios("conv_out.bias")["eps_per_theta convolution"]
    assert both["eps_per_theta norm"] == ratios("conv_norm_out.weight")["eps_per_theta norm"]
    assert len(set(both.values())) == 3


def test_sample_scores_of_known_pictures():
    red, green = torch.zeros(2, 4, 3, 8, 8)
    red[:, 0], green[:, 1] = 1, 1
    assert drift.sample_drift(red, red, MeanColor()) == {"drift_score (toy)": pytest.approx(0, abs=1e-6)}
    assert drift.sample_drift(red, green, MeanColor()) == {"drift_score (toy)": pytest.approx(0.5)}
    found = drift.sample_drift(red, green, eye=MeanColor())
    assert found == {"frechet_eye (toy)": pytest.approx(2.0)}  # |mu_a - mu_b|^2, no spread

    recognise = lambda pictures: ["red" if p[0].mean() > p[1].mean() else "green" for p in pictures]  # noqa: E731
    pictures = torch.cat([red, green, red[:2], green[:2]])
    assert drift.class_recognition(pictures, ["red", "green", "red"], recognise) == 10 / 12


def test_samples_of_both_models_start_from_the_same_noise_and_the_bases_are_kept(pair, monkeypatch):
    drawn, kept, sample = [], {}, drift.sample
    monkeypatch.setattr(drift, "sample", lambda one, *given, **how: drawn.append(one) or sample(one, *given, **how))
    how = {"num_inference_steps": 1}
    for _ in range(2):
        drift.measure_drift(*pair, ["a cat"], kept=kept, **how)
        ours = drift.draw(pair[0], ["a cat"], 2, **how)
        base = drift.draw(pair[1], ["a cat"], 2, kept=kept, **how)
        assert drift.sample_drift(ours, base, MeanColor())["drift_score (toy)"] == pytest.approx(0, abs=1e-6)
    assert drawn.count(pair[0]) == 2 and drawn.count(pair[1]) == 2  # a picture for the latents, and two of the prompt
    first, other = (drift.draw(pair[1], ["a cat"], 2, seed, **how) for seed in (0, 1))
    assert torch.equal(drift.draw(pair[0], ["a cat"], 2, **how), first) and not torch.equal(first, other)
