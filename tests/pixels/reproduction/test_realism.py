"""The realism score on clusters whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from pixels.reproduction.realism import fit_realism


def clusters(count=200, seed=0):
    """Three clusters in five of twelve dimensions."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 12)) * 6
    return torch.from_numpy(centres[random.integers(0, 3, count)] + random.normal(size=(count, 12)) * 0.5).float()


def test_one_component_in_all_dimensions_is_the_normal_density():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(400, 3)) * (1, 2, 3)).float()
    covariance = np.cov(x.numpy().T, bias=True) + 1e-3 * np.eye(3) * x.numpy().var(0).mean()
    naive = multivariate_normal.logpdf(x[:10].numpy(), x.mean(0).numpy(), covariance) / 3
    assert fit_realism(x, components=1, dimensions=3)(x[:10]).tolist() == pytest.approx(naive, abs=1e-2)


def test_what_is_between_the_clusters_is_less_real():
    x = clusters()
    score = fit_realism(x, components=3, dimensions=5)
    between = (x[:100] + x[100:]) / 2
    apart = (x[:100] - x[100:]).norm(dim=1) > 4
    assert score(between[apart]).max() < np.quantile(score(x), 0.02)
