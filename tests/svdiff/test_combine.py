"""Eq. 4, Eq. 5, style mixing on Stable Diffusion's layers, correlation and truncation, by hand."""

import pytest
import torch

from svdiff import combine, subsets
from svdiff.spectral import spectrum
from tests.tiny import tiny_sdxl


def test_addition_sums_first_and_takes_one_relu():
    sigma, one, two = torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, -3.0, 0.0]), torch.tensor([0.5, 2.5, -2.0])
    added = combine.add([{"a": one}, {"a": two, "b": one}])
    assert spectrum(sigma, added["a"]).tolist() == [4.5, 0.5, 0.0]  # one ReLU each would give 2.5 for 0.5
    assert torch.equal(added["b"], one)
    weighted = combine.add([{"a": one}, {"a": two}], [2.0, -1.0])
    assert torch.equal(weighted["a"], torch.tensor([1.5, -8.5, 2.0]))


def test_interpolation_meets_its_ends():
    one, two = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, -2.0])}
    assert torch.equal(combine.interpolate(one, two, 1.0)["a"], one["a"])
    assert torch.equal(combine.interpolate(one, two, 0.0)["a"], two["a"])
    assert torch.equal(combine.interpolate(one, two, 0.25)["a"], torch.tensor([2.5, -1.0]))


def test_the_paper_s_layers_of_geometry():
    unet = subsets.stable_diffusion_unet()
    names = [name for name in combine.units(unet).values() if name]
    down = [(64, "down", 0), (64, "down", 1), (32, "down", 0), (32, "down", 1), (16, "down", 0), (16, "down", 1)]
    up = [(size, "up", number) for size in (16, 32, 64) for number in range(3)]
    assert names == [*down, (8, "down", 0), *up]
    paths = combine.span(unet, (16, "down", 1), (8, "down", 0))
    assert paths == ["down_blocks.2.attentions.1", "down_blocks.2.downsamplers.0", "down_blocks.3.resnets.0",
                     "down_blocks.3.resnets.1", "mid_block.resnets.0", "mid_block.attentions.0"]  # fmt: skip
    layers = combine.inside(subsets.chosen(unet, "UNet-2D"), paths)
    lengths = [subsets.shift_length(unet.get_submodule(path)) for path in layers]
    assert (len(layers), sum(lengths)) == (23, 27392)
    for first, last in (((16, "down", 2), (8, "down", 0)), ((8, "down", 0), (16, "down", 1))):
        with pytest.raises(ValueError, match="64,down,0"):
            combine.span(unet, first, last)


def test_blocks_have_names_of_their_own_where_the_last_block_on_the_way_down_attends():
    names = {path: name for path, name in combine.units(tiny_sdxl().unet).items() if name}
    assert names["down_blocks.2.attentions.0"] == (4, "down", 0) and len(set(names.values())) == len(names)
    assert names["mid_block.attentions.0"] == (4, "down", 1)


def test_style_mixing_takes_each_layer_from_one_side():
    appearance = {"a.0": torch.zeros(1), "b.0": torch.zeros(1), "c": torch.zeros(1)}
    geometry = {"a.0": torch.ones(1), "b.0": torch.ones(1), "d": torch.ones(1)}
    mixed = combine.style_mix(appearance, geometry, combine.inside(["a.0", "b.0", "ba.0"], ["b"]))
    assert {name: float(value) for name, value in mixed.items()} == {"a.0": 0.0, "b.0": 1.0, "c": 0.0}


def test_correlation_averages_over_layers():
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0, 1.0]), "c": torch.zeros(2)}
    two = {"a": torch.tensor([5.0, 0.0]), "b": torch.tensor([1.0, -1.0]), "c": torch.ones(2)}
    assert combine.correlation(one, two) == pytest.approx(0.5)
    assert combine.correlation(one, one) == pytest.approx(1.0)


def test_truncation_keeps_the_largest_singular_values():
    for share, kept in ((0.0, [0.0] * 5), (0.5, [1.0, 2.0, 3.0, 0.0, 0.0]), (1.0, [1.0, 2.0, 3.0, 4.0, 5.0])):
        assert combine.truncate({"a": torch.arange(1.0, 6.0)}, share)["a"].tolist() == kept
    some = combine.truncate({"a": torch.ones(4), "norm": torch.ones(4)}, 0.5, whole=["norm"])
    assert some["a"].tolist() == [1.0, 1.0, 0.0, 0.0] and some["norm"].tolist() == [1.0] * 4
