import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from common import images
from common.runs import InputError
from tests.refusing import refuses

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
RAMP = np.linspace(0, 65535, 12 * 20).astype(np.uint16).reshape(12, 20)


def saved(tmp_path, image, name="picture.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path):
    image = images.load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def png(width, height, depth, colour, rows, transparent=b""):
    """A PNG written by hand, for what Pillow does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    extra = chunk(b"tRNS", transparent) if transparent else b""
    lines = b"".join(b"\x00" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def flat(value, kind):
    return Image.fromarray(np.full((12, 20), value, kind))


KINDS = {  # what is saved, under which name -> the pixels, how far off at most
    "rgb of any size": (Image.fromarray(NOISE), "a.png", NOISE, 0),
    "grey": (Image.fromarray(NOISE[..., 0]), "a.png", NOISE[..., :1], 0),
    "one bit": (Image.fromarray(NOISE[..., 0] > 99), "a.png", 255 * (NOISE[..., :1] > 99), 0),
    "16-bit grey is scaled, not clipped": (Image.fromarray(RAMP), "a.png", np.round(RAMP / 257)[..., None], 0),
    "16-bit grey in TIFF": (Image.fromarray(RAMP), "a.tif", np.round(RAMP / 257)[..., None], 0),
    "small numbers in 32 bits": (flat(200, np.int32), "labels.tif", 200, 0),
    "16 bits in 32": (flat(200 * 257, np.int32), "deep.tif", 200, 0),
    "print": (Image.new("CMYK", (20, 12), (0, 255, 255, 0)), "print.tif", [255, 0, 0], 3),
    "of a browser": (Image.new("RGB", (20, 12), "red"), "a.jfif", [255, 0, 0], 8),
    "of a telephone": (Image.new("RGB", (20, 12), "red"), "a.avif", [255, 0, 0], 8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_look_as_a_viewer_shows_them(tmp_path, kind):
    image, name, expected, off = KINDS[kind]
    got = pixels(saved(tmp_path, image, name, **({"format": "JPEG"} if name.endswith("jfif") else {})))
    assert got.shape == (12, 20, 3) and np.abs(got - np.asarray(expected)).max() <= off


def test_sixteen_bit_colour_and_a_transparent_value_of_grey(tmp_path):
    ramp = np.linspace(0, 65535, 12 * 20 * 3).astype(">u2").reshape(12, 20, 3)
    (tmp_path / "deep.png").write_bytes(png(20, 12, 16, 2, ramp))
    assert np.abs(pixels(tmp_path / "deep.png") - ramp / 257).max() <= 1
    values = np.full((4, 4), 1000, ">u2")
    values[:, 2:] = 30000
    (tmp_path / "key.png").write_bytes(png(4, 4, 16, 0, values, b"\x03\xe8"))  # 1000 is clear, and goes on white
    got = pixels(tmp_path / "key.png")
    assert (got[:, :2] == 255).all() and (got[:, 2:] == 117).all()


def test_transparency_goes_on_white(tmp_path):
    alpha = np.zeros((12, 20), np.uint8)
    alpha[:, :10], alpha[:, 10:15] = 255, 128
    weight = alpha[..., None] / 255
    for source in (Image.fromarray(NOISE), Image.fromarray(NOISE).convert("L")):
        opaque = np.asarray(source.convert("RGB"))
        source.putalpha(Image.fromarray(alpha))
        got = pixels(saved(tmp_path, source))
        assert np.abs(got - (opaque * weight + 255 * (1 - weight))).max() <= 1
        assert (got[:, 15:] == 255).all()
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    assert pixels(saved(tmp_path, palette))[0, 0].tolist() == [255, 0, 0]
    assert pixels(saved(tmp_path, palette, transparency=0))[0, 0].tolist() == [255, 255, 255]
    got = pixels(saved(tmp_path, palette, transparency=bytes([128, 255])))
    assert got[0, 0].tolist() == [255, 127, 127] and got[0, 1].tolist() == [0, 0, 255]
    assert (pixels(saved(tmp_path, Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3))) == 255).all()


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.tif"])
@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(tmp_path, name, orientation, turn):
    half = np.zeros((16, 32, 3), np.uint8)
    half[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(saved(tmp_path, Image.fromarray(half), name, exif=exif))
    assert np.abs(got - np.rot90(half, turn)).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_turned_picture_of_any_mode_is_read_the_same_from_its_file_and_in_memory(tmp_path, mode, suffix):
    grey = (np.arange(48, dtype=np.uint8).reshape(6, 8) * 5 > 100).astype(np.uint8) * 255
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    picture = picture if picture.mode == mode else picture.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    file = tmp_path / f"a.{suffix}"
    (picture.convert("RGB") if (mode, suffix) == ("CMYK", "png") else picture).save(file, exif=exif)
    turned = np.rot90(np.repeat(grey[..., None], 3, axis=-1), -1)
    assert np.array_equal(np.asarray(images.load_image(file)), turned)
    with open(file, "rb") as stream, Image.open(stream) as opened:
        assert np.array_equal(np.asarray(images.as_rgb(opened)), turned)


@pytest.mark.parametrize("name, kind", [("camera.jpg", "MPO"), ("many.tif", "TIFF"), ("many.gif", "GIF")])
def test_of_several_pictures_in_a_file_the_first_is_taken(tmp_path, name, kind):
    first, second = Image.new("RGB", (16, 16), (200, 30, 30)), Image.new("RGB", (16, 16), (30, 30, 200))
    path = saved(tmp_path, first, name, format=kind, save_all=True, append_images=[second])
    assert np.abs(pixels(path)[8, 8] - [200, 30, 30]).max() <= 4


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's notes on damaged tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_file_cut_anywhere_or_with_flipped_bytes_is_one_clear_error(tmp_path, kind):
    whole, path, exif = io.BytesIO(), tmp_path / "damaged", Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    picture.save(whole, format=kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    data = whole.getvalue()
    for keep in (0, 1, 7, 20, len(data) // 4, len(data) // 2):
        path.write_bytes(data[:keep])
        refuses("damaged", images.load_image, path)
    for _ in range(120):
        flipped = bytearray(data)
        for place in RNG.integers(0, min(len(data), 400), 3):
            flipped[place] = RNG.integers(256)
        path.write_bytes(flipped)
        try:
            assert images.load_image(path).mode == "RGB"
        except InputError as problem:
            assert "\n" not in str(problem)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 0, []))
    saved(tmp_path, flat(0.5, np.float32), "float.tif"), saved(tmp_path, flat(10**6, np.int32), "wide.tif")
    refusals = {"text.png": "another kind", "float.tif": "floating", "bomb.png": "too large", "none.png": "missing",
                "wide.tif": "range of 16 bits", ".": "folder"}  # fmt: skip
    for name, said in refusals.items():
        refuses(said, images.load_image, tmp_path / name)


def test_list_pictures(tmp_path, caplog):
    for name in ("b.JPG", "a.png", ".hidden.png", "._a.png", "notes.txt", "c.jpeg", "d.jfif", "e.avif", "F.HEIC"):
        (tmp_path / name).touch()
    for _ in range(2):
        found = images.list_pictures(tmp_path)
        assert [path.name for path in found] == ["a.png", "b.JPG", "c.jpeg", "d.jfif", "e.avif"]
    assert [record.getMessage().endswith("read them: F.HEIC") for record in caplog.records] == [True]  # once
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none", "a.png"):
        refuses(folder, images.list_pictures, tmp_path / folder)


@pytest.mark.parametrize("width, height", [(100, 33), (33, 100), (51, 50), (50, 50), (7, 5), (64, 64)])
def test_center_crop_resize_is_the_official_loader(width, height):
    """Which slices an array, then resizes."""
    array, side = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8), min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(array[top : top + side, left : left + side])
    found = images.center_crop_resize(Image.fromarray(array), 64)
    assert np.array_equal(np.asarray(found), np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC)))


def test_every_byte_survives_the_round_trip(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor, path = images.to_tensor(Image.fromarray(array)), tmp_path / "new" / "a.png"
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32 and (tensor.min(), tensor.max()) == (0, 1)
    images.save_png(path, tensor[0])
    assert np.array_equal(np.asarray(images.to_pil(tensor)), array) and np.array_equal(pixels(path), array)
    assert torch.equal(images.to_tensor(images.load_image(path)), tensor)


@pytest.mark.parametrize("rounding, values, bytes_", [
    ("floor", [-0.5, 0.9999 / 255, 1.9999 / 255, 0.99999, 1.0, 7.0], [0, 0, 1, 254, 255, 255]),
    ("nearest", [-1, 0.49 / 255, 0.51 / 255, 254.4 / 255, 254.6 / 255, 2], [0, 0, 1, 254, 255, 255]),
])  # fmt: skip
def test_to_pil_truncates_or_rounds_clamps_and_refuses_nan(rounding, values, bytes_):
    picture = torch.tensor(values).expand(3, 2, 6).double().requires_grad_()
    assert np.asarray(images.to_pil(picture, rounding))[0, :, 0].tolist() == bytes_
    refuses("NaN", images.to_pil, torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError):
        images.to_pil(torch.zeros(2, 3, 4, 4))


def test_grid_enlarges_places_and_labels():
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    long = "a very long label that has to be wrapped to stay readable " * 2
    plain = images.grid([[red, blue], [None, red]], gap=4)
    labelled = images.grid([[red, blue], [None, red]], ["one", "two"], ["left 猫", long], gap=4)
    top, left = labelled.height - 2 * 132, labelled.width - 2 * 132
    for sheet, x, y in ((plain, 0, 0), (labelled, left, top)):
        found = [sheet.getpixel((x + 64 + 132 * column, y + 64 + 132 * row)) for row in (0, 1) for column in (0, 1)]
        assert found == [(255, 0, 0), (0, 0, 255), (255, 255, 255), (255, 0, 0)]
    header = np.asarray(labelled)[:top, left + 132 :]
    assert plain.size == (264, 264) and left == 132 and top > 60
    assert header.min() < 100 and (header[:, -4:] == 255).all() and np.asarray(labelled)[top:, :128].min() < 100
    assert images.grid([[Image.new("RGB", (300, 200))]], gap=4).size == (304, 204)
    with pytest.raises(ValueError):
        images.grid([[None]])


@pytest.mark.parametrize("words, width, grows", [(20, 3 * 128 + 8, False), (80, 3 * 128 + 8, True)])
def test_long_row_labels_do_not_run_into_the_next_row(words, width, grows):
    sheet = images.grid([[Image.new("RGB", (128, 128), "red")]] * 2, row_labels=["a word " * words] * 2)
    without_ink = np.flatnonzero((np.asarray(sheet).astype(int)[:, :256].sum(2) >= 300).all(1))
    assert sheet.width == width and (sheet.height > 2 * 200) == grows
    assert abs(without_ink - sheet.height // 2).min() < 8
