"""lipschitz_personalize.eval and .infer on a small random model: rows, tables, figures, resume, claims, bad input."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from common.data import Subject
from common.flags import as_flags
from common.images import load_image
from common.runs import read_rows
from common.tables import published_table
from common.training import draw_pictures, step_generator
from lipschitz_personalize import eval as evaluate
from lipschitz_personalize import infer, options, train
from lipschitz_personalize.objectives import load_backbone
from lipschitz_personalize.reproduction import drift, plan
from tests.small_data import MeanColor, write_subject_set
from tests.tiny_encoders import write_encoders

QUICK = ["--num_inference_steps", "2", "--train_args", "--max_train_steps", "2", "--num_inference_steps", "2",
         "--num_validation_images", "1", "--num_class_images", "2", "--learning_rate", "1e-3",
         "--mixed_precision", "no", "--initializer_token", "cat"]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    prompts = {"object": ["a {0} {1} in the snow"], "live": ["a {0} {1} on grass", "a red {0} {1}"]}
    return write_subject_set(tmp_path_factory.mktemp("bench"), {"rex": "dog", "house1": "house"}, prompts)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = write_encoders(tmp_path_factory.mktemp("encoders"))
    (folder / "clip").rename(folder / "clip-vit-base-patch32")
    (folder / "dino").rename(folder / "dino-vits16")
    return folder


@pytest.fixture
def run(models, dataset, encoders):
    def run(output, *words):
        evaluate.main(["--pretrained_model_name_or_path", str(models["sd"]), "--dataset", str(dataset),
                       "--metric_encoders", str(encoders), "--output_dir", str(output), *map(str, words),
                       *QUICK])  # fmt: skip

    return run


def test_table_figures_and_drift_from_trainings_that_are_done_once(run, tmp_path, capsys, refused, monkeypatch):
    words = ["--methods", "dreambooth+penalty@l2_reg_weight=0", "dreambooth+penalty@l2_reg_weight=500",
             "dreambooth+prior", "dreambooth+penalty",
             "--table", "2", "--figure", "2", "3", "4", "5", "--drift"]  # fmt: skip
    run(tmp_path / "out", *words)
    shown, rows = capsys.readouterr().out, read_rows(tmp_path / "out" / "rows.jsonl")
    assert [row["item"] for row in rows] == ["rex/0"] * 4
    assert "Ours (DreamBooth)" in shown and "IP-Adapter" in shown and "measured, " in shown and "inconclusive" in shown
    one = rows[0]["metrics"]
    assert {"DINO (dino-vits16)", "CLIP-I (clip-vit-base-patch32)", "CLIP-T (clip-vit-base-patch32)", "delta_theta",
            "delta_eps", "class_recognition", "drift_score (dino-vits16)",
            "eps_per_theta all"} <= one.keys()  # fmt: skip
    drifts = [row["metrics"]["delta_theta"] for row in rows]
    assert drifts[0] > drifts[1] > 0 and rows[2]["class_seconds"] > 0 == rows[3]["class_seconds"]
    for name in ("grid.png", "figure_2.png", "figure_3.png", "figure_4.png", "figure_5.png", "results.json"):
        assert (tmp_path / "out" / name).is_file()
    pictures = tmp_path / "out" / "pictures" / "dreambooth+penalty" / "rex-0"
    assert len(list(pictures.iterdir())) == 2  # its live prompts
    assert not list((tmp_path / "out").rglob("*.safetensors"))  # weights are not kept

    monkeypatch.setattr(train, "main", lambda argv: pytest.fail("trained again"))
    run(tmp_path / "out", "--methods", "dreambooth+penalty")
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 4
    words = ["--methods", "dreambooth+penalty", "--guidance_scale", "3"]
    refused("another --guidance_scale", run, tmp_path / "out", *words)


def test_held_out_classes_are_recognised_among_all_and_the_fid_stands_beside(run, encoders, tmp_path, monkeypatch):
    seen = []

    def eye(clip, classes):
        seen.append(classes)
        return lambda pictures: ["dog"] * len(pictures)  # all has drifted towards the subject

    monkeypatch.setattr(drift, "clip_eye", eye)
    monkeypatch.setattr("common.encoders.load_inception", lambda folder, device: MeanColor())
    shutil.copytree(encoders, tmp_path / "encoders")
    (tmp_path / "encoders" / "inception-2015-12-05.pt").touch()
    words = ["--methods", "dreambooth+penalty", "--drift"]
    run(tmp_path / "out", *words, "--metric_encoders", tmp_path / "encoders")
    (row,) = read_rows(tmp_path / "out" / "rows.jsonl")
    assert seen == [["dog", "house"]] and row["metrics"]["class_recognition"] == 0
    assert row["metrics"]["frechet_inception (toy)"] >= 0
    words += ["--held_out_classes", "cat", "dog", "tree"]
    run(tmp_path / "named", *words)
    (row,) = read_rows(tmp_path / "named" / "rows.jsonl")
    assert seen[1] == ["dog", "house", "cat", "tree"] and "frechet_inception (toy)" not in row["metrics"]


def test_one_class_leaves_no_study_of_classes_and_custom_diffusion_has_its_own_word(run, tmp_path):
    write_subject_set(tmp_path / "set", {"rex": "dog"}, {"object": ["a {0} {1}"], "live": ["a {0} {1}"]})
    run(tmp_path / "out", "--dataset", tmp_path / "set", "--methods", "custom_diffusion+penalty", "--drift")
    (row,) = read_rows(tmp_path / "out" / "rows.jsonl")
    assert "drift_score (dino-vits16)" in row["metrics"] and "class_recognition" not in row["metrics"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["methods"]["custom_diffusion+penalty"]
    assert config["l2_reg_weight"] == 175.0 and row["metrics"]["delta_theta"] > 0
    for model, word in (("owner/sd", "<new1>"), ("owner/stable-diffusion-3", "sks")):
        args = Namespace(pretrained_model_name_or_path=model, backbone=None)
        assert plan.token_of(args, "custom_diffusion+penalty") == word


def test_baselines_have_their_own_recipes_and_changes_follow_the_name():
    def settings(name, model):
        words = as_flags(plan.settings_of(name, model))
        return vars(options.parse([*words, "--pretrained_model_name_or_path", model, "--print_config"]))

    sd, sd3 = "owner/sd", "owner/stable-diffusion-3"
    lora, ours = settings("lora+prior", sd), settings("lora+penalty", sd)
    assert (lora["lora_targets"], lora["lora_init"], lora["lora_rank"]) == (options.QKVO, "gaussian", 4)
    assert ours["lora_targets"] == ["to_q", "to_v"] and settings("lora", sd3)["lora_targets"] == options.SD3_TARGETS
    full = settings("dreambooth+prior@learning_rate=3,l2_lipschitz", sd)
    assert not full["squash"] and not full["cache_latents"] and full["adam_weight_decay"] == 1e-2
    assert full["learning_rate"] == 3 and full["l2_lipschitz"]
    losses = [settings("custom_diffusion+prior", model)["mask_loss"] for model in (sd, "owner/sdxl", sd3)]
    assert losses == ["sum", "sum", "mean"]
    rates = [[settings("lora+prior", model)[key] for key in ("learning_rate", "adam_weight_decay")]
             for model in (sd, "owner/sdxl", sd3)]  # fmt: skip
    assert rates == [[1e-4, 1e-2], [1e-4, 1e-4], [4e-4, 1e-4]]  # diffusers' scripts for the three


@pytest.mark.parametrize("model, name, prompt", [
    ("owner/sd", "custom_diffusion+penalty", "photo of a <new1> dog"), ("owner/sd", "lora", "a photo of a sks dog"),
    ("owner/stable-diffusion-3", "custom_diffusion", "a photo of a sks dog"),
    ("picturebook", "custom_diffusion", "a <new1> dog"),
])  # fmt: skip
def test_trainings_are_prompted_as_in_the_released_scripts(model, name, prompt):
    args = Namespace(pretrained_model_name_or_path=model, backbone=None, device=None, train_args=[])
    flags = plan.training_flags(args, name, Subject("rex", "dog", True, (Path("rex/0.png"),)))
    assert flags[flags.index("--instance_prompt") + 1] == prompt


def test_every_own_row_of_the_tables_is_a_method_and_numbers_are_complete():
    for name, count in (("1", 14), ("2", 9)):
        table = published_table("lipschitz_personalize", name)
        assert len(table["rows"]) == count
        assert all(len(row["values"]) == len(table["columns"]) for row in table["rows"])
        assert all(row.get("foreign") or row["method"] in plan.METHODS for row in table["rows"])
    published = [row["values"][0] for row in published_table("lipschitz_personalize", "figure_2")["rows"]]
    assert published == [0, 500, 1000, 2000, 5000, 10000]
    assert [float(name.partition("=")[2]) for name in plan.lambda_sweep("owner/sd")] == published


@pytest.mark.parametrize("words, said", [
    (["--methods", "nothing"], "there is no method 'nothing'"),
    (["--subjects", "nobody"], "nobody"),
    (["--table", "3"], "invalid choice"),
    (["--dataset", "picturebook"], "for the picturebook"),
    (["--methods", "dreambooth+penalty@l2_reg_weight=-1"], "from 0"),
    (["--methods", "dreambooth@seed=3"], "--seed is said to each training by the evaluation itself"),
    (["--train_args", "--instance_data_dir=elsewhere"], "--instance_data_dir is said to each training by the"),
    (["--pretrained_model_name_or_path", "picturebook", "--dataset", "picturebook", "--held_out_classes", "unicorn"],
     "--held_out_classes unicorn: the picturebook knows"),
])  # fmt: skip
def test_bad_input(run, tmp_path, refused, words, said):
    refused(said, run, tmp_path / "out", *words)


def test_rows_without_drift_are_not_taken_for_rows_with_it(run, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(evaluate, "joined_config", lambda *given, **more: {})
    (tmp_path / "rows.jsonl").write_text('{"method": "dreambooth", "item": "rex/0", "seed": 0, "metrics": {"a": 1}}\n')
    refused("without --drift", run, tmp_path, "--methods", "dreambooth", "--drift")


def test_infer_draws_both_models_and_drift_is_measured_of_a_folder(models, subject, tmp_path, capsys, refused):
    train.main(["--pretrained_model_name_or_path", str(models["sd"]), "--instance_data_dir", str(subject),
                "--instance_prompt", "a sks cat", "--class_prompt", "a cat", "--output_dir", str(tmp_path / "t"),
                "--max_train_steps", "2", "--num_inference_steps", "2", "--num_validation_images", "1"])  # fmt: skip
    words = ["--trained_dir", str(tmp_path / "t"), "--num_inference_steps", "2", "--num_images", "2"]
    infer.main([*words, "--output_dir", str(tmp_path / "a"), "--strength", "0"])
    resolution = json.loads((tmp_path / "t" / "config.json").read_text())["resolution"]
    generators = [step_generator(2025, 0, number) for number in range(2)]
    first, _ = draw_pictures(load_backbone(str(models["sd"]), "cpu"), ["a sks cat"] * 2, generators, resolution, 2)
    assert np.array_equal(np.array(load_image(tmp_path / "a" / "00-00.png")), np.array(first))  # no step of the way
    infer.main([*words, "--output_dir", str(tmp_path / "b"), "--prompt", "a sks cat in the snow"])
    capsys.readouterr()
    drift.main(["--trained_dir", str(tmp_path / "t"), "--num_inference_steps", "2", "--prompts", "a cat"])
    found = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(found["delta_eps"]) > 0 and float(found["eps_per_theta all"]) > 0
    assert {path.name for path in (tmp_path / "b").glob("*.png")} == {"00-00.png", "00-01.png", "grid.png"}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"pretrained_model_name_or_path": "picturebook"}')
    for bad, said in ((["--trained_dir", "/nowhere"], "no folder"), (["--trained_dir", str(subject)], "cannot read"),
                      (["--trained_dir", str(tmp_path / "foreign")], "of another script"),
                      ([*words, "--resolution", "36"], "no multiple of this model's 8")):  # fmt: skip
        refused(said, infer.main, bad)
