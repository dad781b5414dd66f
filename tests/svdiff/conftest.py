"""A small random Stable Diffusion, and shifts for it."""

import pytest
import torch

from common.pipelines import load_pipeline
from svdiff import basis, subsets


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder, "cpu")


def random_shifts(model, subset="UNet", seed=0, size=1.0):
    generator, layers = torch.Generator().manual_seed(seed), basis.tunable(model)
    return {path: size * torch.randn(subsets.shift_length(layers[path]), generator=generator)
            for path in subsets.chosen(model, subset)}  # fmt: skip
