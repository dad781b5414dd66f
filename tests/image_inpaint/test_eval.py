"""The protocol from end to end on a small random model: rows, resume, tables, figures, wrong input."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from common.runs import read_rows
from common.tables import published_table
from image_inpaint import eval as script
from image_inpaint.data.benchmark import Item, Subject
from image_inpaint.options import parse_train
from image_inpaint.reproduction.methods import FIGURES, METHODS, REFERENCES, TABLES, Painter
from tests.refusing import refuses
from tests.small_data import save_mask, save_noise, write_noise


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    """model/ with the picturebook's marker; subjects/, scenes/ of one's own."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(model, folder / "model")
    (folder / "model" / "picturebook.json").write_text("{}")
    for subject in ("chair", "sofa"):
        write_noise(folder / "subjects" / subject, [(64, 64)] * 2)
    (folder / "scenes").mkdir()
    for name in ("one", "two"):
        save_noise(folder / "scenes" / f"{name}.png", (90, 70))
        save_mask(folder / "scenes" / f"{name}_mask.png", (90, 70), (20, 20, 60, 60))
    return folder


@pytest.fixture
def run(place, tiny_folder, tmp_path):
    def run(*flags):
        script.main(["--pretrained_model_name_or_path", str(place / "model"), "--output_dir", str(tmp_path / "out"),
                     "--device", "cpu", "--num_inference_steps", "2", "--metric_encoders", "picturebook",
                     "--text_model", str(tiny_folder), "--training_flags",
                     "--max_train_steps 1 --train_batch_size 1 --cache_views 0", *map(str, flags)])  # fmt: skip
        return read_rows(tmp_path / "out" / "rows.jsonl")

    return run


def test_the_protocol_on_the_picturebook(run, tmp_path, capsys, monkeypatch):
    rows, out = run("--items", "2", "--table", "2", "--figure", "2"), tmp_path / "out"
    wanted = {*REFERENCES, *TABLES["2"], *FIGURES["2"]}
    assert {row["method"] for row in rows} == wanted and len(rows) == 2 * len(wanted)
    lora = next(row["metrics"] for row in rows if row["method"] == "lora")
    names = ["DINO/region (picturebook)", "CLIP-I/region (picturebook)", "thing_seen (picturebook)", "filled_excess",
             "psnr_kept", "psnr_thing", "lpips_thing (picturebook)", "rim", "training_seconds", "file_mb",
             "trained_parameters"]  # fmt: skip
    assert set(names) <= set(lora) and lora["psnr_kept"] == math.inf  # compositing
    of_truth = [row["metrics"] for row in rows if row["method"] == "truth"]
    assert all(one["psnr_thing"] == math.inf and one["filled_excess"] == 0 for one in of_truth)
    shown = capsys.readouterr().out
    assert "71.9" in shown and "FID (picturebook)" in shown and "KID" in shown and "swapped" in shown
    assert {"grid.png", "figure_2.png", "results.json", "config.json"} <= {path.name for path in out.iterdir()}
    results = json.loads((out / "results.json").read_text())
    assert "n = 2 generated and 2 real pictures" in shown
    assert results["overall"]["full"]["FID (picturebook)"]["n"] == 2 and "as photographed" in results["by_condition"]
    monkeypatch.setattr(Painter, "paint", lambda *any: pytest.fail("nothing is left to paint"))
    assert run("--items", "2", "--table", "2") == rows


def test_your_own_subjects_and_scenes(run, place, tmp_path):
    rows = run("--subjects", place / "subjects", "--scenes", place / "scenes", "--boxes", "whole", "--methods",
               "untuned", "--items", "4")  # fmt: skip
    assert [row["item"] for row in rows] == ["chair/one", "chair/two", "sofa/one", "sofa/two"]
    assert "thing_seen (picturebook)" not in rows[0]["metrics"] and rows[0]["metrics"]["psnr_kept"] > 0
    assert Image.open(tmp_path / "out" / "pictures" / "chair" / "one" / "untuned.png").size == (90, 70)


def test_storage_is_printed_without_a_run(capsys):
    script.main(["--storage"])
    assert "3,438 MB, 270 times" in capsys.readouterr().out


WRONG = [
    (["--subjects", "SUBJECTS"], "belong together"),
    (["--subjects", "/no/such", "--scenes", "SCENES"], "is no folder"),
    (["--subjects", "SCENES", "--scenes", "SCENES"], "holds no folders"),
    (["--subjects", "NUMBERS", "--scenes", "SCENES"], "names no class"),
    (["--subjects", "SUBJECTS", "--scenes", "NOMASK", "--boxes", "whole"], "has no mask"),
    (["--subjects", "SUBJECTS", "--scenes", "MASK", "--boxes", "whole"], "a mask without its picture"),
    (["--subjects", "SUBJECTS", "--scenes", "TWO", "--boxes", "whole"], "a.jpg and a.png, and one of them is meant"),
    (["--subjects", "SUBJECTS", "--scenes", "SCENES", "--boxes", "detr", "--detector", "/no"], "no detector"),
    (["--pretrained_model_name_or_path", "PLAIN"], "only the picturebook brings its own"),
    (["--methods", "no_prior"], "--no_prior_model"),
    (["--figure", "3"], "--dreambooth"),
    (["--methods", "lora", "--training_flags", "--rank zero"], "not an integer"),
    (["--methods", "lora", "--training_flags", "--rank '4"], "cannot be read: No closing quotation"),
    (["--methods", "lora", "--training_flags", "--output_dir elsewhere"], "by the evaluation itself"),
]


@pytest.mark.parametrize("flags, message", WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_wrong_input_is_one_sentence(run, place, model, tmp_path, refused, flags, message):
    for name in ("nomask/a.png", "mask/a_mask.png", "two/a.png", "two/a.jpg", "numbers/12/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        save_noise(tmp_path / name)
    places = {name.upper(): tmp_path / name for name in ("nomask", "mask", "two", "numbers")} | {"PLAIN": model}
    places |= {name.upper(): place / name for name in ("subjects", "scenes")}
    refused(message, run, *(places.get(flag, flag) for flag in flags))
    assert not (tmp_path / "out").exists()


def test_rows_of_other_settings_are_not_mixed_in(run, refused):
    words = ["--items", "1", "--methods", "untuned"]
    run(*words)
    for flag, value in (("guidance_scale", "2"), ("mask_resize", "nearest"), ("context", "3"),
                        ("mixed_precision", "bf16"), ("text_guidance_scale", "2")):  # fmt: skip
        refused(f"another --{flag}", run, *words, f"--{flag}", value)


def settings(output, *flags):
    elsewhere = str(Path(__file__).parent)
    return script.parse(["--subjects", elsewhere, "--scenes", elsewhere, "--output_dir", str(output),
                         "--pretrained_model_name_or_path", "owner/model", *flags])  # fmt: skip


def test_another_model_without_prior_matters_to_its_own_rows_alone(tmp_path):
    def keep(*flags):
        args = settings(tmp_path, *flags)
        script.keep_config(args, Painter(args))

    keep()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"method": "untuned", "item": "a"}) + "\n")
    keep("--no_prior_model", "one", "--methods", "no_prior")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"method": "no_prior", "item": "a"}) + "\n")
    refuses("another no_prior_model of no_prior", keep, "--no_prior_model", "two", "--methods", "no_prior")


def test_weights_are_told_apart_by_all_of_their_networks(tmp_path):
    before = []
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("unet", "image_encoder"):
        for content in (b"a", b"bc"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / "model.safetensors").write_bytes(content)
            before.append(settings(tmp_path / "out", "--pretrained_model_name_or_path", str(tmp_path)).weights)
    assert len(set(before)) == 4 and settings(tmp_path / "out").weights is None


def test_a_subject_of_your_own_has_one_caption_whichever_item_comes_first(tmp_path, monkeypatch):
    captioner = SimpleNamespace(caption=lambda picture: f"a thing of {picture.width} pixels")
    monkeypatch.setattr("image_inpaint.reproduction.baselines.Captioner", lambda *any: captioner)
    crops = tuple(Image.new("RGB", (side, 9)) for side in (5, 6, 7))
    subject = Subject("chair", "chair", tmp_path, crops)
    items = [Item(f"chair/{k}", "chair", "as photographed", crops[0], None, crops[k]) for k in range(3)]
    painter = Painter(settings(tmp_path))
    assert {painter.caption(item, subject) for item in (items[2], items[0])} == {"a thing of 5 pixels"}
    known = Item("chair/x", "chair", "light", crops[0], None, crops[0], caption="a red chair")
    assert painter.caption(known, subject) == "a red chair"


def test_published_numbers_name_methods_that_exist_and_the_swap():
    found = {name: published_table("image_inpaint", name) for name in "123"}
    for name, table in found.items():
        for row in table["rows"]:
            assert len(row["values"]) == len(table["columns"])
            assert row["method"] in {*METHODS, "", "dreambooth", "textual_inversion"}
        assert table["place"].endswith(f"Table {name}") and table["doubts"]
    assert found["2"]["rows"][0]["values"][:2] == found["3"]["rows"][0]["values"][1::-1] == [66.8, 71.4]
    assert math.isnan(found["1"]["rows"][0]["values"][0])


def test_the_rows_of_table_3_add_one_thing_each():
    def settings(name):
        model = ["--pretrained_model_name_or_path", "owner/model"]
        return vars(parse_train([*model, "--print_config", *METHODS[name].training]))

    plain, both = settings("lora_plain"), settings("lora")
    assert plain["augment_source"] == plain["augment_reference"] == [] and not plain["mask_augmentation"]
    assert both["augment_source"] and both["augment_reference"] and both["mask_augmentation"]
    pictures = {"augment_source": both["augment_source"], "augment_reference": both["augment_reference"]}
    mask = {"mask_augmentation": True}
    assert settings("lora_reference") == plain | pictures and settings("lora_mask") == plain | mask
    assert both == plain | pictures | mask and settings("full") == both | {"tuning": "full"}
