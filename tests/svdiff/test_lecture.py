"""The lecture runs, and the answers to its exercises."""

import pytest
import torch
from torch import nn

from common.picturebook.shipping import shipped_unet
from svdiff import basis, combine, spectral, subsets
from svdiff.spaces import LORA_LAYERS
from tests import lectures


@pytest.mark.slow
def test_the_lecture_runs():
    names = lectures.run_quickly("svdiff")
    assert len(names["dead"]) == names["steps"] and names["gap"] < 1e-4
    assert not torch.equal(names["tuned"], names["untuned"]) and len(names["row"]) == len(names["alphas"])
    assert any(name.startswith("text_encoder.") for name in names["shifts"])
    assert torch.is_grad_enabled()


def parts(m=5, n=9, seed=0):
    W = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    return W, U, sigma, Vh


def shifted(U, sigma, Vh, delta):
    return (U * torch.relu(sigma + delta)) @ Vh


def test_1_the_new_weight():
    W, U, sigma, Vh = parts()
    layer = nn.Linear(9, 5).double().requires_grad_(False)
    layer.weight.data = W
    delta = torch.linspace(-2, 2, 5, dtype=torch.float64)
    ours = spectral.rebuilt(layer, basis.Basis(U, sigma, Vh), delta)
    torch.testing.assert_close(shifted(U, sigma, Vh, delta), ours)
    assert not torch.allclose((U * sigma) @ Vh, ours)  # what the cell begins with


def test_2_the_numbers_of_shifts_and_of_a_lora():
    def numbers(c_out, c_in, k, rank):
        rows, columns = c_out, c_in * k * k
        return min(rows, columns), rank * (rows + columns)

    def of_unet(model, rank):
        linear = [layer for name, layer in model.named_modules() if name.endswith(tuple(LORA_LAYERS))]
        loras = [numbers(one.out_features, one.in_features, 1, rank)[1] for one in linear]
        return subsets.cost(model, "UNet")["values"], sum(loras)

    ours, theirs = numbers(320, 320, 3, 1)
    assert ours == subsets.shift_length(nn.Conv2d(320, 320, 3)) == 320
    assert theirs == 3200  # of one layer LoRA is the larger one from rank 1 on
    unet, small = subsets.stable_diffusion_unet(), shipped_unet()
    assert [of_unet(unet, rank) for rank in (1, 2, 4)] == [(322856, rank * 199296) for rank in (1, 2, 4)]
    assert [of_unet(small, rank) for rank in (1, 2)] == [(17544, 10080), (17544, 20160)]  # of both files from rank 2 on


def test_3_the_gradient_of_a_shift():
    _, U, sigma, Vh = parts()
    delta = torch.tensor([0.5, -0.1, 0.0, -9.0, 0.2], dtype=torch.float64, requires_grad=True)
    G = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (shifted(U, sigma, Vh, delta) * G).sum().backward()
    by_hand = torch.einsum("mr,mn,rn->r", U, G, Vh) * (sigma + delta.detach() > 0)
    torch.testing.assert_close(delta.grad, by_hand)
    assert delta.grad[3] == 0  # dead for the training: AdamW's decay, 1e-2 of a rate of 2e-2, takes 2 % in 100 steps
    assert 0.97 < (1 - 2e-2 * 1e-2) ** 100 < 0.99
    one, none = {"w": delta.detach()}, {"w": torch.zeros(5, dtype=torch.float64)}
    scale = 0.9 * float(sigma[3] / 9)
    for alive in (spectral.spectrum(sigma, one["w"], scale),
                  spectral.spectrum(sigma, combine.add([one, {"w": -0.95 * one["w"]}])["w"]),
                  spectral.spectrum(sigma, combine.interpolate(one, none, scale)["w"])):  # fmt: skip
        assert alive[3] > 0  # at once: a scale below 1, an added shift, interpolation


def test_4_the_mean_of_two_models():
    _, U, sigma, Vh = parts()

    def mean_gap(one, two):
        middle = combine.interpolate({"w": one}, {"w": two}, 0.5)["w"]
        ends = [shifted(U, sigma, Vh, delta) for delta in (one, two)]
        return float((shifted(U, sigma, Vh, middle) - (ends[0] + ends[1]) / 2).abs().max())

    small = torch.full((5,), 0.1, dtype=torch.float64)
    assert mean_gap(small, -small * 0.1) < 1e-12  # as long as the ReLU cuts nothing, Eq. 5 is linear
    cut = torch.zeros(5, dtype=torch.float64)
    cut[0] = -3 * sigma[0]
    assert mean_gap(small, cut) > 0.01


def test_5_half_of_an_overshooting_training():
    sigma, delta = torch.ones(4), torch.tensor([-0.5, -1.5, -1.9, -2.5])  # a step too far switches directions off
    assert (spectral.spectrum(sigma, delta) > 0).tolist() == [True, False, False, False]
    assert (spectral.spectrum(sigma, delta, 0.5) > 0).tolist() == [True, True, True, False]  # above -2 sigma
