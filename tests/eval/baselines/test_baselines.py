"""Baselines of exemplar editing: identities with PIXELS, and naive float64 readings of their loops."""

import numpy as np
import pytest
import torch

from eval.baselines.exemplar_loops import METHODS, blended_latent, differential_diffusion, sdedit
from pixels.surgery import Surgery, edit
from tests.pixels.scene import FIRST, MAP, SOURCE
from tests.pixels.toy import SPREAD, alpha_bars, ddim, decoded, draws, mean_latents, reduce, seeded, toy_backbone

AB = alpha_bars()


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_differential_diffusion_is_pixels_with_the_source_as_exemplar_and_one_noise(kind, strength):
    """Under the posterior's mean nothing but noises is drawn: the exemplar's, then the source's, which is shared."""
    backbone, random = toy_backbone(kind, strength=strength), seeded()
    next(draws(random))
    mean = Surgery(posterior="mean")
    theirs = differential_diffusion(backbone, SOURCE, [], [MAP], mean, random)
    shared = edit(backbone, SOURCE, [SOURCE], [MAP], Surgery(posterior="mean", noise="shared"), seeded()).edited
    assert torch.equal(shared, theirs)
    own = edit(backbone, SOURCE, [SOURCE], [MAP], mean, seeded()).edited
    assert (own - theirs).abs().max() > 1e-3  # where the map is black, the exemplar has a noise of its own


def test_differential_diffusion_draws_what_its_released_pipeline_throws_away():
    late = seeded()
    next(draws(late))
    expected = differential_diffusion(toy_backbone(), SOURCE, [], [MAP], Surgery(), late)
    backbone = toy_backbone(discarded=(torch.float64,))
    assert torch.equal(differential_diffusion(backbone, SOURCE, [], [MAP], Surgery(), seeded()), expected)


@pytest.mark.parametrize("method", METHODS.values())
def test_what_a_scheduler_draws_is_the_generators(method):
    one, same, other = (
        method(toy_backbone("ddpm"), SOURCE, [FIRST], [MAP], Surgery(), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_sdedit_noises_a_paste_and_denoises_all_of_it():
    found = sdedit(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(), seeded())
    guide = torch.where(MAP < 0.5, FIRST, SOURCE)
    random = draws()
    sample, noise = next(random), next(random)
    z = np.sqrt(AB[901]) * (mean_latents(guide.numpy()) + SPREAD * sample) + np.sqrt(1 - AB[901]) * noise
    for t in range(901, 0, -100):
        z = ddim(z, t, t - 100)
    assert (found - decoded(torch.from_numpy(z))).abs().max() < 2e-5


def test_blended_latents_get_their_background_after_each_step():
    found = blended_latent(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(), seeded())
    random = draws()
    s_sample, noise, e_sample = next(random), next(random), next(random)
    source = mean_latents(SOURCE.numpy()) + SPREAD * s_sample
    exemplar = mean_latents(FIRST.numpy()) + SPREAD * e_sample
    keep = reduce(MAP) >= 0.5
    z = np.sqrt(AB[901]) * np.where(keep, source, exemplar) + np.sqrt(1 - AB[901]) * noise
    for t in range(901, 0, -100):
        z = ddim(z, t, t - 100)
        background = np.sqrt(AB[t - 100]) * source + np.sqrt(1 - AB[t - 100]) * noise if t > 1 else source
        z = np.where(keep, background, z)
    assert (found - decoded(torch.from_numpy(z))).abs().max() < 2e-5
    unchanged = decoded(torch.from_numpy(np.where(keep, source, 0)))
    kept = torch.from_numpy(np.kron(keep, np.ones((8, 8))))[None, None].expand(1, 3, -1, -1) > 0
    assert torch.allclose(found[kept].double(), unchanged[kept], atol=1e-6)
