import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.runs import InputError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path):
    image = images.load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width, height, depth, colour, rows, extra=b""):
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------------- pictures


def test_rgb_of_any_size_is_untouched(tmp_path):
    wide = RNG.integers(0, 256, (333, 1000, 3), dtype=np.uint8)
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(wide))), wide)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_three_equal_channels(tmp_path, mode):
    image = Image.fromarray(NOISE).convert(mode)
    expected = np.asarray(image.convert("L"))
    assert np.array_equal(pixels(saved(tmp_path, image)), np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, name):
    ramp = np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20)
    got = pixels(saved(tmp_path, Image.fromarray(ramp), name))
    assert np.array_equal(got[..., 0], np.round(ramp / 257)) and got.max() == 255 and len(np.unique(got)) > 200


def test_small_numbers_in_thirty_two_bits_are_eight_bits(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full((8, 8), 200, np.int32)), "labels.tif")
    assert (pixels(path) == 200).all()
    deep = saved(tmp_path, Image.fromarray(np.full((8, 8), 200 * 257, np.int32)), "deep.tif")
    assert (pixels(deep) == 200).all()
    with pytest.raises(InputError, match="range of 16 bits"):
        images.load_image(saved(tmp_path, Image.fromarray(np.full((8, 8), 10**6, np.int32)), "wide.tif"))


def test_a_transparent_value_of_sixteen_bit_grey_goes_on_white(tmp_path):
    values = np.full((4, 4), 1000, ">u2")
    values[:, 2:] = 30000
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    key = struct.pack(">I", 2) + b"tRNS" + b"\x03\xe8"
    (tmp_path / "key.png").write_bytes(png(4, 4, 16, 0, rows, key + struct.pack(">I", zlib.crc32(key[4:]))))
    got = pixels(tmp_path / "key.png")
    assert (got[:, :2] == 255).all() and (got[:, 2:] == 117).all()


def test_browsers_files_are_read(tmp_path):
    for name, kind in (("a.jfif", "JPEG"), ("b.avif", "AVIF")):
        path = saved(tmp_path, Image.new("RGB", (16, 16), "red"), name, format=kind)
        assert np.abs(pixels(path) - [255.0, 0, 0]).max() < 9


def test_sixteen_bit_colour_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 12 * 20 * 3).astype(">u2").reshape(12, 20, 3)
    rows = b"".join(b"\x00" + row.tobytes() for row in ramp)
    (tmp_path / "deep.png").write_bytes(png(20, 12, 16, 2, rows))
    assert np.abs(pixels(tmp_path / "deep.png") - ramp / 257).max() <= 1


def test_transparency_goes_on_white(tmp_path):
    alpha = np.zeros((12, 20), np.uint8)
    alpha[:, :10], alpha[:, 10:15] = 255, 128
    weight = alpha[..., None] / 255
    for source in (Image.fromarray(NOISE), Image.fromarray(NOISE).convert("L")):
        opaque = np.asarray(source.convert("RGB"))
        source.putalpha(Image.fromarray(alpha))
        assert source.mode in ("RGBA", "LA")
        got = pixels(saved(tmp_path, source)).astype(float)
        assert np.abs(got - (opaque * weight + 255 * (1 - weight))).max() <= 1
        assert (got[:, 15:] == 255).all()


def test_palette_and_colour_key_transparency_go_on_white(tmp_path):
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    assert pixels(saved(tmp_path, palette))[0, 0].tolist() == [255, 0, 0]
    assert pixels(saved(tmp_path, palette, transparency=0))[0, 0].tolist() == [255, 255, 255]
    got = pixels(saved(tmp_path, palette, transparency=bytes([128, 255])))
    assert got[0, 0].tolist() == [255, 127, 127] and got[0, 1].tolist() == [0, 0, 255]
    key = saved(tmp_path, Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))
    assert (pixels(key) == 255).all()


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "print.jpg", quality=100)
    assert np.abs(pixels(path).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.tif"])
@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(tmp_path, name, orientation, turn):
    flat = np.zeros((16, 32, 3), np.uint8)
    flat[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(saved(tmp_path, Image.fromarray(flat), name, exif=exif))
    assert np.abs(got.astype(int) - np.rot90(flat, turn)).max() <= 8


def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path):
    first, second = Image.new("RGB", (16, 16), (200, 30, 30)), Image.new("RGB", (16, 16), (30, 30, 200))
    for name in ("camera.jpg", "many.tif", "many.gif"):
        kind = {"format": "MPO"} if name == "camera.jpg" else {}
        path = saved(tmp_path, first.copy(), name, save_all=True, append_images=[second.copy()], **kind)
        with Image.open(path) as file:
            assert file.n_frames == 2
        assert np.abs(pixels(path)[8, 8].astype(int) - [200, 30, 30]).max() <= 4


# ------------------------------------------------------------------------------------------------------- bad pictures


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.tif", "cut.bmp"])
def test_a_file_cut_anywhere_is_one_clear_error(tmp_path, name):
    whole = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole, format=images_format(name))
    data, path = whole.getvalue(), tmp_path / name
    for keep in (0, 1, 7, 20, len(data) // 4, len(data) // 2):
        path.write_bytes(data[:keep])
        with pytest.raises(InputError, match=name) as error:
            images.load_image(path)
        assert "\n" not in str(error.value)


def images_format(name):
    return {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP"}[name.split(".")[1]]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's notes on damaged tags
def test_flipped_bytes_never_end_in_a_traceback(tmp_path):
    refused = 0
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP"):
        whole = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(NOISE).save(whole, format=kind, **({} if kind == "GIF" else {"exif": exif}))
        for _ in range(150):
            data = bytearray(whole.getvalue())
            for place in RNG.integers(0, len(data), 3):
                data[place] = RNG.integers(256)
            (tmp_path / "flipped").write_bytes(data)
            try:
                assert images.load_image(tmp_path / "flipped").mode == "RGB"
            except InputError:
                refused += 1
    assert refused > 50


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    saved(tmp_path, Image.fromarray(np.zeros((2, 2), np.float32)), "float.tif")
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 0, b""))
    refusals = {"text.png": "another kind", "float.tif": "floating", "bomb.png": "too large", "none.png": "missing"}
    for name, said in refusals.items():
        with pytest.raises(InputError, match=said):
            images.load_image(tmp_path / name)
    with pytest.raises(InputError, match="folder"):
        images.load_image(tmp_path)


def test_list_pictures(tmp_path, caplog):
    for name in ("b.JPG", "a.png", ".hidden.png", "._a.png", "notes.txt", "c.jpeg", "d.jfif", "e.avif", "F.HEIC"):
        (tmp_path / name).touch()
    for _ in range(2):
        found = images.list_pictures(tmp_path)
        assert [path.name for path in found] == ["a.png", "b.JPG", "c.jpeg", "d.jfif", "e.avif"]
    assert [record.getMessage().endswith("read them: F.HEIC") for record in caplog.records] == [True]  # once
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none", "a.png"):
        with pytest.raises(InputError, match=folder):
            images.list_pictures(tmp_path / folder)


# ----------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("width, height", [(100, 33), (33, 100), (51, 50), (50, 50), (7, 5)])
def test_center_crop_resize_is_the_official_loader(width, height):
    array = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if height < width:  # the released loader: slice an array, then resize
        offset = (width - height) // 2
        square = array[:, offset : offset + height]
    else:
        offset = (height - width) // 2
        square = array[offset : offset + width]
    expected = np.asarray(Image.fromarray(square).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(images.center_crop_resize(Image.fromarray(array), 64)), expected)


def test_picture_of_the_right_size_is_untouched():
    image = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert images.center_crop_resize(image, 64) is image


# ------------------------------------------------------------------------------------------------------------ tensors


def test_every_byte_survives_the_round_trip(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = images.to_tensor(Image.fromarray(array))
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (0, 1)
    assert np.array_equal(np.asarray(images.to_pil(tensor)), array)
    images.save_png(tmp_path / "new" / "a.png", tensor[0])
    assert np.array_equal(pixels(tmp_path / "new" / "a.png"), array)
    assert torch.equal(images.to_tensor(images.load_image(tmp_path / "new" / "a.png")), tensor)


def test_to_pil_truncates_or_rounds_clamps_and_refuses_nan():
    values = torch.tensor([-0.5, 0.9999 / 255, 1.9999 / 255, 0.99999, 1.0, 7.0])
    picture = values.expand(3, 2, 6).double().requires_grad_()
    assert np.asarray(images.to_pil(picture))[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]
    rounded = torch.tensor([-1, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 2]).expand(3, 2, 6)
    assert np.asarray(images.to_pil(rounded, "nearest"))[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]
    with pytest.raises(InputError, match="NaN"):
        images.to_pil(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError):
        images.to_pil(torch.zeros(2, 3, 4, 4))


# --------------------------------------------------------------------------------------------------------------- grid


def test_grid_enlarges_places_and_labels():
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    plain = images.grid([[red, blue], [None, red]], gap=4)
    assert plain.size == (2 * 132, 2 * 132)
    assert plain.getpixel((64, 64)) == (255, 0, 0) and plain.getpixel((132 + 64, 64)) == (0, 0, 255)
    assert plain.getpixel((64, 132 + 64)) == (255, 255, 255)
    long = "a very long label that has to be wrapped to stay readable " * 2
    labelled = images.grid([[red, blue], [None, red]], ["one", "two"], ["left 猫", long], gap=4)
    assert labelled.width == 3 * 132 and labelled.height > 2 * 132 + 60
    top = labelled.height - 2 * 132
    assert labelled.getpixel((132 + 64, top + 64)) == (255, 0, 0)
    header = np.asarray(labelled)[:top, 2 * 132 :]
    assert header.min() < 100 and (header[:, -4:] == 255).all()
    assert np.asarray(labelled)[top:, :128].min() < 100
    large = images.grid([[Image.new("RGB", (300, 200))]], gap=4)
    assert large.size == (304, 204)
    with pytest.raises(ValueError):
        images.grid([[None]])


def test_long_row_labels_do_not_run_into_the_next_row():
    cell = Image.new("RGB", (128, 128), "red")
    assert images.grid([[cell]] * 2, row_labels=["a word " * 20] * 2).size == (2 * 128 + 128 + 8, 2 * 132)  # more room
    long = images.grid([[cell]] * 2, row_labels=["a word " * 80] * 2)
    pixels = np.asarray(long).astype(int)
    margin = pixels[:, :256].sum(2) < 300  # the labels' ink
    gaps = np.flatnonzero(~margin.any(1))
    second = long.height // 2
    assert len(gaps) and abs(gaps - second).min() < 8 and long.height > 2 * 200
