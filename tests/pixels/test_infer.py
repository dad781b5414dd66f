"""pixels.infer from end to end on small random models: files, any picture and map, wrong input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import load_image, to_tensor
from common.metrics import psnr
from pixels import edit_map, frames, infer, options
from pixels.backbones import bind, load_model
from pixels.surgery import Surgery, edit
from tests.pixels.tiny_models import write_kandinsky, write_refiner, write_sdxl
from tests.refusing import refuses
from tests.small_data import save_noise

FAST = ["--num_inference_steps", "4", "--strength", "1", "--guidance_scale", "1"]


def draw_map(path, size=(64, 64)):
    """Black on the left half, a ramp, white on the right quarter."""
    line = np.clip((np.arange(size[0]) / size[0] - 0.5) * 4, 0, 1)
    Image.fromarray((255 * line[None].repeat(size[1], 0)).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    names = {"source": save_noise(tmp_path / "s.png"), "exemplar": save_noise(tmp_path / "e.jpg", seed=1),
             "second": save_noise(tmp_path / "e2.png", (90, 50), seed=2), "map": draw_map(tmp_path / "m.png"),
             "flipped": tmp_path / "f.png", "inverse": tmp_path / "i.png"}  # fmt: skip
    Image.open(names["map"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(names["flipped"])
    Image.fromarray(255 - np.asarray(Image.open(names["map"]))).save(names["inverse"])
    return names


def run(folder, files, output, *more, maps=("map",), exemplars=("exemplar",)):
    flags = [word for name in exemplars for word in ("--exemplar_path", str(files[name]))]
    flags += [word for name in maps for word in ("--edit_map_path", str(files.get(name, name)))]
    infer.main(["--pretrained_model_name_or_path", str(folder), "--image_path", str(files["source"]), "--output_dir",
                str(output), "--device", "cpu", *flags, *FAST, *more])  # fmt: skip
    return json.loads((output / "metrics.json").read_text()), json.loads((output / "config.json").read_text())


def pixels_of(path):
    return np.asarray(Image.open(path)).astype(int)


def test_every_file_is_there_and_says_what_happened(tiny_folder, files, tmp_path, capsys):
    output = tmp_path / "out"
    metrics, config = run(tiny_folder, files, output)
    names = "source.png exemplar_1.png edited.png preview.png grid.png config.json metrics.json".split()
    assert {path.name for path in output.iterdir()} == set(names)
    cells = metrics["cells"][0]
    assert cells["exemplar"] == 8 * 16 and sum(cells.values()) == 256 and cells["kept"] == 4 * 16 + 16
    assert metrics["thresholds"] == [0, 0.25, 0.5, 0.75]
    assert config["sampling"]["guidance_scale"] == 1 and config["surgery"]["schedule"] == "released"
    source, edited = (torch.from_numpy(pixels_of(output / f"{name}.png")).permute(2, 0, 1)[None] / 255
                      for name in ("source", "edited"))  # fmt: skip
    assert metrics["psnr_kept"] == pytest.approx(psnr(source[..., 44:], edited[..., 44:]).item(), rel=1e-5)
    printed = capsys.readouterr().out
    assert "128 of 256 latent cells (50.0 %) take the exemplar" in printed and str(output) in printed


def test_the_picture_is_the_one_of_the_method(tiny_folder, files, tmp_path):
    """The script adds nothing of its own: the same picture from the functions it calls, of the same seed."""
    run(tiny_folder, files, tmp_path / "out", "--seed", "7", "--threshold", "cubic")
    told = options.Sampling(negative_prompt="", guidance_scale=1, num_inference_steps=4)
    backbone = bind(load_model(tiny_folder, device="cpu"), told, (64, 64))
    source, exemplar = (to_tensor(load_image(files[name])) for name in ("source", "exemplar"))
    result = edit(backbone, source, [exemplar], [edit_map.read(files["map"])], Surgery("cubic"),
                  torch.Generator().manual_seed(7))  # fmt: skip
    assert np.array_equal(np.asarray(frames.to_picture(result.edited)), pixels_of(tmp_path / "out" / "edited.png"))


def test_several_exemplars_in_one_pass_or_one_after_the_other(tiny_folder, files, tmp_path):
    both = dict(exemplars=["exemplar", "second"], maps=["map", "flipped"])
    metrics, _ = run(tiny_folder, files, tmp_path / "once", **both)
    assert len(metrics["cells"]) == 1 and len(metrics["latent_distance"]) == 2
    assert (tmp_path / "once" / "exemplar_2.png").exists()
    metrics, _ = run(tiny_folder, files, tmp_path / "turns", "--iterative", **both)
    assert [cells["exemplar"] for cells in metrics["cells"]] == [128, 128]
    run(tiny_folder, files, tmp_path / "once")
    assert not (tmp_path / "once" / "exemplar_2.png").exists()  # of the run before


@pytest.mark.parametrize("flags, black", [
    (["--map_kind", "mask", "--map_white", "edit"], 96),
    (["--map_kind", "mask", "--map_white", "edit", "--map_grow", "8", "--map_ramp", "8"], 128),
    (["--map_kind", "depth"], 128),
    (["--map_gamma", "3"], 128),
    (["--black_point", "0.3"], 144),
    (["--black_point", "0.25", "gradient:right"], 64),  # needs no file
], ids=lambda flags: " ".join(flags) if isinstance(flags, list) else "")  # fmt: skip
def test_kinds_of_maps(tiny_folder, files, tmp_path, flags, black):
    maps = [flags[-1] if ":" in flags[-1] else "map"]
    metrics, _ = run(tiny_folder, files, tmp_path / "out", *[flag for flag in flags if flag not in maps], maps=maps)
    assert abs(metrics["cells"][0]["exemplar"] - black) <= 16 * ("edit" in flags or "0.3" in flags)  # a column of cells


@pytest.mark.parametrize("mode", ["squash", "crop"])
def test_pictures_and_maps_of_other_sizes_stay_aligned(tiny_folder, files, tmp_path, mode, refused):
    """Source and map at twice the size and half as high: the same cells, whichever way they come into the frame."""
    files |= {"source": save_noise(tmp_path / "wide.png", (256, 128)), "map": draw_map(tmp_path / "w.png", (256, 128))}
    metrics, _ = run(tiny_folder, files, tmp_path / "out", "--fit", mode)
    line = np.clip((np.arange(256) / 256 - 0.5) * 4, 0, 1)[64:192] if mode == "crop" else None
    expected = 8 * 16 if line is None else 16 * round((line < 1 / 255).sum() / 8)
    assert metrics["cells"][0]["exemplar"] == expected
    files["map"] = draw_map(tmp_path / "q.png", (60, 60))
    refused("q.png is 60x60 pixels and the source 256x128", run, tiny_folder, files, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_other_backbones(files, tmp_path, refused):
    """SDXL then refiner, refiner alone, Kandinsky, each through the script; Kandinsky's network halves its latents."""
    (tmp_path / "models").mkdir()
    sdxl, refiner = write_sdxl(tmp_path / "models" / "xl"), write_refiner(tmp_path / "models" / "ref")
    decoder, prior = write_kandinsky(tmp_path / "models")
    for folder, flags in (
        (sdxl, ["--refiner_model_name_or_path", str(refiner), "--height", "64", "--width", "64"]),
        (refiner, ["--negative_prompt", "blurry", "--guidance_scale", "5"]),
        (decoder, ["--prior_model_name_or_path", str(prior), "--image_embedding", "exemplar"]),
    ):
        metrics, _ = run(folder, files, tmp_path / folder.name, *flags)
        assert len(metrics["thresholds"]) == 4 and Image.open(tmp_path / folder.name / "edited.png").width in (32, 64)
    refused("--height 40 is no multiple of 16", run, decoder, files, tmp_path / "odd", *flags, "--height", "40")


@pytest.mark.parametrize("name, expected", [
    ("stabilityai/stable-diffusion-xl-refiner-1.0", {"num_inference_steps": 100, "denoising_start": 0.6,
     "strength": None, "guidance_scale": 17.5, "negative_prompt": options.RELEASED_NEGATIVE}),
    ("stabilityai/stable-diffusion-2-1-base", {"num_inference_steps": 3, "strength": 1.0, "guidance_scale": 0.0}),
    ("kandinsky-community/kandinsky-2-2-decoder", {"num_inference_steps": 100, "strength": 0.05}),
    ("someone/unheard-of", {"num_inference_steps": None}),
])  # fmt: skip
def test_print_config_runs_nothing(tmp_path, capsys, name, expected):
    flags = ["--print_config", "--pretrained_model_name_or_path", name, "--output_dir", str(tmp_path / "out")]
    infer.main([*flags, "--image_path", __file__, "--exemplar_path", __file__, "--edit_map_path", "gradient:left"])
    config = json.loads(capsys.readouterr().out)
    assert expected.items() <= config["sampling"].items() and not (tmp_path / "out").exists()
    assert config["surgery"] == {
        "schedule": "released", "noise": "fixed", "posterior": "sample", "threshold": "linear",
        "composite": "none", "black_point": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind, flags, message", [
    ("kandinsky", ["--posterior", "mean"], "Kandinsky's gives the latents themselves"),
    ("sd", ["--image_embedding", "exemplar"], "of the kind sd"),
    ("sdxl", ["--refiner_start", "0.5"], "give --refiner_model_name_or_path too"),
])  # fmt: skip
def test_flags_that_a_model_has_no_use_for_are_refused(kind, flags, message):
    refuses(message, options.check_kind, infer.parse(flags), kind)
    for fine in ([], ["--refiner_start", "0.5", "--refiner_model_name_or_path", "x"], ["--algorithm", "paper"]):
        options.check_kind(infer.parse(fine), "sdxl")


ALONE = "--image_path PICTURE --exemplar_path MAP --edit_map_path MAP".split()
WRONG = [
    ([], "give --image_path"),
    (["--exemplar_path", "PICTURE"], "give --image_path too"),
    (["--exemplar_box", "0", "0", "1", "1"], "give --image_path "),
    (["--image_path", "PICTURE"], "0 --exemplar_path and 0 --edit_map_path"),
    ([*ALONE, "--image_embedding", "exemplar"], "is Kandinsky's"),
    ([*ALONE, "--image_path", "TEXT"], "cannot be read as a picture"),
    ([*ALONE, "--exemplar_path", "MAP"], "2 --exemplar_path and 1 --edit_map_path"),
    ([*ALONE, "--exemplar_path", "CUT", "--edit_map_path", "MAP"], "cannot be read as a picture"),
    ([*ALONE, "--edit_map_path", "gradient:up", "--exemplar_path", "MAP"], "one of left, right, top, bottom"),
    ([*ALONE, "--edit_map_path", "ARRAY", "--exemplar_path", "MAP"], "array [H, W]"),
    ([*ALONE, "--exemplar_box", "0", "0", "1"], "expected 4 arguments"),
    ([*ALONE, "--exemplar_box", "0.5", "0", "0.5", "1"], "left < right"),
    ([*ALONE, "--map_grow", "3"], "--map_kind mask"),
    (["--image_path", "PICTURE", "--exemplar_path", "MAP", "--edit_map_path", "BLACK", "--map_kind", "mask",
      "--map_white", "edit"], "mask is empty"),
    (["--image_path", "PICTURE", "--exemplar_path", "MAP", "--edit_map_path", "BLACK", "--map_kind", "depth"], "flat"),
    ([*ALONE, "--strength", "0"], "leaves no step"),
    ([*ALONE, "--strength", "0.1"], "leaves none of 4 steps"),
    ([*ALONE, "--denoising_start", "0.5"], "two ways to say the same"),
    ([*ALONE, "--black_point", "1"], "every map black"),
    ([*ALONE, "--height", "63"], "no multiple of 4"),
]  # fmt: skip


@pytest.mark.parametrize("flags, message", WRONG, ids=[" ".join(flags[-4:]) for flags, _ in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(tiny_folder, files, tmp_path, refused, flags, message):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(files["source"].read_bytes()[:3000])
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    np.save(tmp_path / "a.npy", np.zeros((2, 2, 2)))
    places = {"TEXT": tmp_path / "text.png", "CUT": tmp_path / "cut.png", "MAP": files["map"],
              "BLACK": tmp_path / "black.png", "ARRAY": tmp_path / "a.npy", "PICTURE": files["source"]}  # fmt: skip
    words = ["--pretrained_model_name_or_path", tiny_folder, "--device", "cpu", *FAST, "--output_dir", tmp_path / "out"]
    refused(message, infer.main, [str(places.get(word, word)) for word in (*words, *flags)])
    assert not (tmp_path / "out").exists()
