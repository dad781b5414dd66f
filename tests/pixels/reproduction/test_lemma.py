"""Lemma 1's two bounds: values, and a case in which the paper's is broken more often than it allows."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from scipy import stats

from pixels.backbones.backbone import Backbone, select_timesteps
from pixels.options import Sampling
from pixels.reproduction.lemma import chi_square_tail, corrected_bound, epsilon, experiment, paper_bound
from pixels.surgery import noise_levels
from tests.pixels.toy import CONFIG, toy_backbone


def holds(trial, bound, p):
    return trial.distance <= bound(trial.sigma, trial.score_bound, trial.k, p)


def backbone_of(network, kind="ddim", prediction_type="epsilon"):
    cls = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}[kind]
    scheduler, told = cls(**CONFIG, prediction_type=prediction_type), Sampling(num_inference_steps=20, strength=0.6)
    return Backbone(scheduler, lambda: select_timesteps(scheduler, "cpu", told), None, network, None, 8,
                    torch.device("cpu"))  # fmt: skip


def test_values_of_the_facts():
    assert chi_square_tail(65536, 0.05) == pytest.approx(66428.17, abs=0.01)
    assert chi_square_tail(16384, 0.05) == pytest.approx(16833.08, abs=0.01)
    assert paper_bound(1.13, 3.8e7, 65536, 0.05) == pytest.approx(1.13**4 * 3.8e7 + 1.13**2 * 66428.17)
    for k in (1, 10, 1000):
        assert stats.chi2.sf(chi_square_tail(k, 0.05), k) <= 0.05


def test_the_corrected_bound_lies_between_once_and_twice_the_papers():
    for sigma, score in ((0.1, 5.0), (1.0, 400.0), (3.0, 2.0)):
        ratio = corrected_bound(sigma, score, 64, 0.05) / paper_bound(sigma, score, 64, 0.05)
        assert 1 < ratio <= 2


def test_a_constant_score_breaks_the_papers_bound_and_not_the_corrected_one():
    """One number per latent, score of length 8 throughout: distance = (8 sigma^2 + sigma n)^2 exactly, and the paper
    has no room for the product of the two. p = 0.3: a bound should hold in 70 % of the runs."""
    probe = backbone_of(None)
    timesteps = probe.start()
    signal, level = noise_levels(probe.scheduler, timesteps, torch.zeros(1))
    ratio = dict(zip(timesteps.tolist(), (level / signal).tolist(), strict=True))
    constant, found = backbone_of(lambda z, t: torch.full_like(z, 8.0 * ratio[int(t)])), []
    for seed in range(40):
        found += experiment(constant, torch.zeros(25, 1, 1, 1), torch.Generator().manual_seed(seed))
    sigma = found[0].sigma
    assert all(trial.k == 1 and trial.at_start == pytest.approx(64, rel=1e-4) for trial in found)
    drift = [math.sqrt(trial.distance) for trial in found]
    assert sum(drift) / len(drift) == pytest.approx(8 * sigma**2, rel=0.05)
    assert sum(holds(trial, corrected_bound, 0.3) for trial in found) / len(found) >= 0.7
    assert sum(not holds(trial, paper_bound, 0.3) for trial in found) / len(found) > 0.3


def test_the_distance_of_a_perfect_score():
    """Data at one point: the score is -(x - x0) / sigma^2, and the reverse process ends there, whatever the scheduler's
    own coordinates are."""
    centre = torch.tensor([0.7, -1.2, 0.3, 2.0]).view(1, 4, 1, 1)
    for kind in ("ddim", "euler"):
        backbone = backbone_of(None, kind)
        signal, level = noise_levels(backbone.scheduler, backbone.start(), torch.zeros(1))
        levels = {int(t): (s, n) for t, s, n in zip(backbone.scheduler.timesteps[-12:], signal, level, strict=True)}

        def network(z, t, levels=levels):
            s, n = levels[int(t)]
            return (z - s * centre) / n

        object.__setattr__(backbone, "predict", network)
        (trial,) = experiment(backbone, centre + 0.5, torch.Generator().manual_seed(0))
        start = 0.5 + trial.sigma * torch.randn(
            1, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        assert trial.distance**0.5 == pytest.approx(start.norm().item(), abs=0.3)  # the last step's noise is 0.04
        assert holds(trial, corrected_bound, 0.05)


def test_a_network_is_shown_the_same_latents_by_every_scheduler():
    """Euler's scaling of the input belongs to the timestep, not to the first step."""
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vp, ve = (experiment(toy_backbone(kind, strength=0.8), latents, torch.Generator().manual_seed(0))
              for kind in ("ddim", "euler"))  # fmt: skip
    for one, other in zip(vp, ve, strict=True):
        assert one.distance == pytest.approx(other.distance, rel=1e-4)
        assert one.score_bound == pytest.approx(other.score_bound, rel=1e-4)


@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_every_kind_of_prediction_is_read_as_noise(kind):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 4, 3, 3, generator=generator) for _ in range(2))
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        backbone = backbone_of(None, kind, prediction_type=prediction_type)
        timesteps = backbone.start()
        signal, level = (value[3] for value in noise_levels(backbone.scheduler, timesteps, x0))
        z = signal * x0 + level * eps
        a = backbone.scheduler.alphas_cumprod[int(timesteps[3])]
        output = {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}[prediction_type]
        variance = torch.zeros_like(output)
        found = epsilon(backbone, torch.cat([output, variance], 1), z, signal, level)
        assert (found - eps).abs().max() < 1e-4
