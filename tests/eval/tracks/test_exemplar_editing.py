"""The exemplar track on two drawn items and a small random model, its tuning, and methods with weights of their own."""

import json
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.runs import read_rows, write_json
from eval import compare
from eval.baselines import exemplar_pipelines
from eval.report.report import write_page
from eval.tracks import exemplar_editing, pretrained_exemplar
from eval.tuning import exemplar_editing as tune_exemplar
from eval.tuning import tuner
from pixels.reproduction import scoring
from tests.image_inpaint.models import tiny_inpainter
from tests.pixels.tiny_models import few_numbers, write_eyes
from tests.refusing import refuses
from tests.small_data import noise, save_mask, save_noise


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A PIE-Bench folder of two picturebook items with exemplars and maps, and one of style, which is left out."""
    from common.picturebook.benchmarks import write_edit_item

    folder = tmp_path_factory.mktemp("drawn")
    entries = dict(write_edit_item(folder, "validation", kind, 0) for kind in ("1", "6", "9"))
    write_json(folder / "mapping_file.json", entries)
    return folder


@pytest.fixture
def flags(tiny_folder, encoders, tmp_path, monkeypatch):
    from common.picturebook import benchmarks, classifier

    judge = classifier.AttributeClassifier().eval()
    monkeypatch.setattr(benchmarks, "load_classifier", lambda *device: judge)
    monkeypatch.setattr("common.encoders.load_inception", lambda *where: few_numbers())
    (tmp_path / "eyes").mkdir()
    return Namespace(
        pretrained_model_name_or_path=str(tiny_folder), items=12, num_inference_steps=4, device="cpu", seed=0,
        metric_encoders=str(write_eyes(encoders, tmp_path / "eyes")), output_dir=str(tmp_path / "out"), dataset="",
    )  # fmt: skip


def test_the_track_runs_every_method_once_and_makes_a_page(flags, drawn, tmp_path, monkeypatch, capsys):
    """Differential Diffusion is told the target prompts, and nobody else is."""
    told, bind = [], scoring.Bench.bind
    monkeypatch.setattr(scoring.Bench, "bind", lambda bench, loaded, **changes: told.append(changes.get("prompt"))
                        or bind(bench, loaded, **changes))  # fmt: skip
    flags.dataset = str(drawn)
    found = exemplar_editing.run(flags)
    assert [one for one in told if one] == [item.target_prompt for item in found.items] and None in told
    rows = read_rows(tmp_path / "out" / "exemplar_editing" / "rows.jsonl")
    assert len(rows) == 2 * len(exemplar_editing.METHODS) and {row["method"] for row in rows} == set(found.methods)
    assert [item.kind for item in found.items] == ["object", "color"] and found.runs[0].rows == rows
    resolved = found.runs[0].config["methods"]
    assert resolved["differential_diffusion"]["guidance_scale"] == 7.5 and resolved["pixels"]["prompt"] == ""
    labels = [picture.label for picture in found.items[0].pictures]
    assert labels[:4] == ["source", "exemplar", "map", "true edit"] and labels.count("edit") == len(found.methods)
    html = write_page(tmp_path / "index.html", [found]).read_text()
    assert "Exemplar editing" in html and "Blended latent diffusion" in html and "91.71" in html and "Seam" in html
    capsys.readouterr()
    compare.main(["--table", "pixels:1a", "--output_dir", flags.output_dir])
    shown = capsys.readouterr().out
    assert "91.71" in shown and shown.count("measured: ") == len(exemplar_editing.METHODS)

    monkeypatch.setattr(exemplar_editing, "make_bench", lambda *any: pytest.fail("nothing is left to run"))
    assert exemplar_editing.run(flags).runs[0].rows == rows


def test_a_dataset_without_exemplars_has_no_such_track(flags, benchmark, refused):
    flags.dataset = str(benchmark)
    assert exemplar_editing.run(flags) is None
    words = ["--tracks", "exemplar_editing", "--dataset", str(benchmark), "--output_dir", flags.output_dir]
    refused("holds nothing for exemplar_editing", compare.main, words)


def test_every_method_has_the_same_number_of_settings_to_try():
    assert {len(grid) for grid in tune_exemplar.GRIDS.values()} == {12}
    tuned = set(exemplar_editing.METHODS) - set(exemplar_editing.REFERENCES) - {"latent_paste"}
    assert set(tune_exemplar.GRIDS) == tuned


def test_the_track_reads_what_its_tuning_writes(tmp_path, monkeypatch):
    monkeypatch.setitem(exemplar_editing.SETTINGS, "compositions", tmp_path / "settings.toml")
    found = {method: (grid[3], -0.5) for method, grid in tune_exemplar.GRIDS.items()}
    tuner.write_tuned(tmp_path / "settings.toml", ["A comment"], found)
    own = exemplar_editing.own_settings(on_picturebook=True, dataset="compositions")
    assert own["sdedit"] == {"strength": 0.14} and own["differential_diffusion"]["prompt"] == scoring.ITEM_PROMPT
    assert own["differential_diffusion"]["guidance_scale"] == 2.0


def test_methods_with_their_own_weights_get_binary_masks_and_join_the_table(flags, tmp_path, monkeypatch, encoders):
    for seed, name in enumerate(("s", "e1", "e2")):
        save_noise(tmp_path / f"{name}.png", seed=seed)
    grey = np.zeros((64, 64), np.uint8)
    grey[:, 20:40], grey[:, 40:] = 100, 255
    Image.fromarray(grey).save(tmp_path / "m1.png")
    Image.fromarray(grey[:, ::-1]).save(tmp_path / "m2.png")
    entry = {"name": "a", "source": "s.png", "exemplars": ["e1.png", "e2.png"], "edit_maps": ["m1.png", "m2.png"]}
    write_json(tmp_path / "pairs.json", [entry])
    calls = []

    def edit(pipe, source, exemplar, mask, generator):
        calls.append((np.asarray(source), np.asarray(exemplar), np.asarray(mask)))
        return Image.composite(exemplar, source, mask)

    method = SimpleNamespace(load=lambda **where: "pipe", edit=edit)
    monkeypatch.setitem(exemplar_pipelines.PIPELINES, "paint_by_example", method)
    monkeypatch.setattr(exemplar_pipelines, "SIDE", 64)
    out = tmp_path / "joined"
    pretrained_exemplar.main(["--dataset", str(tmp_path), "--methods", "paint_by_example", "--output_dir", str(out),
                              "--metric_encoders", flags.metric_encoders, "--device", "cpu"])  # fmt: skip
    assert len(calls) == 2 and np.array_equal(calls[0][2], np.where(grey < 128, 255, 0))
    second = calls[1][0]  # the first edit is the second one's source
    assert np.array_equal(second[:, :40], calls[0][1][:, :40]) and np.array_equal(calls[1][2], calls[0][2][:, ::-1])
    (row,) = read_rows(out / "rows-paint_by_example.jsonl")
    assert row["method"] == "paint_by_example" and row["metrics"]["psnr_kept"] != row["metrics"]["psnr_kept"]
    assert (out / "pictures" / "a" / "paint_by_example.png").exists()


def test_paint_by_example_loads_from_a_folder_as_published(tiny_folder, tmp_path):
    """The hub's index names "paint_by_example" as the library of its encoder, which diffusers has since moved."""
    written = tiny_inpainter(tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    index = json.loads(path.read_text()) | {"image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"]}
    path.write_text(json.dumps(index))
    paint_by_example = exemplar_pipelines.PIPELINES["paint_by_example"]
    loaded, seen = paint_by_example.load(str(path.parent)), []
    assert all(torch.equal(loaded.unet.state_dict()[key], value) for key, value in written.unet.state_dict().items())
    loaded.unet.register_forward_pre_hook(lambda unet, inputs: seen.append(inputs[0]))
    loaded.feature_extractor.size = loaded.feature_extractor.crop_size = {"height": 32, "width": 32}
    picture, mask = noise(), Image.open(save_mask(tmp_path / "mask.png", box=(32, 0, 64, 64)))
    edited = paint_by_example.edit(loaded, picture, picture, mask, torch.Generator().manual_seed(0))
    assert edited.size == (64, 64) and seen[0].shape[1] == 9
    (halves,) = seen[0][0, 8].unique(dim=0).unflatten(1, (2, 8)).tolist()
    assert halves in ([[0] * 8, [1] * 8], [[1] * 8, [0] * 8])
    refuses("supported are PaintByExamplePipeline", paint_by_example.load, str(tiny_folder))


@pytest.mark.parametrize("flags, message", [
    ([], "is no folder"), (["--dataset", "/no/such/place"], "is no folder"), (["--methods", "magic"], "invalid choice"),
])  # fmt: skip
def test_wrong_input(flags, message, refused):
    refused(message, pretrained_exemplar.main, flags)
