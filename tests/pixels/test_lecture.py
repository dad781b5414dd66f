"""The lecture runs, and the answers to its exercises."""

import pytest
import torch

from pixels import edit_map, surgery
from pixels.reproduction import baselines
from tests import lectures
from tests.pixels.scene import FIRST, MAP, SECOND, SOURCE
from tests.pixels.toy import seeded, toy_backbone


@pytest.mark.slow
def test_the_lecture_runs():
    names = lectures.run_quickly("pixels")
    assert names["result"].coverage.exemplar > 0 and len(names["trace"]) > 3


def test_1_how_often_a_grey_is_put_back():
    def times_put_back(grey: float, tau: torch.Tensor) -> int:
        return int((grey > tau).sum())

    found = {name: times_put_back(0.5, edit_map.thresholds(name, 10)) for name in edit_map.THRESHOLDS}
    assert found == {"linear": 5, "quadratic": 8, "cubic": 8, "log": 3, "sigmoid": 5}
    grey = torch.tensor([0.5])
    assert all(edit_map.injections(grey, edit_map.thresholds(name, 10)).item() == n for name, n in found.items())


def test_2_a_threshold_that_waits():
    def late(i: torch.Tensor, n: int) -> torch.Tensor:
        return torch.where(i < n / 2, 0.0, 0.999)

    trace = []
    result = surgery.edit(toy_backbone(), SOURCE, [FIRST], [MAP], surgery.Surgery(late), seeded(), trace)
    kept = [int(step.keep.sum()) for step in trace]
    assert len(set(kept[:4])) == 1 and set(kept[4:]) == {int((result.mu > 0.999).sum())} and kept[0] > kept[-1]


def test_3_the_last_exemplar_wins():
    black = torch.zeros_like(MAP)
    for exemplars in ([FIRST, SECOND], [SECOND, FIRST]):
        found = baselines.paste(None, SOURCE, exemplars, [black, black], surgery.Surgery(), None)
        assert torch.equal(found, exemplars[1])


def test_4_noise_on_black_keeps_the_exemplar_out_and_a_black_point_lets_it_in():
    noisy = (MAP + torch.rand(MAP.shape, generator=seeded()) / 255).clamp(0, 1)
    cells = {point: surgery.edit(toy_backbone(), SOURCE, [FIRST], [noisy], surgery.Surgery(black_point=point), seeded())
             .coverage.exemplar for point in (0.0, 0.01)}  # fmt: skip
    assert cells == {0.0: 0, 0.01: 4}


def test_5_with_the_source_as_exemplar_it_is_differential_diffusion():
    from eval.baselines.exemplar_loops import differential_diffusion

    shared = surgery.Surgery(noise="shared", posterior="mean")
    ours = surgery.edit(toy_backbone(), SOURCE, [SOURCE], [MAP], shared, seeded())
    # the exemplar's noise is drawn first and not used: theirs has to be given the second
    generator = seeded()
    torch.randn(1, 4, 4, 6, generator=generator, dtype=torch.float64)
    theirs = differential_diffusion(toy_backbone(), SOURCE, [SOURCE], [MAP], shared, generator)
    assert (ours.edited - theirs).abs().max() < 1e-5
