"""eval.bench on a small random model; its schemes are what they are called; bytes of Stable Diffusion's weights."""

import copy
import json

import pytest
import torch

from eval.bench import __main__ as bench
from eval.bench import shifts
from eval.bench.inversions import SOLVERS
from eval.bench.profile import explain
from svdiff.basis import Basis, as_matrix, find_bases, tunable
from svdiff.spectral import attach
from svdiff.subsets import stable_diffusion_unet
from tests.tiny import tiny_sd


def test_bench(tiny_folder, benchmark, tmp_path, capsys, monkeypatch):
    for solver in ("spd", "spd_paper"):
        name, options = SOLVERS[solver]
        monkeypatch.setitem(SOLVERS, solver, (name, options | {"rounds": 4}))
    bench.main(["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark), "--items", "1",
                "--num_inference_steps", "3", "--repeats", "2", "--device", "cpu",
                "--output_dir", str(tmp_path)])  # fmt: skip
    shown, result = capsys.readouterr().out, json.loads((tmp_path / "bench.json").read_text())
    assert all(solver in shown for solver in SOLVERS) and "ours" in shown
    rows = {(row["solver"], row["item"]): row for row in result["inversions"]}
    assert len(rows) == len(SOLVERS)
    ddim, spd = rows["ddim", "000000000000"], rows["spd", "000000000000"]
    assert (ddim["forward"], ddim["backward"]) == (3, 0) and spd["forward"] == 3 + spd["backward"] > 3
    assert spd["residual"] < ddim["residual"] and spd["latent_mse"] < ddim["latent_mse"]
    exact = rows["spd_anderson", "000000000000"]
    assert exact["backward"] == 0 and exact["noise_gap"] < 0.1 * ddim["noise_gap"]
    assert len(result["sampling"]["rows"]) == len(result["surgery"]) == 2 and "Latent surgery" in shown
    assert len(result["penalty"]) == len(result["prior"]) == 2 and "of a step at batch 1" in shown
    assert result["penalty"][0]["general_mb"] == pytest.approx(2 * result["penalty"][0]["bf16_mb"])
    assert result["sampling"]["largest_difference"] < 1e-4  # the same sampler, but for rounding


def test_every_scheme_takes_its_step():
    unet = tiny_sd(channels=(16, 16), latent=8).unet
    rows, _ = shifts.step_rows(unet, 2, 1)
    assert len(rows) == 2 and all(row[f"{name}_seconds"] > 0 for row in rows for name in shifts.SCHEMES)
    counts = {name: rows[0][f"{name}_trained"] for name in shifts.SCHEMES}
    assert counts["frozen"] == 0 and counts["shifts"] == counts["rebuilding"] < counts["full"]
    assert counts["full"] == sum(p.numel() for p in unet.parameters())
    assert rows[0]["frozen_weights_mb"] < rows[0]["shifts_weights_mb"] < rows[0]["rebuilding_weights_mb"]


def test_both_forms_of_a_step_train_the_same_numbers(tmp_path):
    unet, grads = tiny_sd(channels=(16, 16), latent=8).unet, []
    bases, given = find_bases(unet, tunable(unet), tmp_path), shifts.inputs(unet, 1)
    for scheme in (shifts.shifts, shifts.rebuilding):
        deltas, forward, _ = scheme(copy.deepcopy(unet).requires_grad_(False), bases)
        forward(*given).sample.square().mean().backward()
        grads.append([delta.grad for delta in deltas])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_layers_of_stable_diffusion_are_all_counted():
    found = shifts.layer_shapes(stable_diffusion_unet(), 1)
    assert sum(count for _, count in found.values()) == 98 + 184
    assert ((320, 320), None, (1, 4096, 320)) in found and ((320, 4, 3, 3), (1, 1), (1, 4, 64, 64)) in found


def test_weights_in_activation_space_take_at_most_a_third_more():
    unet = stable_diffusion_unet()
    base, bases = shifts.weight_bytes(unet), {}
    for path, layer in tunable(unet).items():
        if layer.weight.ndim > 1:
            m, n = as_matrix(layer).shape
            r = min(m, n)
            bases[path] = Basis(*(torch.empty(shape, device="meta") for shape in ((m, r), (r,), (r, n))))
    attach(unet, list(tunable(unet)), bases)
    assert shifts.weight_bytes(unet) / base == pytest.approx(1.26, abs=0.01)


def test_products_and_sums_are_told_apart_and_multiplications_counted():
    one, other = torch.randn(2, 300, 300)
    found = explain("once", {"once": lambda number: one @ other, "twice": lambda number: (one @ other) @ other,
                             "sums": lambda number: [torch.add(one, other) for _ in range(20)]})  # fmt: skip
    assert found["once"]["products"] > 0.5 and found["twice"]["multiplications"] == 2
    assert found["sums"]["sums and copies"] > 10 * found["sums"]["products"] and not found["sums"]["multiplications"]
