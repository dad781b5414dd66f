"""Pictures and maps in one frame, and the preview that explains a map."""

import numpy as np
import pytest
import torch
from PIL import Image

from pixels.edit_map import thresholds, to_latent_grid
from pixels.frames import fit, fit_map, place, to_picture
from pixels.preview import EXEMPLAR_COLOR, RELEASED_COLOR, STRENGTH, entered, overlay, preview
from tests.refusing import refuses


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
