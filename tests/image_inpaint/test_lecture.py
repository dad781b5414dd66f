"""The lecture runs, and the answers to its exercises."""

import pytest
import torch

from image_inpaint import masks
from image_inpaint.conditioning import nine_channels
from image_inpaint.reproduction import storage
from tests import lectures


@pytest.mark.slow
def test_the_lecture_runs():
    names = lectures.run_quickly("image_inpaint")
    assert len(names["losses"]) == names["steps"] and names["channels"].shape[0] == 9


def test_1_the_channels_of_stable_diffusion():
    def for_stable_diffusion(channels: torch.Tensor) -> torch.Tensor:
        return torch.cat([channels[:4], 1 - channels[8:], channels[4:8]])

    noisy, masked, keep = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 2.0), torch.zeros(1, 1, 2, 2)
    theirs = for_stable_diffusion(nine_channels(noisy, masked, keep)[0])
    assert theirs[:, 0, 0].tolist() == [1] * 4 + [1] + [2] * 4


def test_2_the_numbers_of_an_update():
    def stored(d: int, k: int, r: int) -> int:
        return r * (d + k)

    unet = storage.stable_diffusion()
    layers = [layer for name, layer in unet.named_modules() if name.endswith((".to_q", ".to_v"))]
    assert storage.storage(4, "qv")["parameters"] == sum(stored(*layer.weight.shape, 4) for layer in layers)
    assert next(r for r in range(1, 99) if stored(32, 32, r) > 32 * 32) == 17  # r > d k / (d + k)


def test_3_holes_are_larger_than_the_thing():
    box, size = (20, 20, 44, 44), (64, 64)
    draws = [masks.training_mask(box, size, torch.Generator().manual_seed(seed))[0] for seed in range(200)]
    larger = sum(float(mask.sum()) for mask in draws) / 200 / 24**2
    assert 1.1 < larger < 2
    assert masks.training_mask(box, size, torch.Generator(), augment=False)[0].sum() == 24**2
