"""One reader of masks and edit maps: what each kind of file means, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import load_image
from common.masks import check_same_size, load_mask, read_grey
from tests.refusing import refuses

RNG = np.random.default_rng(0)
REGION = np.zeros((40, 48), bool)
REGION[8:20, 10:30] = True
PHOTO = Image.fromarray(RNG.integers(0, 256, (40, 48, 3), dtype=np.uint8))


def saved(tmp_path, image, name="mask.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def layer(colour, region=REGION):
    """A stroke of one colour on a clear layer."""
    array = np.zeros((40, 48, 4), np.uint8)
    array[region] = (*colour, 255)
    return Image.fromarray(array)


def erased(picture=PHOTO, region=REGION):
    picture = picture.convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(region, 0, 255).astype(np.uint8)))
    return picture


def on(background, colour):
    array = np.empty((40, 48, 3), np.uint8)
    array[:], array[REGION] = background, colour
    return Image.fromarray(array)


PALETTE = Image.fromarray(REGION.astype(np.uint8)).convert("P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0])
GREY = Image.fromarray(np.asarray(PHOTO)[..., :1].repeat(3, 2))


def same(mask):
    return mask.dtype == torch.float32 and torch.equal(mask, torch.from_numpy(REGION).float())


READ = {
    "grey": Image.fromarray(np.where(REGION, 255, 0).astype(np.uint8)),
    "off_white": Image.fromarray(np.where(REGION, 250, 3).astype(np.uint8)),
    "zero_one": Image.fromarray(REGION.astype(np.uint8)),
    "one_bit": Image.fromarray(REGION),
    "rgb": on((0, 0, 0), (255, 255, 255)),
    "red_on_black": on((0, 0, 0), (255, 0, 0)),
    "palette": PALETTE,
    "sixteen": Image.fromarray(np.where(REGION, 65535, 0).astype(np.uint16)),
    "twelve_of_sixteen": Image.fromarray(np.where(REGION, 4095, 0).astype(np.uint16)),
    "eight_of_sixteen": Image.fromarray(np.where(REGION, 255, 0).astype(np.uint16)),
    "thirty_two": Image.fromarray(np.where(REGION, 255, 0).astype(np.int32)),
    "floats": Image.fromarray(REGION.astype(np.float32)),
    "white_layer": layer((255, 255, 255)),
    "red_layer": layer((220, 30, 30)),
    "erased": erased(),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_meant_is_read(tmp_path, name):
    image = READ[name]
    assert same(load_mask(saved(tmp_path, image, "mask.tif" if image.mode in ("I", "F") else "mask.png")))


@pytest.mark.parametrize("picture", [Image.new("RGB", (48, 40), (200, 60, 60)), GREY], ids=["flat", "grey"])
def test_a_picture_of_few_colours_is_known_again_with_its_region_erased(tmp_path, picture):
    assert same(load_mask(saved(tmp_path, erased(picture)), picture=picture))


TWO_MEANINGS = {
    "black_layer": layer((0, 0, 0)),
    "clear": layer((0, 0, 0), np.zeros_like(REGION)),
    "grey_with_holes": erased(GREY),
    "half_clear": Image.new("RGBA", (48, 40), (255, 255, 255, 140)),
    "red_on_white": on((255, 255, 255), (255, 0, 0)),
    "two_colours": on((0, 255, 0), (255, 0, 0)),
    "photograph": PHOTO,
    "labels": Image.fromarray(np.where(REGION, 3, 1).astype(np.uint8)),
    "dark_sixteen": Image.fromarray(np.where(REGION, 9000, 0).astype(np.uint16)),
}


@pytest.mark.parametrize("name", TWO_MEANINGS)
def test_what_could_mean_two_things_is_refused_with_the_way_to_save_it(tmp_path, name):
    refuses("mask.png .*save it as grey PNG", load_mask, saved(tmp_path, TWO_MEANINGS[name]))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 48), (1, 40, 48), (40, 48, 1), (1, 1, 40, 48)])
@pytest.mark.parametrize("name", ["a.npy", "B.NPY"])
def test_arrays_of_every_kind(tmp_path, dtype, shape, name):
    with open(tmp_path / name, "wb") as file:
        np.save(file, REGION.astype(dtype).reshape(shape))
    assert same(load_mask(tmp_path / name))


@pytest.mark.parametrize("white, dtype", [(255, np.uint8), (255, np.int64), (4095, np.uint16), (65535, np.uint16)])
def test_the_largest_value_of_an_array_says_its_scale(tmp_path, white, dtype):
    ramp = np.linspace(0, white, 40 * 48).reshape(40, 48).round().astype(dtype)
    np.save(tmp_path / "a.npy", ramp)
    assert np.allclose(read_grey(tmp_path / "a.npy"), ramp / white, atol=1e-6)
    np.save(tmp_path / "depth.npy", np.linspace(0.3, 80, 12).reshape(3, 4))
    assert read_grey(tmp_path / "depth.npy", any_scale=True).max() == 80


@pytest.mark.parametrize("array", [
    *(np.full((4, 4), value) for value in (np.nan, 1.5, -1, "a", None)), np.zeros((4, 4, 3)), np.zeros(4),
    np.zeros((4, 4), complex), np.zeros((0, 4)),
], ids=lambda array: f"{array.dtype} {array.shape}")  # fmt: skip
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    refuses("a.npy", read_grey, tmp_path / "a.npy")


def test_an_array_that_lies_about_its_shape_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4), np.uint8))
    data = (tmp_path / "a.npy").read_bytes()
    for shape in (b"(900000, 900000)", b"(4, 5)", b"(2, 4)"):
        lying = data.replace(b"(4, 4), }".ljust(30), (shape + b", }").ljust(30))
        assert lying != data and len(lying) == len(data)
        (tmp_path / "a.npy").write_bytes(lying)
        refuses("a.npy", read_grey, tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"hello")
    refuses("cannot be read as an array", read_grey, tmp_path / "a.npy")


def test_greys_keep_their_values_and_black_stays_black(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    got = read_grey(saved(tmp_path, Image.fromarray(ramp)))
    assert torch.equal(got, torch.from_numpy(ramp.astype(np.float32)) / 255)
    deep = saved(tmp_path, Image.fromarray(ramp.astype(np.uint16) * 16))  # twelve bits
    assert np.allclose(read_grey(deep), ramp / 255, atol=5e-3)


def test_transparency_means_change_whatever_white_means(tmp_path):
    for number, image in enumerate((erased(), layer((220, 30, 30)))):
        path = saved(tmp_path, image, f"{number}.png")
        for edit in (0, 1):
            assert ((read_grey(path, edit).numpy() == edit) == REGION).all()
    black = saved(tmp_path, layer((0, 0, 0)))  # black marks what changes where white keeps
    assert ((read_grey(black, 0).numpy() == 0) == REGION).all()
    refuses("transparent", read_grey, saved(tmp_path, layer((255, 255, 255))), 0)


def test_empty_masks_and_other_sizes_are_refused(tmp_path):
    values = np.array([[0, 127], [128, 255]], np.uint8)
    assert load_mask(saved(tmp_path, Image.fromarray(values))).tolist() == [[0, 0], [1, 1]]  # the threshold
    for grey, said in ((100, "lightest value is 100,"), (0, "empty")):
        refuses(said, load_mask, saved(tmp_path, Image.new("L", (8, 8), grey)))
    path, exif = saved(tmp_path, READ["grey"]), Image.Exif()
    assert same(load_mask(path, (40, 48))) and same(load_mask(path, picture=PHOTO))
    refuses("48x40 pixels and its picture is 96x80", load_mask, path, (80, 96))
    refuses("one is 4x3 pixels and other is 3x4", check_same_size, "one", (3, 4), "other", (4, 3))
    exif[0x0112] = 6
    turned = saved(tmp_path, READ["grey"], exif=exif)  # as its picture
    assert load_mask(turned).shape == (48, 40) == load_image(turned).size[::-1]
