"""svdiff.infer from end to end on a small random model: pictures, combinations, export, wrong input."""

import json
import shutil

import pytest
import torch

from common.flags import is_picturebook_folder
from common.images import load_image, to_tensor
from common.pipelines import load_pipeline
from svdiff import basis, editing, files, merging
from svdiff.infer import export, main, weighted
from svdiff.spectral import attach
from tests.small_data import save_noise
from tests.svdiff.conftest import random_shifts
from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def shifts(pipe, tmp_path_factory):
    """Two trainings' folders; the first remembers its subject."""
    unet, folder = pipe.unet, tmp_path_factory.mktemp("shifts")
    for seed, name in enumerate(("a", "b")):
        values = random_shifts(unet, "UNet-2D", seed, 0.2)
        files.write_shifts(folder / name / files.file_name("unet"), values, basis.base_hash(unet))
    (folder / "a" / "config.json").write_text(json.dumps({"validation_prompt": "a red cat"}))
    return folder


@pytest.fixture
def infer(tiny_folder, tmp_path):
    def run(*more):
        main(["--pretrained_model_name_or_path", str(tiny_folder), "--device", "cpu", "--num_inference_steps", "2",
              "--output_dir", str(tmp_path / "out"), "--basis_dir", str(tmp_path / "basis"),
              *map(str, more)])  # fmt: skip
        return tmp_path / "out"

    return run


def pictures(output):
    return {path.stem for path in output.glob("*.png")}


def test_pictures_of_one_training_and_its_own_prompt(infer, shifts, tiny_folder, tmp_path):
    output = infer("--spectral_shifts", shifts / "a", "--num_images", "2", "--seed", "5")
    assert pictures(output) == {"tuned_5", "tuned_6", "grid"}
    assert json.loads((output / "config.json").read_text())["prompt"] == "a red cat"
    pipe = load_pipeline(tiny_folder, "cpu")
    merging.write_into(pipe, merging.load(pipe, shifts / "a"), bases=basis.Bases(pipe, tmp_path / "basis"))
    expected = editing.draw(pipe, "a red cat", [5, 6], editing.Sampling(2))
    assert (to_tensor(load_image(output / "tuned_6.png")) - expected[1:]).abs().max() < 0.005


def test_scale_0_is_the_base_model(infer, shifts, tiny_folder):
    output = infer("--spectral_shifts", f"{shifts / 'a'}:0.5", shifts / "b", "--scale", "0", "1", "--prompt", "a cat",
                   "--num_images", "1")  # fmt: skip
    assert pictures(output) == {"tuned_scale_0_0", "tuned_scale_1_0", "grid"}
    base = editing.draw(load_pipeline(tiny_folder, "cpu"), "a cat", [0], editing.Sampling(2))
    seen = {name: to_tensor(load_image(output / f"tuned_scale_{name}_0.png")) for name in "01"}
    assert (seen["0"] - base).abs().max() < 0.005 < (seen["1"] - base).abs().max()


def test_interpolation_ends_are_the_trainings(infer, shifts):
    end = (infer("--interpolate", shifts / "a", shifts / "b", "--alpha", 1, "--prompt", "a", "--num_images", 1)
           / "alpha_1_0.png").read_bytes()  # fmt: skip
    alone = infer("--spectral_shifts", shifts / "a", "--prompt", "a", "--num_images", 1)
    assert (alone / "tuned_0.png").read_bytes() == end


def test_scales_that_differ_in_a_late_digit_are_two_models(infer, shifts):
    output = infer("--interpolate", shifts / "a", shifts / "b", "--alpha", "0.5", "0.5000001", "--scale", "-1", "0.25",
                   "--prompt", "a", "--num_images", 1)  # fmt: skip
    assert pictures(output) == {"grid"} | {f"alpha_{alpha}_scale_{scale}_0" for alpha in ("0.5", "0.5000001")
                                           for scale in ("-1", "0.25")}  # fmt: skip


def test_style_mixing_and_editing(infer, shifts, tmp_path):
    mix = ("--style_mix", shifts / "a", shifts / "b", "--geometry_layers", "8,down,0", "4,down,0")
    assert pictures(infer(*mix, "--prompt", "a cat", "--num_images", 1)) == {"mixed_0", "grid"}
    source = save_noise(tmp_path / "in.png", (64, 80))
    edit = ("--spectral_shifts", shifts / "a", "--image_path", source, "--prompt", "a blue cat")
    assert pictures(infer(*edit)) == {"tuned_0", "grid"}  # one picture: nothing is random
    assert pictures(infer(*edit, "--slerp_alpha", "0.5", "--num_images", "2")) == {"tuned_0", "tuned_1", "grid"}


@pytest.mark.parametrize("config", [[], None, {}, {"validation_prompt": 5}, {"validation_prompt": " "}], ids=json.dumps)
def test_a_config_of_no_training_is_answered_with_give_prompt(infer, shifts, tmp_path, refused, config):
    training = shutil.copytree(shifts / "b", tmp_path / "training")
    (training / "config.json").write_text(json.dumps(config))
    refused("give --prompt" if isinstance(config, dict) else "is damaged", infer, "--spectral_shifts", training)
    assert not (tmp_path / "out").exists()


def test_the_merged_export_is_an_ordinary_pipeline_and_draws_the_same(infer, shifts, tmp_path):
    infer("--spectral_shifts", shifts / "a", "--export_merged", tmp_path / "merged")
    merged = load_pipeline(tmp_path / "merged", "cpu")
    assert merged.unet.dtype == torch.float32 and not (tmp_path / "out").exists()
    drawn = editing.draw(merged, "a cat", [0], editing.Sampling(2))
    spectral = tiny_sd()  # the same shifts in activation space
    change = merging.of_part(merging.load(spectral, shifts / "a"))
    paths = [name.removesuffix(".delta") for name in change]
    for path, layer in attach(spectral.unet, paths, basis.find_bases(spectral.unet, paths, tmp_path / "basis")).items():
        layer.delta.data.copy_(change[f"{path}.delta"])
    other = editing.draw(spectral, "a cat", [0], editing.Sampling(2))
    torch.testing.assert_close(drawn, other, rtol=0, atol=1e-3)
    assert (drawn - editing.draw(tiny_sd(), "a cat", [0], editing.Sampling(2))).abs().max() > 0.005


def test_an_exported_picturebook_stays_one(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "write_into", lambda *arguments: None)
    book = shutil.copytree(tiny_folder, tmp_path / "book")
    (book / "picturebook.json").write_text("{}")
    for source, place in ((tiny_folder, "plain"), (book, "marked")):
        export(load_pipeline(source, "cpu"), None, 1.0, None, tmp_path / place)
    assert is_picturebook_folder(str(tmp_path / "marked")) and not is_picturebook_folder(str(tmp_path / "plain"))


A = ["--spectral_shifts", "HERE/a"]
MIX = ["--style_mix", "HERE/a", "HERE/b", "--geometry_layers"]
EDIT = [*A, "--image_path", __file__, "--prompt", "a"]
WRONG = [
    ([*A, "--interpolate", "HERE/a", "HERE/b"], "not allowed with"),
    ([*MIX, "16,down,9", "8,down,0"], "the layers have to be"),
    ([*MIX, "8,down,0", "16,down,0"], "in this order"),
    ([*MIX, "16,side,1", "8,down,0"], "no layer"),
    (["--spectral_shifts", "HERE/b"], "give --prompt"),
    ([*A, "--image_path", __file__], "needs --prompt"),
    (EDIT, "cannot be read as a picture"),
    ([*EDIT, "--slerp_alpha", "0.5", "--no-ddim_inversion"], "inverted picture"),
    ([*EDIT, "--num_images", "8"], "has to be 1"),
    ([*A, "--slerp_alpha", "0"], "--slerp_alpha does nothing without --image_path"),
    ([*A, "--ddim_inversion"], "--ddim_inversion does nothing without --image_path"),
    ([*A, "--no-ddim_inversion"], "--no-ddim_inversion does nothing without --image_path"),
    ([*A, "--alpha", "0.5"], "--alpha does nothing without --interpolate"),
    ([*A, "--geometry_layers", "16,down,1", "8,down,0"], "without --style_mix"),
    ([*A, "--export_merged", "HERE"], "is there already"),
    ([*A, "--export_merged", "HERE/x", "--scale", "1", "2"], "one --scale"),
    ([*A, "--resolution", "65"], "multiple"),
    (["--spectral_shifts", "HERE/a:nan"], "no finite number"),
    ([*A, "HERE/b:-inf"], "no finite number"),
    ([*A, "--num_inference_steps", "1000", "--prompt", "a"], "num_inference_steps"),
]


@pytest.mark.parametrize("more, words", WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(infer, shifts, tmp_path, refused, more, words):
    refused(words, infer, *(word.replace("HERE", str(shifts)) for word in more))
    assert not (tmp_path / "out").exists()


def test_nothing_trained_yet_names_the_command(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused("python -m svdiff.train", main, [])


def test_a_weight_follows_a_colon_unless_that_is_the_files_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weighted("run:2") == ("run", 2.0) and weighted("a:b") == ("a:b", 1.0) and weighted("2") == ("2", 1.0)
    (tmp_path / "run:2").mkdir()
    assert weighted("run:2") == ("run:2", 1.0) and weighted("run:2:0.5") == ("run:2", 0.5)
