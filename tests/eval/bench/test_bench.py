"""eval.bench on a small random model."""

import json

import pytest

from eval.bench import __main__ as bench
from eval.bench.inversions import SOLVERS


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


def test_wrong_input(tmp_path, refused):
    refused("mapping_file.json", bench.main, ["--output_dir", str(tmp_path / "out"), "--dataset", "/nowhere"])
    assert not (tmp_path / "out").exists()
