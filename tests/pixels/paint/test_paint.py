"""The brush: what the page counts is what the method counts; what it saves is what the method reads."""

import json
import shlex
import time

import pytest
import torch

from common.masks import load_mask
from common.picturebook.benchmarks import runs_of
from common.runs import make_parser
from pixels import edit_map, infer, options
from pixels.paint import __main__ as paint
from tests.browser import browser, needs_browser  # noqa: F401  (a fixture)
from tests.small_data import save_noise

COMMAND = "return document.getElementById('command').value"
SETTLED = "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))))"


def photograph(path):
    return save_noise(path, (96, 64))


def written(folder, *flags):
    paint.main([str(photograph(folder / "it's.png")), str(save_noise(folder / "e.jpg", (40, 80))), "--page",
                str(folder / "paint.html"), *flags])  # fmt: skip
    return folder / "paint.html"


def set_slider(browser, name, value):  # noqa: F811
    browser.js("const e = document.getElementById(arguments[0]); e.value = arguments[1];"
               "e.dispatchEvent(new Event('input'))", name, value)  # fmt: skip


def saved(browser, path):  # noqa: F811
    browser.click("#save")
    for _ in range(200):
        if path.exists() and path.stat().st_size and not list(path.parent.glob("*.crdownload")):
            return path
        time.sleep(0.05)
    raise AssertionError(f"{path.name} was not saved")


def cells(browser):  # noqa: F811
    browser.js(SETTLED)
    return json.loads(browser.js("return document.getElementById('coverage').dataset.cells"))


def test_a_map_has_whole_pixels_per_cell_and_the_pictures_proportions():
    for picture in ((3000, 4000), (64, 96), (1000, 333), (512, 512), (100, 700)):
        for grid in ((16, 16), (64, 64), (128, 128), (64, 96)):
            height, width = paint.map_size(picture, grid)
            assert height % grid[0] == width % grid[1] == 0
            assert abs(width / height / (picture[1] / picture[0]) - 1) < 0.02
            assert max(height, width) >= 256


def test_thresholds_are_those_of_the_command(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(photograph(tmp_path / "EXEMPLAR.jpg").parent)  # what the command asks for where none was given
    flags = ["--pretrained_model_name_or_path", str(tiny_folder), "--num_inference_steps", "8", "--strength", "0.5"]
    args = paint.parse([str(photograph(tmp_path / "a.png")), *flags, "--threshold", "log"])
    found = paint.plan(args)
    assert found["grid"] == [16, 16] and found["taus"]["cubic"] == edit_map.thresholds("cubic", 4).tolist()
    words = paint.command(args)
    parser = make_parser("x")
    parser.add_argument("--image_path")
    parser.add_argument("--exemplar_path", action="append")
    options.add_method_flags(parser)
    options.add_model_flags(parser, "out")
    again = options.parse(parser, words[3:])
    assert again.num_inference_steps == 8 and again.strength == 0.5 and again.exemplar_path == ["EXEMPLAR.jpg"]
    for name in options.KNOWN_IDS:  # the published models, which are not on this disk
        known = paint.parse([str(tmp_path / "a.png"), "--pretrained_model_name_or_path", name])
        count = {"sd": 4, "sdxl": 15, "refiner": 40, "kandinsky": 5}[options.KNOWN_IDS[name]]
        assert len(paint.plan(known)["taus"]["linear"]) == count  # as the released runs, see select_timesteps


@pytest.mark.parametrize("flags, message", [
    (["nothing.png"], "is no file"), (["PHOTO", "--page", "a.txt"], "end in .html"),
    (["PHOTO", "--kind", "oil"], "invalid choice"), (["PHOTO", "--height", "63"], "no multiple of 4"),
    (["PHOTO", "--pretrained_model_name_or_path", "owner/model"], "not known here"),
    (["PHOTO", "--pretrained_model_name_or_path", "MODEL"], "does not say in"),
])  # fmt: skip
def test_wrong_input_is_one_sentence(tmp_path, refused, flags, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    places = {"PHOTO": str(photograph(tmp_path / "a.png")), "MODEL": str(tmp_path / "model")}
    refused(message, paint.main, [places.get(flag, flag) for flag in flags])


@needs_browser
def test_paint_save_and_edit_with_what_was_saved(browser, tiny_folder, tmp_path, monkeypatch):  # noqa: F811
    model = ["--pretrained_model_name_or_path", str(tiny_folder), "--num_inference_steps", "10", "--strength", "1"]
    browser.open(written(tmp_path, *model))
    assert cells(browser) == {"exemplar": 0, "released": 0, "kept": 256}
    browser.drag("#stage", (0.2, 0.3), (0.4, 0.4), (0.3, 0.7))
    set_slider(browser, "grey", 51)  # of 255: exactly a fifth, so that a wrong comparison shows
    browser.drag("#stage", (0.6, 0.2), (0.8, 0.3), kind="touch")
    set_slider(browser, "soft", 80)
    set_slider(browser, "grey", 153)
    browser.drag("#stage", (0.7, 0.7), (0.9, 0.8), kind="pen")
    counts = {}
    path = saved(browser, tmp_path / "map.png")
    read = edit_map.read(path)
    for name in edit_map.THRESHOLDS:
        browser.js("const s = document.getElementById('threshold'); s.value = arguments[0];"
                   "s.dispatchEvent(new Event('change', {bubbles: true}))", name)  # fmt: skip
        counts[name] = cells(browser)
        tau = edit_map.thresholds(name, 10)
        mu = edit_map.to_latent_grid(read, (16, 16))
        assert counts[name] == vars(edit_map.coverage(mu, tau)), name
        bands = browser.js("const l = taus(); return [...onGrid(current())].map(v => injections(v, l))")
        assert bands == edit_map.injections(mu, tau).flatten().tolist(), name
    assert len({tuple(found.values()) for found in counts.values()}) > 1  # thresholds differ, so the test can fail
    monkeypatch.chdir(tmp_path)
    infer.main([*shlex.split(browser.js(COMMAND))[3:], "--output_dir", "out", "--device", "cpu"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["cells"] == [counts["sigmoid"]] and not [m for m in browser.messages() if "favicon" not in m]


@needs_browser
def test_growing_ramping_erasing_undoing_and_keys(browser, tiny_folder, tmp_path):  # noqa: F811
    browser.open(written(tmp_path, "--pretrained_model_name_or_path", str(tiny_folder), "--black_point", "0.1"))
    browser.keys("#stage", " ")  # a dab in the middle
    first = cells(browser)
    assert first["exemplar"] > 0
    mask = torch.tensor(browser.js("return [...painted]")).view(*paint.map_size((64, 96), (16, 16))) < 128
    set_slider(browser, "grow", 9)
    set_slider(browser, "ramp", 40)
    assert cells(browser)["exemplar"] > first["exemplar"]
    grown = torch.tensor(browser.js("return [...current()]")).view(mask.shape)
    wanted = edit_map.from_mask(mask.float(), grow=9, ramp=40)[0, 0]
    assert (grown - (255 * wanted).round()).abs().max() <= 1
    mu = edit_map.to_latent_grid(edit_map.histogram(grown[None, None].float() / 255, 0.1), (16, 16))
    steps = browser.js("return taus().length")
    assert cells(browser) == vars(edit_map.coverage(mu, edit_map.thresholds("linear", steps)))
    set_slider(browser, "grow", 0)
    set_slider(browser, "ramp", 0)
    browser.keys("#stage", "e ")  # erases what was painted
    assert cells(browser)["exemplar"] == 0
    browser.keys("#stage", "z")
    assert cells(browser) == first
    browser.keys("#stage", "z")
    assert cells(browser)["exemplar"] == 0
    browser.keys("#stage", "yy")
    browser.click("#clear")
    assert cells(browser)["exemplar"] == 0


@needs_browser
def test_the_exemplar_is_dragged_and_scaled_within_the_frame(browser, tiny_folder, tmp_path):  # noqa: F811
    browser.open(written(tmp_path, "--pretrained_model_name_or_path", str(tiny_folder)))
    assert "--exemplar_box" not in browser.js(COMMAND)
    browser.click("input[value=move]")
    set_slider(browser, "scale", 50)
    browser.drag("#stage", (0.1, 0.1), (0.3, 0.4))
    browser.js(SETTLED)
    words = browser.js(COMMAND).split()
    box = [float(word) for word in words[words.index("--exemplar_box") + 1 :][:4]]
    left, top, right, bottom = box
    assert left == pytest.approx(0.2, abs=0.02) and top == pytest.approx(0.3, abs=0.02)
    assert (right - left) * 96 / ((bottom - top) * 64) == pytest.approx(40 / 80, rel=0.02)  # its own proportions
    browser.drag("#stage", (0.05, 0.05), (0.97, 0.97))
    browser.js(SETTLED)
    words = browser.js(COMMAND).split()
    assert max(float(word) for word in words[words.index("--exemplar_box") + 1 :][:4]) <= 1


@needs_browser
@pytest.mark.parametrize("kind", ["inpaint", "pie_bench"])
def test_masks_are_white_where_something_may_change(browser, tmp_path, kind):  # noqa: F811
    browser.open(written(tmp_path, "--kind", kind))
    browser.drag("#stage", (0.2, 0.3), (0.4, 0.6))
    found = cells(browser)
    mask = load_mask(saved(browser, tmp_path / "mask.png"), (64, 96))
    assert int(mask.sum()) == found["exemplar"] > 0 and mask[20, 20] == 1 and mask[60, 90] == 0
    said = browser.js(COMMAND)
    if kind == "inpaint":
        assert "image_inpaint.infer" in said and "--mask_path mask.png" in said
    else:
        assert json.loads(said)["mask"] == runs_of(mask.numpy())
