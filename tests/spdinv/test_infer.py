"""spdinv.infer from end to end on a small random model: files, odd photographs, wrong input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.images import center_crop_resize, load_image, to_tensor
from common.metrics import psnr
from common.pipelines import encode_image
from spdinv import infer, options
from tests.published import write_sd, write_sdxl

FAST = ["--num_inference_steps", "3"]
PROMPTS = ["--source_prompt", "a red cat on grass", "--target_prompt", "a blue cat on grass"]
TURNED = Image.Exif()
TURNED[274] = 6  # orientation: the camera was held upright


def photograph(path, mode="RGB", size=(64, 64), **save):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    deep = mode == "I;16"
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if deep else pixels)
    (image if deep else image.convert(mode)).save(path, **save)
    return path


def run(folder, picture, output, *more):
    more = (*more, *(() if "--inversion" in more else ("--spd_rounds", "2")))
    infer.main(["--pretrained_model_name_or_path", str(folder), "--image_path", str(picture), "--output_dir",
                str(output), *FAST, *PROMPTS, *more])  # fmt: skip
    return json.loads((output / "metrics.json").read_text()), json.loads((output / "config.json").read_text())


def test_every_file_says_what_happened_and_what_is_stale_goes(pipe, tiny_folder, tmp_path):
    picture, output = photograph(tmp_path / "in.png"), tmp_path / "out"
    words = ["--blended_words", "red", "blue", "--equalizer", "blue=2", "cat=0.5", "--save_trajectory"]
    metrics, config = run(tiny_folder, picture, output, *words)
    names = {"source.png", "reconstruction.png", "edited.png", "grid.png", "config.json", "metrics.json"}
    assert {path.name for path in output.iterdir()} == names | {"trajectory.safetensors"}
    source, edited = (to_tensor(Image.open(output / f"{name}.png")) for name in ("source", "edited"))
    assert metrics["edited"]["psnr"] == pytest.approx(psnr(source, edited).item(), rel=1e-6)
    assert config["equalizer"] == [["blue", 2.0], ["cat", 0.5]] and config["spd_threshold"] == 5e-6
    assert config["method"]["extras"]["proximal"] is False
    saved = load_file(output / "trajectory.safetensors")
    assert saved["latents"].shape == (4, 4, 16, 16) and saved["latents"].dtype == torch.float32
    assert torch.equal(saved["latents"][:1], encode_image(pipe, to_tensor(load_image(picture))))
    assert saved["rounds"].tolist() == metrics["rounds"] and len(metrics["rounds"]) == 3
    assert metrics["inversion_cost"]["forward"] == 3 + sum(metrics["rounds"])
    run(tiny_folder, picture, tmp_path / "again", *words)
    for name in ("edited.png", "trajectory.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    metrics, _ = run(tiny_folder, picture, output, "--engine", "none", "--guidance_scale", "1")
    assert {path.name for path in output.iterdir()} == names - {"edited.png"}  # it only reconstructs
    assert "edited" not in metrics and metrics["reconstruction"]["psnr"] > 0


@pytest.mark.parametrize("write, resolution", [(write_sd, "512"), (write_sdxl, "256")])
def test_folders_as_published(tmp_path, write, resolution):
    """Stable Diffusion 1.4 with its 64x64 latents and SDXL, file layout and key names as published, random weights."""
    write(tmp_path / "model")
    run(tmp_path / "model", photograph(tmp_path / "in.png"), tmp_path / "out", "--resolution", resolution,
        "--num_inference_steps", "2", "--source_prompt", "a cat", "--target_prompt", "a dog",
        "--blended_words", "cat", "dog", "--save_trajectory", "--spd_threshold", "1")  # fmt: skip
    size = int(resolution)
    assert Image.open(tmp_path / "out" / "edited.png").size == (size, size)
    saved = load_file(tmp_path / "out" / "trajectory.safetensors")
    assert saved["latents"].shape == (3, 4, size // 8, size // 8) and saved["rounds"].tolist() == [1, 1]


def test_print_config_runs_nothing_and_words_may_have_schedules_of_their_own(tmp_path, capsys):
    """--cross_replace_steps 0.4 WORD=0.2, and the preset's value for the others where none is given."""

    def method(*flags):
        infer.main(["--print_config", "--output_dir", str(tmp_path / "out"), *flags])
        assert not (tmp_path / "out").exists()
        return json.loads(capsys.readouterr().out)["method"]

    assert method()["inversion_options"] == {
        "rounds": 25, "learning_rate": 1e-3, "threshold": 5e-6, "solver": "adamw", "guess": "t"}  # fmt: skip
    for words, expected in (("0.6", 0.6), ("0.4 cat=0.2 blue=0", {"default_": 0.4, "cat": 0.2, "blue": 0.0}),
                            ("cat=0.2", {"default_": 0.8, "cat": 0.2})):  # fmt: skip
        found = method("--preset", "as_released", "--cross_replace_steps", *words.split())
        assert found["engine_options"]["cross_replace_steps"] == expected


MASA = "--engine masactrl"
WRONG = {  # sentence: flags after a whole command
    "cannot be read as a picture": ["--image_path TEXT", "--image_path CUT",
                                    f"{MASA} --source_mask TEXT --target_mask PICTURE"],
    "num_inference_steps": ["--num_inference_steps 1000"], "from 0 to 1": ["--cross_replace_steps 1.5"],
    "expected 2 arguments": ["--blended_words red"],
    "'green' is not in the prompt": ["--blended_words red green", "--cross_replace_steps 0.4 green=0.2",
                                     f"{MASA} --start_step 0 --mask_words red green"],
    "'dog' is not in the prompt": ["--blended_words red blue --substruct_words cat dog"],
    "WORD=NUMBER": ["--equalizer blue", "--cross_replace_steps =0.2"],
    "--equalizer names 'blue' twice": ["--equalizer blue=2 blue=3"],
    "--cross_replace_steps names 'default_' twice": ["--cross_replace_steps .3 .5"],
    "give these too": ["--substruct_words cat cat"], "equally many words": ["--controller replace --target_prompt cat"],
    "multiple": ["--resolution 65"],
    "engine p2p": ["--engine none --blended_words red blue", "--engine pnp --controller refine"],
    "engine masactrl": ["--start_step 0"], "touch no step": [MASA],
    "touch no layer": [f"{MASA} --start_step 0 --start_layer 7"],
    "go together": [f"{MASA} --source_mask PICTURE"],
    "take one way": [f"{MASA} --source_mask PICTURE --target_mask PICTURE --mask_words red blue"],
    "/no/such/place": [f"{MASA} --source_mask /no/such/place --target_mask PICTURE"],
    "both must have one size": [f"{MASA} --source_mask SMALL --target_mask PICTURE"],
    "take inversion ddim": ["--engine pnp --inversion nmg"],
    "--spd_rounds is a setting of inversion spd": ["--inversion ddim --spd_rounds 25"],
    "of inversion negative_prompt and of inversion proximal": ["--negative_prompt_interpolation 0"],
    "--proximal_mode is a setting of --proximal": ["--proximal_mode hard"],
    "setting of --inversion_guidance": ["--proximal_recon_t 300"],
    "setting of --proximal": ["--proximal --no-proximal --proximal_mode hard"],
    "--inversion_guidance": ["--preset as_released --no-inversion_guidance --proximal_dilation 1"],
    "leave it out": ["--engine none --color_fix"],
    "samples in its own way": ["--inversion edict --preset as_released"],
    "leave out --inversion_steps": ["--inversion null_text --inversion_steps 9"],
    "take a multiple": ["--inversion_steps 7"], "--elite /no/such/place does not exist": ["--elite /no/such/place"],
    "give --elite too": ["--reference_image_path PICTURE"],
    "use that word in --target_prompt": ["--elite PICTURE"],
}  # fmt: skip
ALONE = {"": "give --image_path, --source_prompt", "--source_prompt cat": "give --image_path too",
         "--image_path PICTURE": "--image_path needs",
         "--image_path PICTURE --source_prompt cat": "--image_path needs"}  # fmt: skip


def test_masks_are_cut_as_their_picture_is(tmp_path):
    picture, mask = Image.new("RGB", (96, 64)), Image.new("L", (96, 64))
    mask.paste(255, (70, 10, 90, 30))
    mask.save(tmp_path / "mask.png")
    flags = ["--engine", "masactrl", "--source_mask", str(tmp_path / "mask.png"), "--target_mask",
             str(tmp_path / "mask.png"), "--print_config"]  # fmt: skip
    found = options.with_picture(options.Method(engine="masactrl"), infer.parse(flags), picture).engine_options["masks"]
    expected = np.array(center_crop_resize(mask.convert("RGB"), 64))[..., 0] / 255
    assert all(np.array_equal(one.numpy(), expected) for one in found)


@pytest.mark.parametrize("words, message, alone", [
    *((words, message, False) for message, found in WRONG.items() for words in found),
    *((words, message, True) for words, message in ALONE.items()),
])  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_nothing(tiny_folder, tmp_path, refused, words, message, alone):
    """What tests/test_hostile_inputs.py does not ask of every script."""
    picture = photograph(tmp_path / "in.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:3000])
    places = {"TEXT": tmp_path / "text.png", "CUT": tmp_path / "cut.png", "PICTURE": picture,
              "SMALL": photograph(tmp_path / "small.png", "L", (32, 64))}  # fmt: skip
    flags = [] if alone else ["--image_path", str(picture), *PROMPTS]
    flags += ["--pretrained_model_name_or_path", str(tiny_folder), *FAST, "--output_dir", str(tmp_path / "out")]
    refused(message, infer.main, [*flags, *(str(places.get(word, word)) for word in words.split())])
    assert not (tmp_path / "out").exists()
