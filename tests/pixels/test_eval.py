"""pixels.eval on three pairs and a small random model: rows, tables, figures, shards, resuming, study, wrong input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common import claims
from common.runs import read_json, read_rows, write_json
from pixels import eval as pixels_eval
from pixels.reproduction import figures
from pixels.reproduction.baselines import METHODS, REFERENCES, TRUE
from tests.pixels.tiny_models import few_numbers, write_eyes
from tests.small_data import write_pairs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def eyes(encoders, tmp_path_factory):
    """The folder that --metric_encoders takes."""
    return write_eyes(encoders, tmp_path_factory.mktemp("eyes"))


@pytest.fixture
def run(tiny_folder, dataset, eyes, capsys, monkeypatch):
    monkeypatch.setattr("common.encoders.load_inception", lambda *where: few_numbers())

    def run(output, *flags):
        pixels_eval.main(["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(dataset),
                          "--metric_encoders", str(eyes), "--output_dir", str(output), "--device", "cpu",
                          "--num_inference_steps", "4", "--strength", "0.75", *flags])  # fmt: skip
        return capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def whole(run, results):
    """A finished run; what it printed stands in printed.txt beside."""
    if not (results / "whole").exists():
        (results / "printed.txt").write_text(run(results / "whole", "--table", "1a").out)
    return results / "whole"


def test_rows_pictures_and_tables(whole):
    rows = read_rows(whole / "rows.jsonl")
    methods = ["nothing", "paste", "alpha", "poisson", "latent_paste", "perturbed", "noise_scaling", "pixels"]
    assert [(row["item"], row["method"]) for row in rows] == [(f"p{k}", m) for k in range(3) for m in methods]
    for row in rows:
        folder = whole / "pictures" / row["item"]
        assert {p.name for p in folder.iterdir()} >= {"source.png", "exemplar_1.png", "map.png", f"{row['method']}.png"}
        assert not any(np.isnan(value) for value in row["metrics"].values())
    assert (whole / "pictures" / "p2" / "exemplar_2.png").exists()
    pasted = rows[1]["metrics"]
    assert pasted["psnr_kept"] == float("inf") and pasted["mse_kept"] == 0  # not one pixel outside of the map
    summary = read_json(whole / "results.json")
    seams = [row["metrics"]["seam"] for row in rows if row["method"] == "pixels"]
    assert summary["pixels"]["seam"]["mean"] == pytest.approx(np.mean(seams)) and summary["pixels"]["seam"]["n"] == 3
    assert {"FID (inception)", "FID (clip-vit-base-patch32)"} <= summary["pixels"].keys()

    words = [line.split() for line in whole.with_name("printed.txt").read_text().splitlines()]
    assert ["PIXELS", "published", "91.71", "5.412"] in words
    key = next(key for key in summary["pixels"] if key.startswith("CLIP-I/same_box"))
    mean = 100 * summary["pixels"][key]["mean"]
    ours = [line for line in words if line[:2] == ["PIXELS", "measured:"]]
    assert len(ours) == 1 and f"{mean:.4g}" in ours[0]
    assert any(line[:2] == ["paste", "measured:"] for line in words)  # the control stands in the table too


def test_the_distance_to_the_sources_is_that_of_the_pictures_on_disk(whole):
    from common.metrics import frechet_distance

    def features(name):
        arrays = [np.asarray(Image.open(whole / "pictures" / f"p{k}" / f"{name}.png")) / 255 for k in range(3)]
        return torch.tensor(np.stack(arrays)).float().permute(0, 3, 1, 2)[..., ::32, ::32].flatten(1)

    expected = frechet_distance(features("source"), features("pixels"))
    summary = read_json(whole / "results.json")
    assert summary["pixels"]["FID (inception)"]["mean"] == pytest.approx(expected, rel=1e-4)


def test_rows_and_pictures_of_other_weights_may_be_there_before(run, whole, tmp_path):
    """eval.tracks.pretrained_exemplar runs at a size of its own, and leaves source.png at that size."""
    out = tmp_path / "out"
    run(out, "--table", "1a", "--methods", "paste")
    rows = [row | {"method": "ip_adapter"} for row in read_rows(out / "rows.jsonl")]
    for k in range(3):
        place = out / "pictures" / f"p{k}"
        Image.open(place / "paste.png").resize((16, 16)).save(place / "ip_adapter.png")
        Image.open(place / "source.png").resize((16, 16)).save(place / "source.png")
    for old in ("rows.jsonl", "config.json", "results.json"):
        (out / old).unlink()
    (out / "rows-ip_adapter.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(out, "--table", "1a", "--methods", "paste")
    summary, alone = (read_json(folder / "results.json") for folder in (out, whole))
    assert summary["paste"]["FID (inception)"] == alone["paste"]["FID (inception)"] and "ip_adapter" in summary


def test_other_settings_need_another_folder(run, whole, refused):
    refused("another --threshold (linear)", run, whole, "--threshold", "log")


def test_figures(run, tmp_path):
    for name in "235":
        run(tmp_path / "out", "--figure", name)
        assert Image.open(tmp_path / "out" / f"figure_{name}.png").width > 500
    compared, shown = (read_json(tmp_path / "out" / f"figure_{name}.json") for name in "23")
    assert len(compared) == 3 and {"paste", "pixels"} <= compared[0].keys()
    assert len(shown) == 2 and shown[0]["kept"] >= shown[1]["kept"]


def test_figure_7_compares_the_thresholds_and_judges_their_claims(run, tmp_path):
    printed = run(tmp_path / "out", "--figure", "7", "--limit", "1").out
    gaps = {row["method"]: row["metrics"]["mse_grey"] for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    assert list(gaps) == ["pixels", *(f"pixels_{name}" for name in ("quadratic", "cubic", "log", "sigmoid"))]
    areas = dict(line.split() for line in printed.splitlines() if len(line.split()) == 2)
    assert areas["linear"] == "0.3333"  # three of four steps
    (line,) = [line for line in printed.splitlines() if line.startswith("The log threshold lets more")]
    assert claims.number(gaps["pixels_log"] - gaps["pixels"]) in line and "inconclusive (1 independent items" in line


def test_strength_against_distance(run, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "fit_reference", lambda bench, pairs: lambda picture: picture.mean().item())
    printed, _ = (run(tmp_path / "out", "--figure", name, "--num_inference_steps", "10").out for name in "68")
    needed, distances = (read_json(tmp_path / "out" / f"figure_{name}.json") for name in "68")
    assert len(needed["rows"]) == 18 and "rank correlation" in printed
    for row in needed["rows"]:
        reached = [score >= needed["threshold"] for score in row["scores"]]
        assert not any(reached[:-1]) and (row["needed"] is None) == (not reached[-1])
    assert len(distances) == 6 and distances[0]["distance"] <= distances[1]["distance"]


def test_lemma(run, tmp_path):
    printed = run(tmp_path / "out", "--lemma", "--repeats", "8", "--num_inference_steps", "10").out
    numbers = read_json(tmp_path / "out" / "lemma.json")
    assert [(row["strength"], row["runs"]) for row in numbers] == [(0.2, 2), (0.5, 2), (0.8, 2)]
    assert all(row["bounds"]["corrected"] > row["bounds"]["paper"] for row in numbers) and "corrected bound" in printed


def test_the_answers_of_a_study_are_averaged(run, whole, tmp_path):
    run(whole, "--user_study")
    key = read_json(whole / "study_key.json")
    for who, first in (("a", "pixels"), ("b", "pixels"), ("c", "paste")):
        answers = {}
        for group, letters in key["groups"].items():
            order = sorted(letters, key=lambda letter, names=letters: (names[letter] != first, names[letter]))
            answers[group] = dict.fromkeys(("adherence", "realism"), {one: order.index(one) + 1 for one in order})
        write_json(tmp_path / f"{who}.json", {"who": who, "study": key["study"], "answers": answers})
    printed = run(whole, "--answers", *(str(tmp_path / f"{who}.json") for who in "abc")).out
    line = next(line.split() for line in printed.splitlines() if line.startswith("PIXELS") and "measured" in line)
    assert "2.333" in line  # of 1, 1 and 5


@pytest.mark.parametrize("flags, message", [
    (["--dataset", "EMPTY"], "EMPTY"),
    (["--pairs", "/no/such/place", "--dataset", "picturebook"], "name a folder"),
    (["--strength", "0.1"], "leaves none of 4 steps"),
    (["--height", "63"], "no multiple of 4"),
    (["--dataset", "NUMBERED"], "map of numbered regions"),
    (["--dataset", "ASKEW"], "the map would lie askew"),
    (["--dataset", "CUT"], "5.png cannot be read"),
])  # fmt: skip
def test_wrong_input_is_one_sentence(run, tmp_path, refused, flags, message):
    """What is wrong with the last of the pairs, too, leaves nothing behind."""
    (tmp_path / "EMPTY").mkdir()
    for name in ("NUMBERED", "ASKEW", "CUT"):
        write_pairs(tmp_path / name)
    Image.new("L", (64, 64), 7).save(tmp_path / "NUMBERED" / "b.png")
    Image.new("L", (32, 64), 255).save(tmp_path / "ASKEW" / "b.png")
    (tmp_path / "CUT" / "5.png").write_bytes((tmp_path / "CUT" / "5.png").read_bytes()[:2000])
    flags = [str(tmp_path / flag) if flag.isupper() else flag for flag in flags]
    refused(message, run, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_names_offered_are_names_known():
    assert pixels_eval.METHOD_NAMES == (*TRUE, *METHODS) and pixels_eval.METHOD_NAMES[:6] == REFERENCES
    assert set(pixels_eval.FIGURES) - {"4", "7", "10"} == set(figures.FIGURES)
