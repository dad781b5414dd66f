"""Maps, thresholds, frames and the preview, against known values, closed forms and naive readings."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pixels import edit_map as em
from pixels.edit_map import thresholds, to_latent_grid
from pixels.frames import fit, fit_map, place, to_picture
from pixels.preview import EXEMPLAR_COLOR, RELEASED_COLOR, STRENGTH, entered, overlay, preview
from tests.refusing import refuses

TEN = {  # values of the released code for N = 10
    "linear": [i / 10 for i in range(10)],
    "log": [0, 0.2891, 0.4582, 0.5781, 0.6712, 0.7472, 0.8115, 0.8672, 0.9163, 0.9603],
    "sigmoid": [0.0474, 0.0832, 0.1419, 0.2315, 0.3543, 0.5, 0.6457, 0.7685, 0.8581, 0.9168],
}


@pytest.mark.parametrize("name", TEN)
def test_thresholds_of_ten_steps(name):
    assert em.thresholds(name, 10).tolist() == pytest.approx(TEN[name], abs=5e-5)


CLOSED = {
    "linear": lambda v, n: math.ceil(v * n),
    "quadratic": lambda v, n: math.ceil(n * v ** (1 / 2)),
    "cubic": lambda v, n: math.ceil(n * v ** (1 / 3)),
    "log": lambda v, n: math.ceil((n + 1) ** v - 1),
    "sigmoid": lambda v, n: min(max(math.ceil(n * (math.log(v / (1 - v)) + 3) / 6), 0), n),
}


@pytest.mark.parametrize("name", CLOSED)
def test_number_of_injections(name):
    greys = torch.rand(200, generator=torch.Generator().manual_seed(0)).clamp(0.001, 0.999)
    for n in (3, 10, 40):
        found = em.injections(greys, em.thresholds(name, n)).tolist()
        assert found == [CLOSED[name](grey, n) for grey in greys.tolist()]


def test_the_papers_schedule_counts_to_one_and_lets_white_go():
    assert em.thresholds("linear", 5, "paper").tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert em.thresholds("linear", 1, "paper").tolist() == [0]
    assert em.thresholds("sigmoid", 5, "paper")[0] == 0 and em.thresholds("sigmoid", 5)[0] > 0
    white = torch.ones(1)
    assert em.injections(white, em.thresholds("linear", 5)) == 5
    assert em.injections(white, em.thresholds("linear", 5, "paper")) == 4


def test_a_threshold_function_of_ones_own():
    assert em.thresholds(lambda i, n: i * 0 + 0.3, 4).tolist() == pytest.approx([0.3] * 4)
    for wrong in (lambda i, n: i[:2], lambda i, n: i / 0, lambda i, n: i * torch.nan):
        refuses("4 finite numbers", em.thresholds, wrong, 4)


def test_coverage_counts_every_cell_once():
    mu = torch.tensor([[0.0, 0.0, 1 / 255, 0.5, 0.95, 1.0]])
    counted = em.coverage(mu, em.thresholds("linear", 10))
    assert (counted.exemplar, counted.released, counted.kept, counted.total) == (2, 2, 2, 6)
    assert em.coverage(mu, em.thresholds("sigmoid", 10)).exemplar == 3  # its first threshold is 0.0474


def test_the_latent_grid_takes_the_middle_of_each_block():
    edit_map = torch.rand(1, 1, 64, 128, generator=torch.Generator().manual_seed(0))
    found = em.to_latent_grid(edit_map, (8, 16))
    naive = [[edit_map[0, 0, 8 * y + 3 : 8 * y + 5, 8 * x + 3 : 8 * x + 5].mean() for x in range(16)] for y in range(8)]
    assert torch.allclose(found[0, 0], torch.tensor(naive), atol=1e-6)


def test_reading_pictures_and_arrays_in_both_polarities(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "rgb.png")
    np.save(tmp_path / "a.npy", grey)
    np.save(tmp_path / "f.npy", grey / 255)
    expected = torch.from_numpy(grey.astype(np.float32) / 255)
    for name in ("a.png", "rgb.png", "a.npy", "f.npy"):
        found = em.read(tmp_path / name)
        assert found.shape == (1, 1, 5, 7) and found.dtype == torch.float32
        assert torch.allclose(found[0, 0], expected, atol=1e-7)
        assert torch.allclose(em.read(tmp_path / name, white="edit"), 1 - found)
    assert (em.read(tmp_path / "a.png") == 0).sum() == (grey == 0).sum()  # black stays exactly black
    refuses("'keep' or 'edit'", em.polarity, torch.zeros(1, 1, 2, 2), "change")


def test_a_mask_grows_ramps_and_blurs():
    mask = torch.zeros(40, 50)
    mask[10:20, 12:30] = 1
    distance = [[min(math.hypot(y - v, x - u) for v in range(10, 20) for u in range(12, 30)) for x in range(50)]
                for y in range(40)]  # fmt: skip
    naive = ((np.array(distance) - 3) / 8).clip(0, 1)
    found = em.from_mask(mask, grow=3, ramp=8)
    assert np.abs(found[0, 0].numpy() - naive).max() < 1e-6
    hard = em.from_mask(mask)
    assert torch.equal(hard[0, 0], 1 - mask)
    blurred = em.from_mask(mask, blur=2)
    assert 0 < blurred[0, 0, 10, 20] < 0.6 < blurred[0, 0, 6, 20] and blurred[0, 0, 15, 20] < 0.02
    assert (em.from_mask(mask, grow=8, blur=2)[0, 0][mask > 0] < 2e-4).all()
    refuses("the mask is empty", em.from_mask, torch.zeros(4, 4))


def test_gradients_run_to_the_named_side():
    right = em.gradient((4, 10), "right")
    assert torch.allclose(right[0, 0, 2], 1 - (torch.arange(10) + 0.5) / 10)
    assert torch.equal(em.gradient((4, 10), "left"), right.flip(-1))
    assert torch.equal(em.gradient((10, 4), "bottom"), right.mT)
    assert torch.equal(em.gradient((10, 4), "top"), right.mT.flip(-2))
    part = em.gradient((1, 10), "right", 0.3, 0.7)[0, 0, 0]
    assert part[:3].tolist() == [1, 1, 1] and part[7:].tolist() == [0, 0, 0] and part[5] == pytest.approx(0.375)
    for wrong in ({"exemplar": "up"}, {"start": 0.5, "end": 0.5}):
        refuses("", em.gradient, (4, 4), **wrong)


def test_depth_makes_one_end_black():
    depth = torch.linspace(2, 7, 101)[None].repeat(3, 1)
    far = em.from_depth(depth)[0, 0, 0]
    assert (far == 0).sum() == 11 and (far == 1).sum() == 11 and far[50] == pytest.approx(0.5, abs=1e-5)
    assert torch.allclose(em.from_depth(depth, "near")[0, 0, 0], 1 - far)
    refuses("flat", em.from_depth, torch.ones(3, 3))


def test_histogram():
    values = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.8, 1.0]).reshape(1, 1, 2, 3)
    found = em.histogram(values, 0.1, 2.0).flatten().tolist()
    assert found == pytest.approx([0, 0, (0.1 / 0.9) ** 2, (0.4 / 0.9) ** 2, (0.7 / 0.9) ** 2, 1], abs=1e-6)
    assert torch.equal(em.histogram(values), values)
    for wrong in ({"black_point": 1}, {"gamma": 0}, {"black_point": -0.1}):
        refuses("are needed", em.histogram, values, **wrong)


def test_binarize_gives_the_mask_of_what_changes():
    assert em.binarize(torch.tensor([[0.0, 0.49, 0.5, 1.0]])).tolist() == [[1, 1, 0, 0]]


def marked(width, height):
    """A picture whose red grows to the right and green downwards, as an image and as its own map (red)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels), torch.from_numpy(pixels[..., 0] / 255.0)[None, None].float()


@pytest.mark.parametrize("mode", ["squash", "crop"])
@pytest.mark.parametrize("width, height", [(200, 100), (100, 300), (128, 128), (640, 427)])
def test_picture_and_map_stay_together(mode, width, height):
    image, edit_map = marked(width, height)
    fitted = torch.from_numpy(np.array(fit(image, (96, 128), mode))[..., 0] / 255.0)
    reduced = to_latent_grid(fit_map(edit_map, (96, 128), mode), (12, 16))[0, 0]
    over_cells = fitted.reshape(12, 8, 16, 8).mean((1, 3))
    assert (reduced - over_cells).abs().max() < 0.02


def test_placing_an_exemplar():
    placed = np.asarray(place(Image.new("RGB", (50, 10), "white"), (0.5, 0.25, 1.0, 0.75), (40, 80)))
    expected = np.zeros((40, 80, 3), np.uint8)
    expected[10:30, 40:] = 255
    assert np.array_equal(placed, expected)
    refuses("left < right", place, Image.new("RGB", (5, 5)), (0.5, 0, 0.2, 1), (8, 8))


def test_the_preview_shows_what_enters_and_how_long_the_source_stays():
    tau = thresholds("linear", 4)
    first, second = torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    first[..., 0] = 0
    second[..., 1] = 0
    first[..., 2] = 0.4  # put back in two of four steps
    source, red, blue = torch.full((1, 3, 16, 32), 0.5), torch.zeros(1, 3, 16, 32), torch.ones(1, 3, 16, 32)
    picture = entered(source, [red, blue], [first, second], tau)
    columns = picture[0, 0, 0, ::8].tolist()
    assert columns == [0, 1, 0.5, 0.5]
    colored = overlay(source, torch.minimum(first, second), tau)[0, :, 0, ::8].T
    strong = 0.5 * (1 - STRENGTH) + STRENGTH * EXEMPLAR_COLOR
    assert torch.allclose(colored[0], strong) and torch.allclose(colored[1], strong)
    assert torch.allclose(colored[2], 0.5 * (1 - STRENGTH / 2) + STRENGTH / 2 * RELEASED_COLOR)
    assert torch.equal(colored[3], torch.full((3,), 0.5))
    assert preview(source, [red, blue], [first, second], tau).width > 500


def test_pictures_round_to_the_nearest_as_diffusers_image_processor_does():
    from diffusers.image_processor import VaeImageProcessor

    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (theirs,) = VaeImageProcessor().postprocess(2 * picture - 1, "pil")
    assert np.array_equal(np.asarray(to_picture(picture)), np.asarray(theirs))
