"""svdiff.eval on a small random model, with trainings that only write files; scores and claims by hand; wrong input."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data import Subject, read_subjects
from common.flags import PICTUREBOOK_FOLDER
from common.images import save_png, to_tensor
from common.picturebook.benchmarks import ensure_twins
from common.picturebook.drawing import draw as paint
from common.picturebook.scenes import Scene, Thing
from common.pipelines import load_pipeline
from common.runs import read_rows
from common.tables import published_table
from svdiff import eval as svdiff_eval
from svdiff import train
from svdiff.basis import Bases
from svdiff.reproduction import correlation, figures, scores, study, tuning, user_study
from svdiff.spaces import SPACES
from tests.small_data import save_noise, write_subject_set


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three subjects of noise: two cats and a car."""
    prompts = {"object": ["a {0} {1} in the snow"], "live": ["a {0} {1} on grass"]}
    classes = {"cat": "cat", "cat2": "cat", "car": "car"}
    return write_subject_set(tmp_path_factory.mktemp("subjects"), classes, prompts)


def quick_training(argv):
    """In place of svdiff.train.main: flags are parsed and checked, weights are the base's and a little noise."""
    args = train.parse(argv)
    concepts = train.options.concepts_of(args)
    assert concepts
    pipe = load_pipeline(args.pretrained_model_name_or_path, "cpu")
    tuned = SPACES[args.parameter_space](pipe, args, Bases(pipe, args.basis_dir))
    seed = int(hashlib.sha256(args.output_dir.encode()).hexdigest()[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    for weight in tuned.weights.values():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    tuned.save(Path(args.output_dir))


@pytest.fixture
def evaluate(tiny_folder, dataset, benchmark, encoders, tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(study.train, "main", quick_training)
    basis = tmp_path_factory.getbasetemp() / "basis"

    def run(*more):
        svdiff_eval.main([
            "--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(dataset), "--items_dir",
            str(benchmark), "--metric_encoders", str(encoders), "--device", "cpu", "--limit", "1", "--pairs", "1",
            "--prompts", "1", "--images_per_prompt", "1", "--items", "1", "--num_inference_steps", "1", "--basis_dir",
            str(basis), "--output_dir", str(tmp_path / "out"), "--geometry_layers", "8,down,0", "4,down,0", *more,
        ])  # fmt: skip
        return tmp_path / "out"

    return run


def test_figures_of_single_subjects(evaluate, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(study.train, "main", lambda argv: told.append(argv) or quick_training(argv))
    output = evaluate("--figure", "5", "9", "scaling", "rank", "10", "--learning_rate", "svdiff=0.25", "full=0.5")
    for name in ("single/figure5.png", "single/figure9b.png", "correlation/figure9a.png", "scaling/scaling.png",
                 "rank/rank.png", "style/figure10.png"):  # fmt: skip
        assert (output / name).is_file(), name
    rows = read_rows(output / "single" / "rows.jsonl")
    assert {row["method"] for row in rows} == {*figures.ONE_SUBJECT, "base"}
    drifts, rows = [[row for row in rows if (row["item"] == "cat|drift") == so] for so in (True, False)]
    assert len(drifts) == len(rows) - 1
    assert all(key.startswith("drift_score") for row in drifts for key in row["metrics"])
    assert rows[0]["item"] == "cat|0"
    assert rows[0]["prompt"] == "a sks cat on grass"
    assert {name.partition(" (")[0] for name in rows[0]["metrics"]} == {"image_alignment", "CLIP-T", "DINO", "CLIP-I"}
    rates = {(argv[argv.index("--parameter_space") + 1], word.partition("=")[2])
             for argv in told for word in argv if word.startswith("--learning_rate=")}  # fmt: skip
    assert rates == {("svdiff", "0.25"), ("full", "0.5")}
    shown, done = capsys.readouterr().out, len(told)
    assert "SVDiff's likeness to the subject" in shown and "inconclusive" in shown
    evaluate("--figure", "5", "--learning_rate", "svdiff=0.25", "full=0.5")
    again = read_rows(output / "single" / "rows.jsonl")
    assert len(told) == done and len(again) == len(rows) + len(drifts)  # nothing is done twice
    assert set(json.loads((output / "results.json").read_text())) == {"5", "9", "scaling", "rank", "10"}


@pytest.mark.slow
def test_figures_of_several_subjects_and_the_user_study(evaluate, tmp_path, capsys):
    output = evaluate("--figure", "6", "8", "11", "study")
    for name in ("multi/figure6.png", "combination/figure8.png", "interpolation/figure11.png"):
        assert (output / name).is_file(), name
    rows = read_rows(output / "multi" / "rows.jsonl")
    assert {row["group"] for row in rows} == {"similar", "dissimilar", "three"}
    assert {row["item"] for row in rows if row["group"] == "similar"} == {"cat+cat2|0"}
    assert all(row["metrics"]["seam"] > 0 for row in rows) and "svdiff+cut_mix+negative" in {r["method"] for r in rows}
    page, key = (output / "user_study" / name for name in ("study.html", "study_key.json"))
    kept = json.loads(key.read_text())
    assert "svdiff" not in page.read_text() and user_study.QUESTION in page.read_text() and len(kept["groups"]) == 2
    ranks = {number: {"better": {letter: 1 + (method != "svdiff+cut_mix") for letter, method in methods.items()}}
             for number, methods in kept["groups"].items()}  # fmt: skip
    (tmp_path / "answers.json").write_text(json.dumps({"study": kept["study"], "answers": ranks}))
    evaluate("--figure", "study", "--answers", str(tmp_path / "answers.json"))
    assert "100.0 %" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["0", "1"])
def test_the_untuned_picturebook_is_told_the_colours_first(tmp_path, monkeypatch, gate, capsys):
    """In two steps it draws little: where all pictures are asked for, nothing is trained."""
    monkeypatch.setattr(study.train, "main", quick_training)
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "drawn"))
    svdiff_eval.main(["--figure", "6", "--dataset", "picturebook-twins", "--pairs", "1", "0", "--prompts", "1",
                      "--subjects", "cat", "cat2",
                      "--images_per_prompt", "1", "--num_inference_steps", "2", "--device", "cpu", "--gate", gate,
                      "--basis_dir", str(tmp_path / "basis"), "--output_dir", str(tmp_path / "out")])  # fmt: skip
    rows = {row["method"]: row for row in read_rows(tmp_path / "out" / "multi" / "rows.jsonl")}
    kept = json.loads((tmp_path / "out" / "multi" / "gate.json").read_text())
    assert kept["least"] == float(gate) and set(kept["shown"]) == {"cat+cat2"}
    if gate == "1":
        assert set(rows) == {figures.TOLD} and "nothing is trained" in capsys.readouterr().out
        return
    one, two = rows[figures.TOLD]["prompt"].removesuffix(" in a meadow").split(" and ")
    assert one != two and one.endswith(" cat") and two.endswith(" cat") and len(one.split()) == len(two.split()) == 3
    assert rows["svdiff+cut_mix"]["prompt"] == "a sks cat and a qwe cat in a meadow"
    assert all({"present", "both_present", "seam"} <= row["metrics"].keys() for row in rows.values())
    assert rows["the first, repeated"]["metrics"]["both_present"] == 0


def test_tuning_tries_the_whole_grid_and_names_the_best(evaluate, monkeypatch, capsys):
    asked = []

    def from_scratch(argv):
        asked.append(argv)
        quick_training([word for word in argv if "resume" not in word and "checkpoint-" not in word])

    monkeypatch.setattr(study.train, "main", from_scratch)
    rates = ["--rates", "svdiff=1e-3", "svdiff=1e-2", "lora=1e-3"]
    output = evaluate("--figure", "tuning", "--max_train_steps", "4", *rates)
    found = json.loads((output / "tuning" / "tuning.json").read_text())
    assert len(found["scores"]) == 3 * (4 + 1) and set(found["best"]) == {"svdiff", "lora"}
    assert all(0 <= score <= 1 for score in found["scores"].values())
    resumed = [argv for argv in asked if "--resume_from_checkpoint" in argv]
    assert len(resumed) == 3 * 3 and all("cosine" not in argv for argv in resumed)
    assert "at an edge" in capsys.readouterr().out


def test_a_setting_that_copies_or_does_nothing_scores_nothing():
    def rows(method, dino, clip):
        return {"method": method, "item": "cat|0", "metrics": {"DINO (x)": dino, "CLIP-T (x)": clip}}

    known = [rows(tuning.BASE, 0.1, 0.6), rows(tuning.OWN, 0.9, 0.4), rows("copies", 0.9, 0.4), rows("idle", 0.1, 0.6),
             rows("half", 0.5, 0.6)]  # fmt: skip
    assert tuning.score_of(known, "copies") == tuning.score_of(known, "idle") == 0
    assert tuning.score_of(known, "half") == pytest.approx(2 * 0.5 / 1.5)


def test_editing_and_the_ablation(evaluate, dataset, benchmark, refused):
    output = evaluate("--figure", "7", "ablation")
    rows = read_rows(output / "edits" / "rows.jsonl")
    kept = {row["method"]: row["metrics"]["psnr_kept"] for row in rows}
    assert kept.keys() == {"base+inversion", "source", *(
        f"{space}{way}" for space in ("svdiff", "full", "lora") for way in ("", "+inversion")
    )}  # fmt: skip
    assert min(kept.values()) < kept["source"]  # nothing done keeps all but what a file of 8 bits loses
    assert {row["method"] for row in read_rows(output / "ablation" / "rows.jsonl")} == set(train.options.SUBSETS)
    for other in (["--max_train_steps", "3"], ["--geometry_layers", "4,down,0", "4,down,0"]):  # into the same folder
        refused(f"another {other[0]}", evaluate, "--figure", "7", *other)
    for name, file in ("cat", dataset / "cat" / "0.png"), ("000000000000", benchmark / "annotation_images" / "0.png"):
        before = file.read_bytes()
        save_noise(file, seed=9)  # replaced in its place
        refused(f"other pictures of {name}", evaluate, "--figure", "7", "ablation")
        file.write_bytes(before)


def some_study(folder=None, **more):
    """A study without a model."""
    args = SimpleNamespace(seed=4, images_per_prompt=3, **more.pop("args", {}))
    return study.Study(**dict.fromkeys(study.Study.__dataclass_fields__) | {"output": folder, "args": args} | more)


def test_related_subjects_are_compared_with_others(tmp_path):
    known, cosines = some_study(tmp_path), np.array([[1.0, 0.5, 0.1], [0.5, 1.0, 0.3], [0.1, 0.3, 1.0]])
    names, classes = ["cat", "cat2", "car"], ["cat", "cat", "car"]
    for count in (2, 3):  # rows of another choice of subjects go
        correlation.record(known, names[:count], classes[:count], cosines[:count, :count])
        assert len(read_rows(known.rows)) == count - 2
    cosines[1, 2] = 0.5
    correlation.record(known, names, classes, cosines)
    (row,) = read_rows(known.rows)
    assert row["item"] == "cat+cat2" and row["metrics"]["related"] == pytest.approx(0.5 - 0.3)


def test_pictures_that_are_missing_are_drawn_as_if_all_were(tmp_path):
    def make(seeds):
        return torch.tensor(seeds).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255 * len(seeds)

    known = some_study(tmp_path)
    for _ in range(2):
        known.draw("a|0.5", "b", make, lambda picture: {"mean": float(picture.mean()) * 255})
        rows = read_rows(known.rows)
        assert {row["seed"]: round(row["metrics"]["mean"]) for row in rows} == {4: 12, 5: 15, 6: 18} and len(rows) == 3
        known.rows.write_text("".join(line + "\n" for line in known.rows.read_text().splitlines()[:1]))
    assert known.picture_path("a|0.5", "b", 4) == tmp_path / "pictures" / "a-0.5" / "b_4.png"  # for every file system


def test_table_1_is_printed_whole(tmp_path, capsys):
    svdiff_eval.main(["--output_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert all(row["subset"] in shown for row in published_table("svdiff", "1")["rows"])
    assert "322,856" in shown and "1404" in shown
    found = json.loads((tmp_path / "table1.json").read_text())
    assert found["UNet"]["file_bytes"] <= 1.35e6 and found["Mid-CA"]["values"] == 4096


# --------------------------------------------------------------------------------------------------- scores, claims


def test_the_eye_tells_whose_colours_are_where(tmp_path):
    def thing(kind, color, x):
        return Thing(kind, color, x=x, size=0.2)

    subjects = []
    for name, kind, color in (("a", "car", "red"), ("b", "house", "blue"), ("c", "car", "yellow")):
        save_png(tmp_path / f"{name}.png", paint(Scene((thing(kind, color, 0.5),))).picture)
        subjects.append(Subject(name, kind, False, (tmp_path / f"{name}.png",)))
    known = SimpleNamespace(pipe=SimpleNamespace(name_or_path=str(PICTUREBOOK_FOLDER)), resolution=64)

    def seen(which, *things):
        picture = to_tensor(paint(Scene(things)).picture)
        return scores.seen_in(known, [subjects[number] for number in which], picture)

    both = thing("car", "red", 0.25), thing("house", "blue", 0.75)
    assert seen([0, 1], *both) == {"present": 1.0, "both_present": 1.0}
    assert seen([0, 1], thing("car", "blue", 0.25), thing("house", "red", 0.75))["both_present"] == 0.0
    assert seen([0, 1], thing("car", "red", 0.5)) == {"present": 0.5, "both_present": 0.0}
    assert np.isnan(seen([0, 0], *both)["both_present"])


def test_true_pictures_of_pairs_are_known_as_such(tmp_path, monkeypatch):
    """Where one individual stands twice, fewer are taken for both: the measure moves when the truth moves."""
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path))
    known = SimpleNamespace(pipe=SimpleNamespace(name_or_path=str(PICTUREBOOK_FOLDER)), resolution=64)
    pair = tuple(read_subjects(ensure_twins(), ["bird", "bird2"]))

    def seen(subjects):
        drawn = scores.true_pictures(subjects, "a prompt", list(range(8)))
        return sum(scores.seen_in(known, pair, picture[None])["both_present"] for picture in drawn) / 8

    assert seen(pair) > 0.8 and seen(pair[:1] * 2) < 0.2


def test_the_seam_stands_out():
    smooth = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    halves = torch.cat([smooth[..., :8], 1 - smooth[..., 8:]], dim=3)
    assert scores.seam(smooth) == pytest.approx(1, abs=0.01)
    broken = torch.cat([smooth[..., :8], torch.zeros(1, 3, 16, 8)], dim=3)
    assert scores.seam(broken) > 3 and scores.seam(broken.transpose(2, 3)) > 3
    assert scores.seam(halves) < scores.seam(broken)


@pytest.mark.parametrize("flags, words", [
    (["--table", "1", "--figure", "5"], "not allowed with"), (["--answers", "x"], "--figure study"),
    (["--pairs", "0"], "takes one number"), (["--pairs", "1", "1", "1"], "takes one number"),
    (["--learning_rate", "1e-3"], "names no parameter space"),
    (["--learning_rate", "lora=1", "lora=2"], "names lora twice"),
    (["--geometry_layers", "a", "b"], "no layer"), (["--figure", "5", "--subjects", "nobody"], "nobody"),
])  # fmt: skip
def test_wrong_input(flags, words, tmp_path, refused):
    refused(words, svdiff_eval.main, ["--output_dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_layers_and_pairs_that_there_are_not_cost_nothing(evaluate, refused, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(study.train, "main", lambda argv: pytest.fail("nothing is to be trained"))
        for flags, words in ((["--figure", "10", "--geometry_layers", "16,down,5", "8,down,0"], "have to be two of"),
                             (["--figure", "11", "--subjects", "cat", "cat2"], "passes between classes")):  # fmt: skip
            refused(words, evaluate, *flags)
    assert (evaluate("--figure", "10") / "style" / "figure10.png").is_file()  # the same folder, other layers


def test_likeness_is_none_for_a_twin_and_whole_for_true_pictures(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(study.train, "main", quick_training)
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "drawn"))
    svdiff_eval.main(["--figure", "5", "--pretrained_model_name_or_path", str(tiny_folder), "--metric_encoders",
                      "picturebook", "--limit", "1", "--prompts", "2", "--images_per_prompt", "1",
                      "--num_inference_steps", "1", "--device", "cpu", "--basis_dir", str(tmp_path / "basis"),
                      "--output_dir", str(tmp_path / "out")])  # fmt: skip
    found = {}
    for row in read_rows(tmp_path / "out" / "single" / "rows.jsonl"):
        found.setdefault(row["method"], []).append(row["metrics"].get("likeness (picturebook)"))
    assert np.mean(found["true picture"]) == pytest.approx(1) and np.mean(found["twin"]) == pytest.approx(0, abs=1e-6)
    assert np.mean([value for value in found["base"] if value is not None]) < 0.5
