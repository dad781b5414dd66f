"""Scores of an edit against naive readings and pictures whose answer is known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from common.encoders import load_encoders
from pixels.edit_map import from_mask
from pixels.reproduction import measures
from pixels.reproduction.figures import fit_realism
from tests.tiny_encoders import pictures


@pytest.fixture(scope="module")
def small(encoders):
    return load_encoders(encoders, "cpu")


def disc(size=64, radius=18):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - size / 2) ** 2 + (x - size / 2) ** 2 < radius**2).float()


FLAT, OTHER = torch.full((1, 3, 64, 64), 0.3), torch.full((1, 3, 64, 64), 0.7)
RAMP = from_mask(disc(), ramp=12)


def test_a_pasted_seam_is_seen_at_full_height_wherever_it_lies():
    for radius in (18, 22, 28):  # inside, in the middle of and near the end of the ramp
        pasted = torch.where(disc(radius=radius)[None, None] > 0, OTHER, FLAT)
        assert 0.4 * 255 * 0.7 < measures.seam(pasted, [FLAT, OTHER], RAMP) <= 0.4 * 255 + 1e-3
    blended = FLAT * RAMP + OTHER * (1 - RAMP)
    assert measures.seam(blended, [FLAT, OTHER], RAMP) < 0.4 * 255 / 6
    assert measures.seam(FLAT, [FLAT, OTHER], RAMP) == 0


def test_texture_that_real_pictures_have_is_no_seam():
    noise = pictures(3, 64)
    assert measures.seam(noise[:1], [noise[:1]], RAMP) == 0
    assert abs(measures.seam(noise[:1], [noise[1:2], noise[2:3]], RAMP)) < 30
    assert math.isnan(measures.seam(noise[:1], [noise[1:2]], torch.ones(1, 1, 64, 64)))


def test_the_border_profile_of_a_straight_border():
    """White left, black right: contour c is the step between columns; each has a difference of its own."""
    edit_map = torch.ones(1, 1, 20, 32)
    edit_map[..., 16:] = 0
    steps = torch.linspace(0, 1, 32) ** 2
    picture = steps.expand(1, 3, 20, 32).contiguous()
    profile = measures.border_profile(picture, edit_map)
    expected = steps.diff()[12:19].flip(0)  # three contours on either side of the border, which lies before column 16
    assert profile.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_region_and_likeness(small):
    edit_map = torch.ones(1, 1, 40, 60)
    edit_map[..., 10:25, 20:50] = 0.2
    assert measures.region_box(edit_map) == (10, 25, 20, 50)
    assert measures.region_box(torch.ones(1, 1, 4, 4)) is None
    source, exemplar, third = pictures(3, 64)[:, None].unbind(0)
    edit_map = from_mask(disc())
    pasted = torch.where(edit_map < 0.5, exemplar, source)

    def likeness(exemplars, picture):
        found = measures.clip_likeness(exemplars, picture, edit_map, small.clip)
        return [next(value for key, value in found.items() if name in key) for name in ("same_box", "whole_exemplar")]

    same, whole = likeness([exemplar], exemplar)
    assert same == pytest.approx(1, abs=1e-5) and whole < 0.99999
    top, bottom, left, right = measures.region_box(edit_map)
    resized = torch.nn.functional.interpolate(pasted[..., top:bottom, left:right], (224, 224), mode="bilinear",
                                              antialias=True)  # fmt: skip
    whole = torch.nn.functional.interpolate(exemplar, (224, 224), mode="bilinear", antialias=True)
    expected = (small.clip.embed(resized) @ small.clip.embed(whole).T).item()
    _, found = likeness([exemplar], pasted)
    assert found == pytest.approx(expected, abs=1e-6) and likeness([third, exemplar], pasted)[1] >= found


def test_all_scores_of_one_edit(small):
    source, exemplar = pictures(2, 64)[:, None].unbind(0)
    pasted = torch.where(RAMP < 0.5, exemplar, source)
    scores = measures.edit_scores(source, [exemplar], pasted, RAMP, small, truth=pasted)
    assert scores["psnr_kept"] == math.inf and scores["mse_kept"] == 0 and scores["psnr_truth"] == math.inf
    assert scores["lpips_kept (squeeze)"] == 0  # although a network near the edit would see it
    assert scores["seam_gap"] == scores["transition_gap"] == 0 and scores["sharpness"] == 1
    assert {"seam", "lpips_kept (squeeze)", "lpips_truth (squeeze)"} <= scores.keys()
    left_alone = measures.edit_scores(source, [exemplar], source, RAMP, small, truth=pasted)
    assert left_alone["transition_gap"] == 1 and math.isnan(left_alone["seam_gap"])  # no edit, no seam to be judged
    white = RAMP[0, 0] >= 1
    noisy = (source + 0.1).clamp(0, 1)
    expected = ((noisy - source)[0][:, white] ** 2).mean().item()
    changed = measures.edit_scores(source, [exemplar], noisy, RAMP, small)
    assert changed["mse_kept"] == pytest.approx(expected, rel=1e-4)
    zone = (RAMP[0, 0] > 0) & (RAMP[0, 0] < 1)
    assert changed["mse_grey"] == pytest.approx(((noisy - source)[0][:, zone] ** 2).mean().item(), rel=1e-4)
    everything = measures.edit_scores(source, [exemplar], pasted, torch.zeros(1, 1, 8, 8), small)
    assert math.isnan(everything["psnr_kept"]) and math.isnan(everything["seam"])


def scene(side=64):
    """Source, exemplar, a map that runs from black on the left to white on the right, and the true blend of the two."""
    source, exemplar = (pictures(1, side, seed) for seed in (1, 2))
    ramp = ((torch.arange(side) - side / 4) / (side / 2)).clamp(0, 1).expand(1, 1, side, side).contiguous()
    return source, exemplar, ramp, ramp * source + (1 - ramp) * exemplar


def blurred(picture):
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)


def test_the_transition_is_the_blend_that_was_made_and_its_gap_moves_with_the_truth():
    source, exemplar, ramp, truth = scene()
    found = measures.transition(truth, source, exemplar, ramp)
    assert np.all(np.diff(found) < 0) and found[0] > 0.9 and found[-1] < 0.1
    assert measures.transition(source, source, exemplar, ramp) == pytest.approx(0, abs=1e-6)
    assert measures.transition(exemplar, source, exemplar, ramp) == pytest.approx(1, abs=1e-6)
    gaps = [measures.transition_gap(picture, truth, source, ramp)
            for picture in (truth, 0.5 * truth + 0.5 * source, source)]  # fmt: skip
    assert gaps == pytest.approx([0, 0.5, 1], abs=1e-6)
    moved = measures.transition_gap(truth, exemplar, source, ramp)  # the truth moved: so does the score
    assert 0.1 < moved < 1 and math.isnan(measures.transition_gap(source, source, source, ramp))


def test_a_blur_loses_sharpness_and_does_not_win_the_seam():
    source, exemplar, ramp, truth = scene()
    hard = (ramp > 0.5).float()
    pasted = hard * source + (1 - hard) * exemplar
    assert measures.sharpness(truth, truth, ramp) == 1 > measures.sharpness(blurred(truth), truth, ramp)
    gaps = [measures.seam_gap(picture, pasted, ramp) for picture in (pasted, blurred(pasted), blurred(blurred(pasted)))]
    assert gaps[0] == 0 < gaps[1] < gaps[2]
    assert measures.seam(blurred(pasted), [pasted], ramp) < 0  # the one-sided score takes the blur for a success
    assert math.isnan(measures.seam_gap(truth, truth, torch.zeros_like(ramp)))


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
