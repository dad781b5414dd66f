"""How real a picture looks (Fig. 6 and 8), and which exemplars are near to a source and which far."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.images import load_image
from common.runs import InputError
from pixels.frames import frame_tensor
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench


@dataclass(frozen=True, eq=False)
class Realism:
    """A Gaussian mixture over features of real pictures, whose log-likelihood says how real a picture looks
    (GIQA, Gu et al., ECCV 2020, Sec. 3.2: the score is the probability under a mixture; GIQA reports it rescaled).

    mean [D], basis [D, d]: principal components; weights [K], centres [K, d], factors [K, d, d]: Cholesky factors.
    """

    mean: Tensor
    basis: Tensor
    weights: Tensor
    centres: Tensor
    factors: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Log-likelihood per principal component [n] of features [n, D]; higher is more real."""
        x = (features.double().cpu() - self.mean) @ self.basis
        return log_densities(x, self.weights, self.centres, self.factors).logsumexp(1) / x.shape[1]


def log_densities(x: Tensor, weights: Tensor, centres: Tensor, factors: Tensor) -> Tensor:
    """log(w_k N(x_n; c_k, L_k L_k^T)) [n, K]."""
    away = torch.linalg.solve_triangular(factors, (x[:, None] - centres).permute(1, 2, 0), upper=False)  # [K, d, n]
    volume = factors.diagonal(dim1=1, dim2=2).log().sum(1)
    quadratic = away.square().sum(1).T  # [n, K]
    return weights.log() - volume - 0.5 * (quadratic + x.shape[1] * math.log(2 * math.pi))


def fit_realism(
    features: Tensor, components: int = 7, dimensions: int = 16, rounds: int = 50, seed: int = 0
) -> Realism:
    """Fit by expectation maximisation to features [n, D] of real pictures, n well above components * dimensions.

    Seven components as in GIQA's released settings for its larger sets; full covariances, of which a thousandth of the
    mean variance is added to the diagonal.
    """
    x = features.double().cpu()
    mean = x.mean(0)
    _, _, right = torch.linalg.svd(x - mean, full_matrices=False)
    basis = right[: min(dimensions, len(right))].T
    x = (x - mean) @ basis
    ridge = 1e-3 * x.var(0).mean() * torch.eye(x.shape[1], dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    centres = x[torch.randperm(len(x), generator=random)[:components]]
    factors = torch.linalg.cholesky(torch.cov(x.T) + ridge).expand(len(centres), -1, -1)
    weights = torch.full((len(centres),), 1 / len(centres), dtype=torch.float64)
    for _ in range(rounds):
        share = log_densities(x, weights, centres, factors).softmax(1)  # [n, K]
        mass = share.sum(0) + 1e-9
        weights, centres = mass / mass.sum(), (share.T @ x) / mass[:, None]
        apart = x[:, None] - centres
        covariance = torch.einsum("nk,nki,nkj->kij", share, apart, apart) / mass[:, None, None]
        factors = torch.linalg.cholesky(covariance + ridge)
    return Realism(mean, basis, weights, centres, factors)


def fit_reference(bench: Bench, pairs: list[Pair]):
    """The realism score: a mixture fitted to real pictures, 400 fresh scenes of the picturebook or the sources."""
    embedder = bench.eyes.features
    if bench.args.dataset in ("picturebook", "compositions"):
        from common.picturebook.drawing import draw
        from common.picturebook.scenes import sample_scene

        pictures = (draw(sample_scene(10**9 + number)).picture for number in range(400))
    else:
        if len(pairs) < 150:
            raise InputError(
                f"--figure 6 and 8 fit their realism score to at least 150 sources; there are {len(pairs)}"
            )
        pictures = (load_image(pair.source) for pair in pairs)
    features = torch.cat([embedder.embed(frame_tensor(picture, bench.size, "squash")) for picture in pictures])
    mixture = fit_realism(features)
    return lambda picture: mixture.score(embedder.embed(picture.cpu())).item()


def distances(bench: Bench, pairs: list[Pair], loaded: dict[str, Any]) -> list[tuple[float, Pair]]:
    """Every pair's exemplar by the Euclidean distance of its latent from the source's, nearest first."""
    backbone = bench.bind(loaded)
    source = backbone.encode(loaded["source"], False, None)
    found = []
    for pair in pairs:
        exemplar = frame_tensor(load_image(pair.exemplars[0]), bench.size, "squash")
        found.append(((backbone.encode(exemplar, False, None) - source).norm().item(), pair))
    return sorted(found, key=lambda entry: entry[0])


def with_exemplar(loaded: dict[str, Any], other: Pair, size: tuple[int, int]) -> dict[str, Any]:
    """A loaded pair with another pair's exemplar under its own first map."""
    exemplar = frame_tensor(load_image(other.exemplars[0]), size, "squash")
    return {**loaded, "exemplars": [exemplar], "maps": loaded["maps"][:1]}
