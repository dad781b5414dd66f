"""The realism score against a naive density, and on clusters whose answer is known."""

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


def test_the_mixture_scores_as_a_naive_density_does():
    x = clusters()
    mixture = fit_realism(x, components=3, dimensions=5)
    projected = (x.double() - mixture.mean) @ mixture.basis
    naive = [
        np.log(sum(
            float(w) * multivariate_normal.pdf(row, c, (f @ f.T).numpy())
            for w, c, f in zip(mixture.weights, mixture.centres, mixture.factors, strict=True)
        )) / 5
        for row in projected[:10].numpy()
    ]  # fmt: skip
    assert mixture.score(x[:10]).tolist() == pytest.approx(naive, abs=1e-6)
    assert mixture.weights.sum() == pytest.approx(1)


def test_what_is_between_the_clusters_is_less_real():
    x = clusters()
    mixture = fit_realism(x, components=3, dimensions=5)
    between = (x[:100] + x[100:]) / 2
    apart = (x[:100] - x[100:]).norm(dim=1) > 4
    assert mixture.score(between[apart]).max() < mixture.score(x).quantile(0.02)
    assert mixture.score(x).mean() == pytest.approx(mixture.score(clusters(seed=0)[:200]).mean().item())


def test_fitting_raises_the_likelihood():
    x = clusters(400)
    means = [fit_realism(x, 4, 5, rounds=rounds).score(x).mean() for rounds in (0, 1, 5, 50)]
    assert means[0] < means[1] <= means[2] + 1e-6 and means[2] <= means[3] + 1e-6
