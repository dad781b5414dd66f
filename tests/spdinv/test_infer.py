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
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels, "RGBA").convert(mode)
    image.save(path, **save)
    return path


def run(folder, picture, output, *more):
    more = (*more, *(() if "--inversion" in more else ("--spd_rounds", "2")))
    infer.main(["--pretrained_model_name_or_path", str(folder), "--image_path", str(picture), "--output_dir",
                str(output), *FAST, *PROMPTS, *more])  # fmt: skip
    return json.loads((output / "metrics.json").read_text()), json.loads((output / "config.json").read_text())


def test_every_file_is_there_and_says_what_happened(tiny_folder, tmp_path):
    picture, output = photograph(tmp_path / "in.png"), tmp_path / "out"
    words = ["--blended_words", "red", "blue", "--equalizer", "blue=2", "cat=0.5"]
    metrics, config = run(tiny_folder, picture, output, *words, "--save_trajectory")
    names = {"source.png", "reconstruction.png", "edited.png", "grid.png", "config.json", "metrics.json"}
    assert {path.name for path in output.iterdir()} == names | {"trajectory.safetensors"}
    source, edited = (torch.from_numpy(np.array(Image.open(output / f"{name}.png"))).permute(2, 0, 1)[None] / 255
                      for name in ("source", "edited"))  # fmt: skip
    assert metrics["edited"]["psnr"] == pytest.approx(psnr(source, edited).item(), rel=1e-6)
    assert config["equalizer"] == [["blue", 2.0], ["cat", 0.5]] and config["spd_threshold"] == 5e-6
    assert config["method"]["extras"]["proximal"] is False
    saved = load_file(output / "trajectory.safetensors")
    assert saved["latents"].shape == (4, 4, 16, 16) and saved["latents"].dtype == torch.float32
    assert saved["rounds"].tolist() == metrics["rounds"] and len(metrics["rounds"]) == 3
    assert metrics["inversion_cost"]["forward"] == 3 + sum(metrics["rounds"])


def test_the_trajectory_starts_at_the_picture_and_the_same_call_gives_the_same_bytes(pipe, tiny_folder, tmp_path):
    picture = photograph(tmp_path / "in.png")
    for name in ("one", "two"):
        run(tiny_folder, picture, tmp_path / name, "--save_trajectory")
    for name in ("edited.png", "trajectory.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    latents = encode_image(pipe, to_tensor(load_image(picture)))
    assert torch.equal(load_file(tmp_path / "one" / "trajectory.safetensors")["latents"][:1], latents)


def test_engine_none_only_reconstructs_and_clears_what_is_stale(tiny_folder, tmp_path):
    picture, output = photograph(tmp_path / "in.png"), tmp_path / "out"
    run(tiny_folder, picture, output, "--save_trajectory", "--inversion", "ddim")
    metrics, _ = run(tiny_folder, picture, output, "--engine", "none", "--guidance_scale", "1")
    assert not (output / "edited.png").exists() and not (output / "trajectory.safetensors").exists()
    assert "edited" not in metrics and metrics["reconstruction"]["psnr"] > 0


@pytest.mark.parametrize("name, mode, size, save", [
    ("a.png", "RGBA", (70, 50), {}), ("a.png", "L", (64, 64), {}), ("a.gif", "P", (90, 64), {}),
    ("a.jpg", "RGB", (50, 80), {"exif": TURNED}), ("a.png", "I;16", (64, 64), {}), ("a.png", "RGB", (1000, 333), {}),
    ("a.png", "RGB", (7, 9), {}),
])  # fmt: skip
def test_photographs_of_any_size_and_mode(tiny_folder, tmp_path, name, mode, size, save):
    picture = photograph(tmp_path / name, mode, size, **save)
    run(tiny_folder, picture, tmp_path / "out", "--engine", "none", "--inversion", "ddim")
    source = Image.open(tmp_path / "out" / "source.png")
    expected = center_crop_resize(load_image(picture), 64)
    assert source.size == (64, 64) and np.array_equal(np.array(source), np.array(expected))
    if save:
        assert load_image(picture).size == size[::-1]


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


def test_print_config_runs_nothing(tmp_path, capsys):
    infer.main(["--print_config", "--output_dir", str(tmp_path / "out")])
    config = json.loads(capsys.readouterr().out)
    assert config["method"]["inversion_options"] == {
        "rounds": 25, "learning_rate": 1e-3, "threshold": 5e-6, "solver": "adamw", "guess": "t"}  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_words_may_have_schedules_of_their_own(capsys):
    """--cross_replace_steps 0.4 WORD=0.2, and the preset's value for the others where none is given."""
    for flags, expected in [
        (["0.6"], 0.6),
        (["0.4", "cat=0.2", "blue=0"], {"default_": 0.4, "cat": 0.2, "blue": 0.0}),
        (["cat=0.2"], {"default_": 0.8, "cat": 0.2}),
    ]:
        infer.main(["--print_config", "--preset", "as_released", "--cross_replace_steps", *flags])
        options = json.loads(capsys.readouterr().out)["method"]["engine_options"]
        assert options["cross_replace_steps"] == expected


MISSING = "/no/such/place"
WRONG = [
    (["--image_path", "TEXT"], "cannot be read as a picture"),
    (["--image_path", "CUT"], "cannot be read as a picture"),
    (["--num_inference_steps", "1000"], "num_inference_steps"),
    (["--cross_replace_steps", "1.5"], "from 0 to 1"),
    (["--blended_words", "red"], "expected 2 arguments"),
    (["--blended_words", "red", "green"], "'green' is not in the prompt"),
    (["--equalizer", "blue"], "WORD=NUMBER"),
    (["--equalizer", "blue=2", "blue=3"], "--equalizer names 'blue' twice"),
    (["--cross_replace_steps", ".3", ".5"], "--cross_replace_steps names 'default_' twice"),
    (["--cross_replace_steps", "=0.2"], "WORD=NUMBER"),
    (["--cross_replace_steps", "0.4", "green=0.2"], "'green' is not in the prompt"),
    (["--substruct_words", "cat", "cat"], "give these too"),
    (["--blended_words", "red", "blue", "--substruct_words", "cat", "dog"], "'dog' is not in the prompt"),
    (["--controller", "replace", "--target_prompt", "a cat"], "equally many words"),
    (["--resolution", "65"], "multiple"),
    (["--engine", "none", "--blended_words", "red", "blue"], "engine p2p"),
    (["--engine", "pnp", "--controller", "refine"], "engine p2p"),
    (["--start_step", "0"], "engine masactrl"),
    (["--engine", "masactrl"], "touch no step"),
    (["--engine", "masactrl", "--start_step", "0", "--start_layer", "7"], "touch no layer"),
    (["--engine", "masactrl", "--start_step", "0", "--mask_words", "red", "green"], "'green' is not in the prompt"),
    (["--engine", "masactrl", "--source_mask", "PICTURE"], "go together"),
    (
        ["--engine", "masactrl", "--source_mask", "PICTURE", "--target_mask", "PICTURE", "--mask_words", "red", "blue"],
        "take one way",
    ),
    (["--engine", "masactrl", "--source_mask", MISSING, "--target_mask", "PICTURE"], MISSING),
    (["--engine", "masactrl", "--source_mask", "TEXT", "--target_mask", "PICTURE"], "cannot be read as a picture"),
    (["--engine", "masactrl", "--source_mask", "SMALL", "--target_mask", "PICTURE"], "both must have one size"),
    (["--engine", "pnp", "--inversion", "nmg"], "take inversion ddim"),
    (["--inversion", "ddim", "--spd_rounds", "25"], "--spd_rounds is a setting of inversion spd"),
    (["--negative_prompt_interpolation", "0"], "of inversion negative_prompt and proximal"),
    (["--proximal_mode", "hard"], "--proximal_mode is a setting of --proximal"),
    (["--proximal_recon_t", "300"], "setting of --inversion_guidance"),
    (["--proximal", "--no-proximal", "--proximal_mode", "hard"], "setting of --proximal"),
    (["--preset", "as_released", "--no-inversion_guidance", "--proximal_dilation", "1"], "--inversion_guidance"),
    (["--engine", "none", "--color_fix"], "leave it out"),
    (["--inversion", "edict", "--preset", "as_released"], "samples in its own way"),
    (["--inversion", "null_text", "--inversion_steps", "9"], "leave out --inversion_steps"),
    (["--inversion_steps", "7"], "take a multiple"),
    (["--elite", MISSING], f"--elite {MISSING} does not exist"),
    (["--reference_image_path", "PICTURE"], "give --elite too"),
    (["--elite", "PICTURE"], "use that word in --target_prompt"),
    ([None], "give --image_path, --source_prompt"),
    ([None, "--source_prompt", "a cat"], "give --image_path too"),
    ([None, "--image_path", "PICTURE"], "--image_path needs"),
    ([None, "--image_path", "PICTURE", "--source_prompt", "a cat"], "--image_path needs"),
]  # after a whole command; None first: alone


def test_masks_are_cut_as_their_picture_is(tmp_path):
    picture, mask = Image.new("RGB", (96, 64)), Image.new("L", (96, 64))
    mask.paste(255, (70, 10, 90, 30))
    mask.save(tmp_path / "mask.png")
    flags = ["--engine", "masactrl", "--source_mask", str(tmp_path / "mask.png"), "--target_mask",
             str(tmp_path / "mask.png"), "--print_config"]  # fmt: skip
    found = options.with_picture(options.Method(engine="masactrl"), infer.parse(flags), picture).engine_options["masks"]
    expected = np.array(center_crop_resize(mask.convert("RGB"), 64))[..., 0] / 255
    assert all(np.array_equal(one.numpy(), expected) for one in found)


@pytest.mark.parametrize("flags, message", WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing(tiny_folder, tmp_path, capsys, flags, message):
    """What tests/test_hostile_inputs.py does not ask of every script."""
    picture = photograph(tmp_path / "in.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:3000])
    places = {"TEXT": tmp_path / "text.png", "CUT": tmp_path / "cut.png", "PICTURE": picture,
              "SMALL": photograph(tmp_path / "small.png", "L", (32, 64))}  # fmt: skip
    base = ["--pretrained_model_name_or_path", str(tiny_folder), *FAST]
    base += ["--image_path", str(picture), *PROMPTS] if flags[:1] != [None] else []

    def at(flag):
        place, _, rest = flag.partition("/")
        return str(places[place] / rest) if place in places else flag

    with pytest.raises(SystemExit) as stop:
        infer.main([*base, "--output_dir", str(tmp_path / "out"), *(at(flag) for flag in flags if flag)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
