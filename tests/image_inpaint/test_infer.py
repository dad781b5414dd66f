"""image_inpaint.infer from end to end on a small random model: files, odd photographs, trained weights, wrong input."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from image_inpaint import infer, loading
from image_inpaint.lora import add_lora, save_lora
from image_inpaint.sampling import make_scheduler
from tests.small_data import save_mask, save_noise


@pytest.fixture
def run(model, tmp_path):
    def run(*flags):
        """A first flag of None: without the room, its hole and the chair."""
        paths = save_noise(tmp_path / "room.png"), save_mask(tmp_path / "mask.png"), save_noise(tmp_path / "chair.png")
        names = ("--image_path", "--mask_path", "--reference_path")
        given = [word for pair in zip(names, map(str, paths), strict=True) for word in pair]
        given, flags = ([], flags[1:]) if flags[:1] == (None,) else (given, flags)
        infer.main(["--pretrained_model_name_or_path", str(model), "--output_dir", str(tmp_path / "out"), *given,
                    "--num_inference_steps", "2", "--device", "cpu", *map(str, flags)])  # fmt: skip
        return json.loads((tmp_path / "out" / "metrics.json").read_text())

    return run


def test_every_file_is_there_and_compositing_keeps_the_background(run, tmp_path):
    metrics = run("--no-composite")
    names = {"source.png", "hole.png", "inpainted.png", "grid.png", "config.json", "metrics.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert metrics["psnr_kept"][0] < 60 and metrics["weights"] == "untuned"
    metrics = run("--feather", "3")
    assert metrics["psnr_kept"] == [float("inf")]
    source, made = (np.asarray(Image.open(tmp_path / "out" / f"{name}.png")) for name in ("source", "inpainted"))
    outside = np.ones((64, 64), bool)
    outside[12:50, 10:40] = False
    assert (source[outside] == made[outside]).all() and (source != made).any()


def test_nothing_is_said_that_nobody_can_act_on(run):
    said, ear = [], logging.Handler()
    ear.emit = said.append
    logging.getLogger("diffusers").addHandler(ear)
    try:
        run()
    finally:
        logging.getLogger("diffusers").removeHandler(ear)
    assert not said, said[0].getMessage()


def test_each_reference_gives_a_picture(run, tmp_path):
    run("--reference_path", tmp_path / "chair.png", save_noise(tmp_path / "other.png", (20, 40), seed=3))
    made = sorted((tmp_path / "out").glob("inpainted*.png"))
    assert [path.name for path in made] == ["inpainted.png", "inpainted_2.png"]
    assert made[0].read_bytes() != made[1].read_bytes()
    run()
    assert len(list((tmp_path / "out").glob("inpainted*.png"))) == 1  # those of the earlier run are gone


@pytest.mark.parametrize("scheduler", ["plms", "ddim"])
def test_as_many_steps_as_there_are_fit_the_models_noise_levels(scheduler, pipe):
    made = make_scheduler(scheduler, pipe.scheduler.config)
    made.set_timesteps(999)
    assert int(max(made.timesteps)) < len(made.alphas_cumprod)


def test_a_reference_is_cut_out_with_the_margin_of_training(run, monkeypatch):
    shown = []
    monkeypatch.setattr("image_inpaint.painting.paint", lambda *given, **more: shown.extend(given[3]) or [given[1][0]])
    run("--reference_box", "10", "12", "40", "50")
    assert [picture.size for picture in shown] == [(32, 40)]  # a pixel on each side at 64 pixels


def test_trained_weights_change_the_picture(run, pipe, tmp_path):
    for name, parameter in add_lora(pipe.unet, 2, 2, "attention").items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    save_lora(pipe.unet, tmp_path / "trained")
    pictures = []
    for flags in ((), ("--lora", tmp_path / "trained"), ("--lora", tmp_path / "trained" / loading.LORA_FILE)):
        assert run(*flags)["weights"] == ("lora" if flags else "untuned")
        pictures.append((tmp_path / "out" / "inpainted.png").read_bytes())
    assert pictures[0] != pictures[1] == pictures[2]


WRONG = [
    ([None], "only the picturebook brings its own"),
    ([None, "--image_path", "SMALL"], "belong together"),
    (["--image_path", "TEXT"], "cannot be read as a picture"),
    (["--mask_path", "SMALL"], "draw the one on the other"),
    (["--mask_path", "BLACK"], "is empty"),
    (["--mask_path", "WHITE"], "white all over"),
    (["--reference_path", "TEXT"], "cannot be read as a picture"),
    (["--reference_box", "70", "70", "90", "90"], "nothing of it"),
    (["--lora", "SMALL"], "damaged or no safetensors"),
    (["--feather", "3", "--no-composite"], "is of --composite"),
    (["--mask_path", "LAYER"], "without transparency"),
    (["--pretrained_model_name_or_path", "SD"], "text-to-image model"),
]


@pytest.mark.parametrize("flags, message", WRONG, ids=[message for _, message in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(run, tiny_folder, tmp_path, refused, flags, message):
    (tmp_path / "text.png").write_text("hello")
    layer = Image.new("RGBA", (64, 64))
    layer.paste((0, 0, 0, 255), (10, 12, 40, 50))  # black painted on nothing: the hole, or what is to stay?
    layer.save(tmp_path / "layer.png")
    places = {"TEXT": tmp_path / "text.png", "SMALL": save_mask(tmp_path / "small.png", (30, 30), (2, 2, 9, 9)),
              "BLACK": save_mask(tmp_path / "black.png", box=(0, 0, 0, 0)), "LAYER": tmp_path / "layer.png",
              "WHITE": save_mask(tmp_path / "white.png", box=(0, 0, 64, 64)), "SD": tiny_folder}  # fmt: skip
    refused(message, run, *(places.get(flag, flag) for flag in flags))
    assert not (tmp_path / "out").exists()
