"""eval.personalize from end to end on a small random model, with trainings that only pretend; one real training of each
kind of file, loaded again; subjects of one's own.
"""

import contextlib
import copy
import json
import shutil
from argparse import Namespace
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.data import Subject
from common.runs import Cost, read_rows
from eval import compare, personalize
from eval.tracks.personalization import arena, methods, options, own, scoring, variants
from eval.tracks.personalization import track as personalization
from tests.refusing import refuses
from tests.small_data import MeanColor, write_subject_set

SIDE = 32


@pytest.fixture(scope="module")
def model(small_model):
    return str(small_model)


@pytest.fixture(scope="module")
def loaded(model):
    return methods.load_base(model, model, "cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two subjects of two classes, two pictures and two prompts each."""
    prompts = dict.fromkeys(("object", "live"), ["a {0} {1} in the snow", "a red {0} {1}"])
    return write_subject_set(tmp_path_factory.mktemp("dataset"), {"dog2": "dog", "vase": "vase"}, prompts)


@pytest.fixture
def calls(loaded, monkeypatch, tmp_path):
    """Trainings that move the network's weights by 1 % of the learning rate, and the list of those that were run."""
    calls = []
    for module in ("loading", "objectives"):  # copies of one model are made faster than it is read
        monkeypatch.setattr(f"lipschitz_personalize.{module}.load_backbone", lambda *which: copy.deepcopy(loaded))
    curve = variants.CURVES["interpolation"]._replace(factors=(0.4, 1))
    monkeypatch.setitem(variants.CURVES, "interpolation", curve)

    def train(name, subject, folder, base, settings, seed):
        calls.append((name, subject.name, seed))
        pipe = copy.deepcopy(loaded)
        for tensor in pipe.unet.state_dict().values():
            tensor *= 1 + settings["learning_rate"] * 0.01
        pipe.unet.save_pretrained(folder / "unet")
        (folder / "checkpoint-5").mkdir(parents=True)
        save_file({"junk": torch.zeros(3)}, folder / "checkpoint-5" / "x.safetensors")

    names = ("base", "dreambooth", "dreambooth+prior", "dreambooth+penalty")
    fakes = {name: replace(methods.METHODS[name]) for name in names}
    for name in names[1:]:
        object.__setattr__(fakes[name], "train", partial(train, name))
    monkeypatch.setattr(methods, "METHODS", {**methods.METHODS, **fakes})
    monkeypatch.setattr(arena, "METHODS", methods.METHODS)
    monkeypatch.setattr(arena, "load_encoders", lambda *given: scoring.Encoders(*[MeanColor()] * 4))
    tuned = {name: {"learning_rate": rate} for name, rate in zip(fakes, (0, 1.0, 2.0, 0.5), strict=True)}
    monkeypatch.setattr(variants, "tuned_settings", lambda: tuned)
    for module in (options, variants, personalization, arena):
        monkeypatch.setattr(module, "is_picturebook_folder", lambda name: True)  # so that these settings hold
    monkeypatch.setattr(options, "PICTUREBOOK_PRESET", {"num_inference_steps": 1})
    monkeypatch.setattr(arena, "DRIFT_PROMPTS", 1)
    return calls


def flags(model, dataset, out, *more):
    return ["--pretrained_model_name_or_path", model, "--dataset", str(dataset), "--device", "cpu", "--output_dir",
            str(out), "--images_per_prompt", "2", "--held_out_images", "2", *more]  # fmt: skip


@pytest.fixture
def run(calls, model, dataset):
    return lambda out, *more: personalize.main(flags(model, dataset, out, *more))


PAIR = ("--methods", "base", "dreambooth+prior", "dreambooth+penalty", "--curves")


def test_a_training_that_diverges_leaves_its_row_out_and_the_others_go_on(run, tmp_path, capsys):
    object.__setattr__(methods.METHODS["dreambooth+prior"], "train", Mock(side_effect=SystemExit(2)))
    run(tmp_path, *PAIR)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row["method"] for row in rows} == {"real", "base", "dreambooth+penalty"} and len(rows) == 6
    assert "dreambooth+prior has no row of vase" in capsys.readouterr().err
    object.__setattr__(methods.METHODS["dreambooth+penalty"], "train", Mock(side_effect=SystemExit(130)))  # Ctrl-C
    with pytest.raises(SystemExit, match="130"):
        run(tmp_path / "other", *PAIR)


def test_rows_pictures_costs_and_the_page(run, calls, model, tmp_path, capsys):
    tmp_path = tmp_path / "personalization"
    run(tmp_path, *PAIR, "interpolation")
    rows = {(row["method"], row["item"]): row for row in read_rows(tmp_path / "rows.jsonl")}
    names = ["real", "base", "dreambooth+prior", "dreambooth+penalty", "dreambooth", "dreambooth@interpolationx0.4"]
    assert list(rows) == [(name, subject) for subject in ("dog2", "vase") for name in names]
    assert calls[:3] == [(name, "dog2", 0) for name in names[2:5]] and len(calls) == 6

    moved = [rows[name, "dog2"]["metrics"]["delta_theta_relative"] for name in names[2:]]
    assert moved == pytest.approx([0.02, 0.005, 0.01, 0.004], rel=1e-3)  # the last: W + 0.4 (W' - W)
    row = rows["dreambooth+penalty", "vase"]
    expected = {"DINO/dreambench (toy)", "held_out (toy)", "drift_score (toy)", "frechet_samples (toy)"}
    assert expected <= row["metrics"].keys()
    weights = sum(tensor.numel() for tensor in methods.load_base(tmp_path, model, "cpu").unet.parameters())
    assert row["metrics"]["trainable_parameters"] == weights and row["metrics"]["file_bytes"] > 4 * weights
    assert row["seconds"] > 0 and rows["dreambooth", "vase"]["curves"]["interpolation"] == 1
    assert "delta_theta" not in rows["base", "dog2"]["metrics"] and "held_out (toy)" in rows["base", "dog2"]["metrics"]
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 4 * 2 * 2 * 2
    assert not list(tmp_path.glob("weights/**/*.safetensors"))

    html = (tmp_path / "index.html").read_text()
    assert "DreamBooth + penalty" in html and "interpolation to the base" in html and "0.6394" in html
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dreambooth+penalty"]["DINO/dreambench (toy)"]["n"] == 2

    capsys.readouterr()
    compare.main(["--table", "lipschitz_personalize:2", "--output_dir", str(tmp_path.parent)])
    shown = capsys.readouterr().out
    assert "0.6394" in shown and "0.3839" in shown and shown.count("measured: ") == 2  # SVDiff's row has none

    before = len(calls)
    run(tmp_path, *PAIR, "interpolation")
    assert len(calls) == before  # nothing was left to do
    run(tmp_path, *PAIR, "--seeds", "0", "1", "--limit", "1")
    assert calls[before:] == [("dreambooth+prior", "dog2", 1), ("dreambooth+penalty", "dog2", 1)]


def test_weights_go_after_their_last_row_unless_they_are_to_be_kept(run, calls, tmp_path, monkeypatch):
    """Interpolation shares its method's training, which stays until then; no other model is kept beside."""
    place, met, append = tmp_path / "out" / "weights" / "dog2" / "0", [], arena.append_row

    def looked(path, row):
        met.append((row["method"], sorted(path.name for path in place.glob("*"))))
        append(path, row)

    monkeypatch.setattr(arena, "append_row", looked)
    words = (*PAIR, "interpolation", "--limit", "1")
    run(tmp_path / "out", *words)
    names = ["base", "dreambooth+prior", "dreambooth+penalty", "dreambooth"]
    expected = [("real", []), *((name, [name]) for name in names), ("dreambooth@interpolationx0.4", ["dreambooth"])]
    assert met == expected and len(calls) == 3 and not place.exists()
    met.clear()
    run(tmp_path / "kept", *words, "--keep_weights")
    kept = tmp_path / "kept" / "weights" / "dog2" / "0"
    assert sorted(path.name for path in kept.iterdir()) == sorted(names)
    assert (kept / "dreambooth+penalty" / "unet").is_dir()


def test_what_a_gpu_holds_before_a_training_is_no_cost_of_it(monkeypatch, tmp_path):
    @contextlib.contextmanager
    def measured():
        yield Cost(seconds=5.0, peak_memory_mb=100.0)

    monkeypatch.setattr(arena, "measure", measured)
    method = Namespace(train=lambda *given: None)
    train = lambda place: arena.train_once(method, None, place, "", {}, 0)  # noqa: E731
    assert train(tmp_path / "cpu")["peak_memory_mb"] == 100
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 30 * 2**20)
    assert train(tmp_path / "gpu")["peak_memory_mb"] == 70


def test_an_interrupted_run_goes_on_and_shards_make_the_same_rows(run, calls, tmp_path, monkeypatch):
    whole, parts, only = tmp_path / "whole", tmp_path / "parts", ("--methods", "base", "--curves")
    run(whole, *only)
    run(parts, *only, "--shard", "2/2")
    assert not (parts / "index.html").exists() and len(read_rows(parts / "rows.jsonl")) == 2
    run(parts, *only, "--shard", "1/2")
    assert (parts / "index.html").exists()
    made = [[(row["method"], row["item"], json.dumps(row["metrics"])) for row in read_rows(place / "rows.jsonl")]
            for place in (parts, whole)]  # fmt: skip
    assert made[0] == made[1]

    original = scoring.subject_scores
    monkeypatch.setattr(scoring, "subject_scores", Mock(side_effect=KeyboardInterrupt))
    cut = tmp_path / "cut"
    with pytest.raises(SystemExit):  # killed after the first training, before its row
        run(cut, "--methods", "dreambooth+penalty", "--curves")
    monkeypatch.setattr(scoring, "subject_scores", original)
    before = len(calls)
    run(cut, "--methods", "dreambooth+penalty", "--curves")
    assert [call[:2] for call in calls[before:]] == [("dreambooth+penalty", "vase")]  # the whole training was found


def test_rows_of_other_settings_are_not_mixed(run, tmp_path, refused, monkeypatch):
    run(tmp_path, "--methods", "base", "dreambooth+penalty", "--curves")
    refused("another --guidance_scale", run, tmp_path, *PAIR, "--guidance_scale", "3")
    monkeypatch.setattr(variants, "tuned_settings", lambda: {"dreambooth+penalty": {"learning_rate": 9.0}})
    said = "another learning_rate of dreambooth+penalty"
    refused(said, run, tmp_path, "--methods", "dreambooth+penalty", "--curves")


@pytest.mark.parametrize("more, words", [
    (["--methods", "magic"], "there is no method 'magic'"),
    (["--methods", "dreambooth+penality"], "did you mean dreambooth+penalty?"),
    (["--subjects_dir", ".", "--dataset", "set"], "two sources"),
    (["--methods", "ip_adapter"], "needs weights"),
    (["--subjects", "unicorn"], "unicorn"),
    (["--dataset", "/nowhere", "--metric_encoders", "picturebook"], "take paper"),
])  # fmt: skip
def test_wrong_input(more, words, tmp_path, refused):
    refused(words, personalize.main, [*more, "--output_dir", str(tmp_path / "out")])
    assert not list((tmp_path / "out").rglob("*.jsonl"))


def test_own_subjects_are_a_folder_each(calls, model, dataset, tmp_path, capsys, refused):
    mine = tmp_path / "mine"
    for name, source in (("rex_dog", "dog2"), ("mug", "vase")):
        shutil.copytree(dataset / source, mine / name)
    (mine / "prompts.txt").write_text("a {0} {1} in the snow\n\na red {0} {1}\n")
    (mine / "subjects.csv").write_text("subject,class\nmug,cup\n")
    words = flags(model, mine, tmp_path / "out", "--methods", "base", "dreambooth", "--curves")
    words[words.index("--dataset")] = "--subjects_dir"
    personalize.main(words)
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert {(row["item"], row["kind"]) for row in rows} == {("rex_dog", "dog"), ("mug", "cup")} and len(rows) == 6
    assert "for photographs give" in capsys.readouterr().err
    assert "rex_dog" in (tmp_path / "out" / "index.html").read_text()
    (mine / "mug" / "0.png").write_bytes((mine / "rex_dog" / "0.png").read_bytes())
    refused("other pictures of mug", personalize.main, words)


@pytest.mark.parametrize("name", ["dreambooth+penalty", "lora+prior", "custom_diffusion+penalty", "svdiff"])
def test_what_a_real_training_writes_is_loaded_again(name, model, dataset, tmp_path, monkeypatch):
    """One step of the scripts themselves: their files are found, and change the model."""
    monkeypatch.setattr("common.training.draw_pictures", lambda pipe, prompts, *rest, **how: [
        Image.new("RGB", (SIDE, SIDE), "red") for _ in prompts])  # fmt: skip
    subject = Subject("dog2", "dog", True, tuple(sorted((dataset / "dog2").iterdir())))
    settings = {"max_train_steps": 1, "learning_rate": 0.01, "num_class_images": 1, "device": "cpu",
                "train_batch_size": 1}  # fmt: skip
    if name == "svdiff":
        monkeypatch.setattr("svdiff.editing.draw", lambda pipe, prompt, seeds, *rest: torch.zeros(len(seeds), 3, 8, 8))
        settings |= {"basis_dir": str(tmp_path / "basis"), "with_prior_preservation": False, "learning_rate_1d": 0.01,
                     "train_text_encoder": False, "parameter_subset": "UNet-2D"}  # fmt: skip
    if name == "custom_diffusion+penalty":
        settings["initializer_token"] = "dog"
    method = methods.METHODS[name]
    method.train(subject, tmp_path / "run", model, settings, 0)
    numbers, size = arena.weight_files(tmp_path / "run")
    assert numbers > 0 and size > 4 * numbers
    pipe = method.load(tmp_path / "run", model, "cpu")
    base = methods.load_base(tmp_path, model, "cpu")
    before, after = base.unet.state_dict(), pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.allclose(before[key], after[key]) for key in before)


def test_a_subject_without_a_training_is_refused(model, tmp_path):
    for name in ("dreambooth+penalty", "svdiff", "oft"):
        refuses("", methods.METHODS[name].load, tmp_path, model, "cpu")


@pytest.mark.parametrize("files, said", [
    ({}, "holds no folders"),
    ({"subjects.csv": "name,kind\n"}, "needs the heading"),
    ({"rex_dog/0.png": "", "subjects.csv": "subject,class\nmax,dog\n"}, "no such folder"),
    ({"rex_dog/0.png": "", "prompts.txt": "a dog in the snow\n"}, "lacks {0}"),
    ({"rex_dog/0.png": "", "prompts.txt": "\n"}, "holds no prompt"),
    ({"_/0.png": ""}, "no subject's name and class"),
    ({"a,b_dog/0.png": ""}, "no subject's name and class"),
    ({" rex_dog/0.png": ""}, "no subject's name and class"),
    ({"a\nb_dog/0.png": ""}, "cannot hold"),
    ({"rex/0.png": "", "subjects.csv": 'subject,class\nrex,"dog,big"\n'}, "no subject's name and class"),
    ({"rex/0.png": "", "subjects.csv": "subject,class\nrex," + "x" * 200_000}, "cannot be read"),
])  # fmt: skip
def test_own_subjects_that_lack_something(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        if name.endswith("png"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
    refuses(said, own.write_own, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
