"""spdinv.eval on a small PIE-Bench folder and a small random model: rows, tables, resuming, wrong input."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import EditItem, encode_mask, read_pie_bench
from common.encoders import load_encoders
from common.picturebook import benchmarks, classifier
from common.runs import read_rows, write_json
from common.tables import published_table
from spdinv import eval as spdinv_eval
from spdinv.inversions import Entry
from spdinv.options import Method
from spdinv.reproduction import items
from tests.refusing import refuses


def test_rows_pictures_and_tables(run, tmp_path, monkeypatch):
    finished, pair = tmp_path / "out", ("--inversions", "ddim", "spd", "--engines", "p2p", "--spd_rounds", "2")
    shown = run(finished, "--table", "1", *pair).out
    rows = read_rows(finished / "rows.jsonl")
    order = [(item, method) for item in "012" for method in ("ddim+p2p", "spd+p2p")]
    assert [(row["item"][-1], row["method"]) for row in rows] == order
    assert [row["blended_words"] for row in rows[::2]] == [["red", "blue"], None, [None, "big"]]
    for row in rows:
        folder = finished / "pictures" / row["item"]
        assert {path.name for path in folder.iterdir()} >= {"source.png", f"{row['method']}.png",
                                                            f"{row['method']}_reconstruction.png"}  # fmt: skip
        assert np.isnan(row["metrics"]["psnr/pie_official"]) == (row["edit_type"] == "8")
        assert row["metrics"]["psnr/pie_official"] != row["metrics"]["psnr/pie_corrected"]

    with open(finished / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["item"] for line in lines] == ["000000000000", "000000000001", "000000000002"]
    assert float(lines[0]["spd+p2p|psnr/pie_official"]) == rows[1]["metrics"]["psnr/pie_official"]

    summary = json.loads((finished / "results.json").read_text())
    measured = summary["overall"]["spd+p2p"]["psnr/pie_official"]
    values = [row["metrics"]["psnr/pie_official"] for row in rows[1::2]]
    assert measured["n"] == 2 and measured["mean"] == pytest.approx(np.nanmean(values))
    assert measured["low"] <= measured["mean"] <= measured["high"]
    assert summary["by_edit_type"]["6"]["ddim+p2p"]["psnr/pie_official"]["n"] == 1

    lines = [line.split() for line in shown.splitlines()]
    assert ["SPDInv", "P2P", "published", "8.81", "28.6", "36.01", "24.54", "86.23", "25.26", "27.04"] in lines
    mse = summary["overall"]["ddim+p2p"]["mse/pie_official"]["mean"] * 1e4
    assert any(line[:4] == ["DDIM", "P2P", "measured,", "inversion_only:"] and f"{mse:.4g}" in line for line in lines)
    assert sum("measured," in line for line in lines) == 2
    monkeypatch.setattr(spdinv_eval, "run_item", lambda *a: pytest.fail("nothing was left to do"))
    run(finished, *pair)


def test_limit_types_and_other_settings(run, refused, tmp_path):
    def methods():
        return [row["method"] for row in read_rows(tmp_path / "out" / "rows.jsonl")]

    only_ddim = (tmp_path / "out", "--inversions", "ddim", "--limit", "1")
    run(*only_ddim, "--edit_types", "6", "8", "--inversions", "ddim", "ddim")
    assert [row["edit_type"] for row in read_rows(tmp_path / "out" / "rows.jsonl")] == ["6"]
    refused("guidance_scale of ddim+p2p (7.5)", run, *only_ddim, "--guidance_scale", "3")
    refused("--seed", run, *only_ddim, "--seed", "1")
    assert methods() == ["ddim+p2p"]
    run(*only_ddim, "--preset", "as_released")  # a name of its own
    assert methods() == ["ddim+p2p", "ddim+p2p@as_released"]
    assert len(json.loads((tmp_path / "out" / "config.json").read_text())["methods"]) == 2


def test_the_quick_subset_may_grow_into_all_items(tmp_path):
    args = spdinv_eval.parse([])
    write_json(tmp_path / "config.json", spdinv_eval.config_of(tmp_path, args, spdinv_eval.methods_of(args)))
    (tmp_path / "rows.jsonl").write_text('{"method": "ddim+p2p", "item": "a"}\n')
    args = spdinv_eval.parse(["--full"])
    assert spdinv_eval.config_of(tmp_path, args, {})["methods"].keys() == spdinv_eval.methods_of(args).keys()
    assert len(args.weights) == 12  # of a hash of the picturebook's UNet
    args.weights = "0123456789ab"  # one that was trained on
    refuses("other weights", spdinv_eval.config_of, tmp_path, args, {})


@pytest.mark.parametrize("change, said", [
    ({"target_prompt": "a dog"}, "other pictures of a"), ({"mask_runs": (3, 4)}, "other pictures of a"),
    ({"blended_words": ("a", "b")}, "other pictures of a"), ({"a.png": b"2"}, "other pictures of a"),
    ({"truth.png": b"2"}, "other pictures of a"), ({"adapter": ["cat.safetensors"]}, "another --adapter"),
    ({"elite": "cat.pt"}, "another --elite"),
])  # fmt: skip
def test_rows_of_other_prompts_pictures_and_adapters_are_not_joined(tmp_path, change, said):
    item = EditItem("a", tmp_path / "a.png", "a cat", "a cup", "", "1", None, (1, 2), (8, 8),
                    extras={"truth_path": "truth.png"})  # fmt: skip

    def config(**told):
        for name in ("a.png", "truth.png"):
            (tmp_path / name).write_bytes(told.pop(name, b"1"))
        args = spdinv_eval.parse([])
        vars(args).update({name: told.pop(name, None) for name in ("adapter", "elite")})
        return spdinv_eval.config_of(tmp_path, args, {}, [replace(item, **told)], tmp_path)

    write_json(tmp_path / "config.json", config())
    (tmp_path / "rows.jsonl").write_text('{"method": "ddim+p2p", "item": "a"}\n')
    refuses(said, config, **change)
    assert config()["pictures"].keys() == {"a"}


def test_every_row_of_table_1_runs_and_inversions_are_shared(run, tmp_path, monkeypatch):
    calls, invert = [], Entry.__call__
    monkeypatch.setattr(Entry, "__call__", lambda self, *a, **k: calls.append(self.name) or invert(self, *a, **k))
    shown = run(tmp_path / "out", "--table", "1", "--limit", "1", "--start_step", "0", "--null_text_inner_steps", "1",
                "--spd_rounds", "1", "--presets", "inversion_only", "as_released").out  # fmt: skip
    rows = {row["method"]: row for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    released = {f"spd+{engine}@as_released" for engine in ("p2p", "masactrl", "pnp")}
    assert set(rows) == {row["method"] for row in published_table("spdinv", "1")["rows"]} | released
    assert sorted(calls) == sorted({name.split("+")[0] for name in rows})  # each once
    assert all(row["seconds"] >= row["inversion_seconds"] > 0 for row in rows.values())
    assert rows["spd+pnp"]["inversion_seconds"] == rows["spd+p2p"]["inversion_seconds"]
    assert shown.count("measured, inversion_only") == 17 and shown.count("measured, as_released") == 3


def test_a_mask_is_cropped_as_its_picture(monkeypatch):
    """A wide item: of mask and picture the central square remains, 16 columns go on either side."""
    seen = []
    monkeypatch.setattr("common.metrics.pie_scores", lambda source, edited, mask, *rest: seen.append(mask) or {})
    mask = torch.zeros(64, 96)
    mask[10:30, 70:90] = 1
    item = EditItem("wide", None, "a cat", "a dog", "", "1", None, tuple(encode_mask(mask)), (64, 96))
    pictures = dict.fromkeys(("source", "reconstruction", "edited"), Image.new("RGB", (64, 64)))
    items.scores(item, pictures, None, None)
    assert len(seen) == 2 and all(torch.equal(found[0, 0], mask[:, 16:80]) for found in seen)


@pytest.mark.parametrize("words, found", [
    (("cat", "dog"), ("cat", "dog")), (("cat", "hat"), ("cat", None)), (("hat", "dog"), (None, "dog")),
    (("hat", "hat"), None), (None, None),
])  # fmt: skip
def test_a_missing_word_leaves_blending_to_the_other(pipe, words, found):
    item = EditItem("0", None, "a cat", "a dog", "", "1", words, ())
    assert items.blended_words(pipe, item) == found


def test_the_source_prompt_can_be_left_untold(pipe, benchmark, encoders):
    item, told, bench = read_pie_bench(benchmark, limit=1)[0], {}, items.Bench(pipe, load_encoders(encoders))
    for null in (False, True):
        method = Method("ddim", "masactrl", num_inference_steps=6, null_source_prompt=null)
        _, told[null] = items.run_item(bench, item, method, inverted=(cache := {}))
        items.run_item(bench, replace(item, source_prompt="a bird"), method, inverted=cache)
        assert len(cache) == 2 - null  # "" is the same for both
    assert np.any(np.array(told[False]["edited"]) != np.array(told[True]["edited"]))


def test_picturebook_items_are_scored_against_the_true_edit(pipe, encoders, tmp_path, monkeypatch):
    key, entry = benchmarks.write_edit_item(tmp_path, "validation", "6", 0)
    write_json(tmp_path / "mapping_file.json", {key: entry})
    judge = classifier.AttributeClassifier().eval()
    monkeypatch.setattr(benchmarks, "load_classifier", lambda *device: judge)
    (item,), method = read_pie_bench(tmp_path), Method("ddim", num_inference_steps=2)
    row, pictures = items.run_item(items.Bench(pipe, load_encoders(encoders), tmp_path), item, method)
    assert row["metrics"]["edit_success (picturebook)"] in (0.0, 1.0) and row["metrics"]["lpips_truth (squeeze)"] > 0
    truth = np.array(Image.open(tmp_path / item.extras["truth_path"]).convert("RGB")) / 255
    error = ((truth - np.array(pictures["edited"]) / 255) ** 2).mean()
    assert row["metrics"]["psnr_truth"] == pytest.approx(-10 * np.log10(error), rel=1e-4)


@pytest.mark.parametrize("words, message", [
    ("--edit_types 3", "no item of the edit types"), ("--table 1 --inversions edict", "table 1 has no row"),
    ("--inversions ddim --spd_rounds 3", "inversion spd"), ("--engines p2p --start_step 3", "engine masactrl"),
    ("--experiment noise_gap --table 1", "by itself"),
    ("--experiment premise --inversion_steps 10", "--inversion_steps"),
    ("--experiment convergence --self_replace_steps 0.5", "engine p2p"),
    ("--null_source_prompt", "under masactrl and pnp"),
    ("--null_source_prompt --engines masactrl --experiment premise", "under masactrl and pnp"),
    ("--baselines blended_diffusion", "give --unconditional_model"),
    ("--baselines blended_diffusion --unconditional_model /no/such/place", "does not exist"),
    ("--baselines elite", "give --elite"), ("--dataset HOSTILE", "names files"),
    ("--baselines instruct_pix2pix --experiment noise_gap", "leave out --baselines"),
])  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_nothing(run, refused, benchmark, tmp_path, words, message):
    listed, hostile = json.loads((benchmark / "mapping_file.json").read_text()), tmp_path / "bench"
    shutil.copytree(benchmark, hostile)  # its items would leave their folders
    write_json(hostile / "mapping_file.json", {"../" + name: entry for name, entry in listed.items()})
    refused(message, run, tmp_path / "out", *words.replace("HOSTILE", str(hostile)).split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, rows, dataset", [
    ("1", 17, "PIE-Bench, 700"), ("2", 7, "ELITE"), ("3", 14, "0_random_140"), ("s1", 3, None),
    ("s2", 17, "TDE-Bench"), ("noise_gap", 2, None),
])  # fmt: skip
def test_published_tables_are_whole_and_print_config_resolves_every_row(capsys, name, rows, dataset):
    def config(*flags):
        spdinv_eval.main(["--print_config", "--table", name, *flags])
        return json.loads(capsys.readouterr().out)

    table = published_table("spdinv", name)
    assert len(table["rows"]) == rows and table["place"] and table["doubts"]
    for row in table["rows"]:
        assert len(row["values"]) == len(table["columns"]) and len(row["label"]) == len(table["label_columns"])
    if not dataset:
        assert name != "s1" or config()["experiment"] == "noise_gap"
        return
    shown = config()
    assert shown["pretrained_model_name_or_path"] == "CompVis/stable-diffusion-v1-4" and shown["resolution"] == 512
    assert dataset in shown["dataset"] and shown["metric_encoders"] == "pie"
    lines = shown["rows"]["inversion_only"]
    assert len(lines) == rows and all("needs" in line or line["num_inference_steps"] for line in lines)
    if name == "3":
        options = [line["inversion_options"] for line in lines]
        assert [one["rounds"] for one in options[:3]] == [5, 25, 50] and options[5]["threshold"] == 5e-7
        assert options[9]["learning_rate"] == 0.1 and lines[12]["num_inference_steps"] == 75
        assert len({line["name"] for line in lines}) == 10 and shown["edit_types"] == ["0"]
    if name == "2":
        assert [line["row"] for line in lines if "needs" in line] == ["BlendDM", "InstructP2P", "ELITE", "SPDInv-ELITE"]
