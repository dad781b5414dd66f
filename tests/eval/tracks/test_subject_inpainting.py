"""The subject-inpainting track on a small random model: rows, pictures, page; personalised text-to-image models."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from PIL import Image

from common.runs import read_json, read_rows
from eval.bench import inpainting as inpainting_bench
from eval.report.report import write_page
from eval.tracks import exemplar_editing, subject_inpainting
from image_inpaint import eval as inpaint_eval
from image_inpaint import loading, options
from image_inpaint.reproduction.methods import REFERENCES, Painter
from pixels.surgery import Surgery
from tests.image_inpaint.models import tiny_inpainter
from tests.refusing import refuses
from tests.small_data import write_boxed
from tests.tiny import tiny_sd


@pytest.fixture
def flags(tmp_path, tiny_folder, monkeypatch):
    """Those of eval.compare, of which this track takes two items of one subject; trainings of one step."""
    tiny_inpainter(tmp_path / "model")
    (tmp_path / "model" / "picturebook.json").write_text("{}")
    monkeypatch.setattr("image_inpaint.samples.STEPS", 2)
    small = ["--training_flags", "--max_train_steps 1 --train_batch_size 1 --cache_views 0", "--text_model",
             str(tiny_folder)]  # fmt: skip
    original = subject_inpainting.command
    monkeypatch.setattr(subject_inpainting, "command", lambda *given: [*original(*given), *small])
    return Namespace(
        pretrained_model_name_or_path=str(tmp_path / "model"), items=4, num_inference_steps=2, device="cpu", seed=0,
        metric_encoders=None, output_dir=str(tmp_path / "out"), dataset="picturebook",
    )  # fmt: skip


def test_the_track_runs_its_methods_and_makes_a_page(flags, tmp_path):
    found = subject_inpainting.run(flags)
    rows = read_rows(tmp_path / "out" / "subject_inpainting" / "rows.jsonl")
    assert {row["method"] for row in rows} == set(subject_inpainting.RUN) == set(found.methods)
    assert len(rows) == 2 * len(subject_inpainting.RUN) and set(found.references) == set(REFERENCES)
    labels = [picture.label for picture in found.items[0].pictures]
    assert labels[:3] == ["scene and hole", "reference", "true picture"] and labels.count("edit") == len(found.methods)
    assert found.items[0].pictures[-1].success in (True, False)
    html = write_page(tmp_path / "index.html", [found]).read_text()
    assert "Subject inpainting" in html and "160.6" in html and "Hole filled beyond the subject" in html
    assert subject_inpainting.run(flags).runs[0].rows == found.runs[0].rows


def test_personalised_models_inpaint_what_they_were_trained_on(flags, tmp_path, monkeypatch):
    from eval.tracks.personalization.methods import METHODS as ARENA

    trained, told = [], []
    monkeypatch.setattr("common.training.draw_pictures", lambda pipe, prompts, *any, **more: told.extend(prompts) or [
        Image.new("RGB", (64, 64))])  # fmt: skip
    fake = replace(ARENA["dreambooth"], script="")
    monkeypatch.setattr(type(fake), "load", lambda self, folder, model, device=None: tiny_sd())
    monkeypatch.setattr(type(fake), "train", lambda self, subject, *rest: trained.append((subject.name, rest[3])))
    monkeypatch.setitem(ARENA, "dreambooth", fake)
    settings = inpaint_eval.parse(subject_inpainting.command(flags, ["untuned"]))
    settings.methods = ["dreambooth"]
    for _ in range(2):  # the second time nothing is left to do
        items, rows = inpaint_eval.run_all(settings, subject_inpainting.Personalised(settings))
    (subject,) = {item.subject for item in items}
    assert trained == [(subject, 0)] and [row["item"] for row in rows] == [item.id for item in items]
    assert told == [f"a sks {subject}"]  # as in training: no caption of the picturebook says "photo"
    assert rows[0]["paper"] == "baselines" and rows[0]["metrics"]["training_seconds"] >= 0
    (drawn,) = (tmp_path / "out").glob("without_scene/dreambooth/*/*.png")  # of Fig. 3
    assert drawn.parent.name == subject and Image.open(drawn).size == (64, 64)


@pytest.mark.parametrize("name, painter", [("lora", Painter), ("dreambooth", subject_inpainting.Personalised)])
def test_rows_of_a_method_that_was_trained_otherwise_are_not_mixed_in(flags, tmp_path, monkeypatch, name, painter):
    settings = inpaint_eval.parse([*subject_inpainting.command(flags, ["lora"]), "--output_dir", str(tmp_path)])
    settings.methods = [name]
    inpaint_eval.keep_config(settings, painter(settings))
    before = read_json(tmp_path / "config.json")
    if name == "lora":
        monkeypatch.setitem(options.PICTUREBOOK_TUNING, "lora", {"learning_rate": 1.0})
    else:
        tuned = {name: {"learning_rate": 1.0}}
        monkeypatch.setattr("eval.tracks.personalization.variants.tuned_settings", lambda: tuned)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"method": name, "item": "cat/00"}) + "\n")
    refuses(f"results with another .* of {name}", inpaint_eval.keep_config, settings, painter(settings))
    assert read_json(tmp_path / "config.json") == before
    (tmp_path / "rows.jsonl").write_text(json.dumps({"method": "full", "item": "cat/00"}) + "\n")
    inpaint_eval.keep_config(settings, painter(settings))  # no row of it: nothing is mixed
    assert read_json(tmp_path / "config.json")["methods"][name] != before["methods"][name]


def test_trainings_are_measured_in_processes_of_their_own(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(inpainting_bench, "STEPS", 1)
    small = ["--tuning", "lora", "--train_batch_size", "1", "--cache_views", "0"]
    monkeypatch.setattr(inpainting_bench, "TRAININGS", {"lora": small})
    model, subject = flags.pretrained_model_name_or_path, str(write_boxed(tmp_path / "subject"))
    row = inpainting_bench.bench_training("lora", model, "cpu", subject)
    assert set(row) == {"training", *inpainting_bench.MEASURED} and row["trained_parameters"] > 0
    monkeypatch.setattr(inpainting_bench, "TRAININGS", {"lora": [*small, "--rank", "0"]})
    refuses("image_inpaint.train failed: .*from 1", inpainting_bench.bench_training, "lora", model, "cpu", subject)


def test_image_guided_inpainting_joins_the_exemplar_track_of_the_picturebook(tmp_path, tiny_folder, monkeypatch):
    assert "paint_by_example" not in exemplar_editing.methods_of(str(tiny_folder))
    (tmp_path / "inpaint_unet").mkdir()
    (tmp_path / "picturebook.json").write_text("{}")
    names = list(exemplar_editing.methods_of(str(tmp_path)))
    assert "paint_by_example" in names and (names[0], names[-1]) == ("truth", "pixels")
    pipe = tiny_inpainter()
    monkeypatch.setattr(loading, "load", lambda *any: pipe)
    edit = exemplar_editing.image_guided_inpainting("picturebook", "cpu")
    source, exemplar, white = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    dark = white.clone()
    dark[..., 16:48, 16:48] = 0
    assert (edit(None, source, [exemplar], [white], Surgery(), torch.Generator()) - source).abs().max() < 0.01
    painted = edit(None, source, [exemplar], [dark], Surgery(), torch.Generator().manual_seed(0))
    assert painted.shape == source.shape and (painted - source).abs().mean() > 0.01
