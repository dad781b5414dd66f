"""The schemes that make bench times are what they are called; bytes of Stable Diffusion's weights, counted."""

import copy

import pytest
import torch

from eval.bench import shifts as bench
from svdiff.basis import Basis, as_matrix, find_bases, tunable
from svdiff.spectral import attach
from svdiff.subsets import stable_diffusion_unet
from tests.tiny import tiny_sd


def test_every_scheme_takes_its_step():
    unet = tiny_sd(channels=(16, 16), latent=8).unet
    rows, _ = bench.step_rows(unet, 2, 1)
    assert len(rows) == 2 and all(row[f"{name}_seconds"] > 0 for row in rows for name in bench.SCHEMES)
    counts = {name: rows[0][f"{name}_trained"] for name in bench.SCHEMES}
    assert counts["frozen"] == 0 and counts["shifts"] == counts["rebuilding"] < counts["full"]
    assert counts["full"] == sum(p.numel() for p in unet.parameters())
    assert rows[0]["frozen_weights_mb"] < rows[0]["shifts_weights_mb"] < rows[0]["rebuilding_weights_mb"]


def test_both_forms_of_a_step_train_the_same_numbers(tmp_path):
    unet, grads = tiny_sd(channels=(16, 16), latent=8).unet, []
    bases, given = find_bases(unet, tunable(unet), tmp_path), bench.inputs(unet, 1)
    for scheme in (bench.shifts, bench.rebuilding):
        deltas, forward, _ = scheme(copy.deepcopy(unet).requires_grad_(False), bases)
        forward(*given).sample.square().mean().backward()
        grads.append([delta.grad for delta in deltas])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_layers_of_stable_diffusion_are_all_counted():
    found = bench.layer_shapes(stable_diffusion_unet(), 1)
    assert sum(count for _, count in found.values()) == 98 + 184
    assert ((320, 320), None, (1, 4096, 320)) in found and ((320, 4, 3, 3), (1, 1), (1, 4, 64, 64)) in found


def test_weights_in_activation_space_take_at_most_a_third_more():
    unet = stable_diffusion_unet()
    base, bases = bench.weight_bytes(unet), {}
    for path, layer in tunable(unet).items():
        if layer.weight.ndim > 1:
            m, n = as_matrix(layer).shape
            r = min(m, n)
            bases[path] = Basis(*(torch.empty(shape, device="meta") for shape in ((m, r), (r,), (r, n))))
    attach(unet, list(tunable(unet)), bases)
    assert bench.weight_bytes(unet) / base == pytest.approx(1.26, abs=0.01)
