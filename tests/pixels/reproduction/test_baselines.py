"""The controls: pasting, the naive solution, the noised surgical latent, scaled noise."""

import numpy as np
import pytest
import torch

from pixels.reproduction.baselines import METHODS, alpha, paste, poisson, seamless
from pixels.surgery import Surgery
from tests.pixels.scene import FIRST, MAP, OTHER, SECOND, SOURCE
from tests.pixels.toy import SPREAD, alpha_bars, ddim, decoded, draws, mean_latents, reduce, seeded, toy_backbone


def test_pasting_copies_pixels_and_nothing_else():
    pasted = paste(None, SOURCE, [FIRST, SECOND], [MAP, OTHER], Surgery(), None)
    first, second = (MAP < 0.5).expand_as(SOURCE), (OTHER < 0.5).expand_as(SOURCE)
    assert torch.equal(pasted[second], SECOND[second])
    assert torch.equal(pasted[first & ~second], FIRST[first & ~second])
    assert torch.equal(pasted[~first & ~second], SOURCE[~first & ~second])


def test_alpha_blends_by_the_map_and_all_read_the_map_that_pixels_reads():
    found = alpha(None, SOURCE, [FIRST], [MAP], Surgery(), None)
    assert torch.allclose(found, MAP * SOURCE + (1 - MAP) * FIRST)
    grey = torch.full_like(MAP, 0.6)
    assert torch.equal(paste(None, SOURCE, [FIRST], [grey], Surgery(), None), SOURCE)  # 0.6 is above 0.5
    assert torch.equal(paste(None, SOURCE, [FIRST], [grey], Surgery(black_point=0.6), None), FIRST)


def test_poisson_against_a_dense_system():
    """The equations of every pixel inside, written out and solved as a dense system; and a guide that differs from the
    target by a constant alone leaves the target as it is."""
    rng = np.random.default_rng(0)
    target, guide = rng.random((3, 5, 6)), rng.random((3, 5, 6))
    inside = np.zeros((5, 6), bool)
    inside[1:4, 0:3], inside[2, 4] = True, True  # along the picture's edge too
    places = list(map(tuple, np.argwhere(inside)))
    matrix, right = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
    for row, (y, x) in enumerate(places):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < 5 and 0 <= u < 6:
                matrix[row, row] += 1
                right[row] += guide[:, y, x] - guide[:, v, u]
                if (v, u) in places:
                    matrix[row, places.index((v, u))] -= 1
                else:
                    right[row] += target[:, v, u]
    found = seamless(target, guide, inside)
    assert np.allclose(found[:, inside], np.linalg.solve(matrix, right).T)
    assert np.array_equal(found[:, ~inside], target[:, ~inside])
    assert np.allclose(seamless(target, target + 0.3, inside), target)
    same = poisson(None, SOURCE, [SOURCE * 0.5 + 0.2], [MAP], Surgery(), None)
    assert torch.equal(same[(MAP >= 0.5).expand_as(SOURCE)], SOURCE[(MAP >= 0.5).expand_as(SOURCE)])


def naive(method):
    """Surgical latent; noised to the start and denoised to the end, but for latent_paste; nothing put back."""
    random, ab, keep = draws(), alpha_bars(), reduce(MAP) > 0  # where the algorithm starts from the source (l. 9)
    source, exemplar = (mean_latents(p.numpy()) for p in (SOURCE, FIRST))
    if method == "noise_scaling":
        source, exemplar = source + SPREAD * next(random), exemplar + SPREAD * next(random)
        eps = next(random) * (1 - reduce(MAP))
    elif method == "perturbed":  # each picture with a noise of its own
        exemplar, e_exemplar = exemplar + SPREAD * next(random), next(random)
        source, e_source = source + SPREAD * next(random), next(random)
        eps = np.where(keep, e_source, e_exemplar)
    z = np.where(keep, source, exemplar)
    if method != "latent_paste":
        z = np.sqrt(ab[901]) * z + np.sqrt(1 - ab[901]) * eps
        for t in range(901, 0, -100):
            z = ddim(z, t, t - 100)
    return decoded(torch.from_numpy(z))


@pytest.mark.parametrize("method", ["latent_paste", "perturbed", "noise_scaling"])
def test_the_naive_solutions(method):
    found = METHODS[method](toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(composite="latent"), seeded())
    assert (found - naive(method)).abs().max() < 2e-5
