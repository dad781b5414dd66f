"""How real a picture looks (Fig. 6 and 8), and which exemplars are near to a source and which far."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from common.images import load_image
from common.runs import InputError
from pixels.frames import frame_tensor
from pixels.options import DRAWN
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench


def fit_realism(
    features: Tensor, components: int = 7, dimensions: int = 16, seed: int = 0
) -> Callable[[Tensor], np.ndarray]:
    """Log-likelihood per principal component of features [n, D] -> [n], higher is more real, under a Gaussian mixture
    fitted to features of real pictures, well above components * dimensions of them.

    GIQA, Gu et al., ECCV 2020, Sec. 3.2: the score is the probability under a mixture; GIQA reports it rescaled. Seven
    components as in its released settings for its larger sets; full covariances, a thousandth of the mean variance
    added to the diagonal.
    """
    real = features.double().cpu().numpy()
    principal = PCA(min(dimensions, *real.shape)).fit(real)
    reduced = principal.transform(real)
    ridge = 1e-3 * reduced.var(0).mean()
    mixture = GaussianMixture(components, reg_covar=ridge, random_state=seed, max_iter=200).fit(reduced)
    return lambda seen: mixture.score_samples(principal.transform(seen.double().cpu().numpy())) / reduced.shape[1]


def fit_reference(bench: Bench, pairs: list[Pair]):
    """The realism score: a mixture fitted to real pictures, 400 fresh scenes of the picturebook or the sources."""
    embedder = bench.eyes.features
    if bench.args.dataset in DRAWN:
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
    score = fit_realism(features)
    return lambda picture: score(embedder.embed(picture.cpu())).item()


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
