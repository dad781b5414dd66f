"""Picture files to tensors and back: every mode a photograph comes in, the official 512 loader, grids.

(Masks and edit maps: common/masks.py.)
"""

import functools
import io
import logging
import math
import textwrap
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from common.files import InputError, atomic_path, one_line

log = logging.getLogger(__name__)

NO_PHOTOGRAPHS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # Pillow knows them, not their pixels
SIDE_FILES = {".json", ".jsonl", ".txt", ".md", ".csv", ".npy"}  # lie beside pictures, and are not missed among them
_told: set[Path] = set()  # the folders of which it was said what is left out


@functools.cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes of the picture files that the installed Pillow reads: .png, .jpg, .jfif, .webp, .avif, …"""
    Image.init()
    kinds = {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset({".mpo"} | {suffix for suffix, kind in kinds.items() if kind not in NO_PHOTOGRAPHS})


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture; hidden files (such as ._x of macOS) never are."""
    return path.suffix.lower() in picture_suffixes() and path.name[0] != "."


def load_image(path: str | Path, data: bytes | None = None) -> Image.Image:
    """A picture file as an RGB picture that looks as a viewer shows it: turned as its EXIF says, transparency on white,
    16-bit grey scaled (not clipped) to 8 bits, the first of several pictures in a file (MPO, GIF, TIFF). data: the
    file's bytes, where they lie elsewhere. InputError if the file is missing, damaged or no picture."""
    return open_picture(path, _to_rgb, data)


def as_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as load_image would give it. InputError for values without a known range."""
    return _to_rgb(ImageOps.exif_transpose(image))


def open_picture(path: str | Path, read=lambda image: image, data: bytes | None = None) -> Image.Image:
    """read(picture) for a file's picture in its own mode, turned as its EXIF says. InputError as load_image."""
    path = Path(path)
    if data is None and not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a picture file is needed here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, and still read
            # not by its name: Pillow 13 maps a turned TIFF of some modes into memory, and garbles it
            with open(path, "rb") if data is None else io.BytesIO(data) as stream, Image.open(stream) as file:
                turned = ImageOps.exif_transpose(file)
                turned.load()
                return read(turned)
    except InputError as problem:
        raise InputError(f"{path} cannot be used: {problem}") from None
    except Exception as problem:  # Pillow's decoders raise a dozen kinds for a damaged file
        reason = one_line(problem) or type(problem).__name__
        raise InputError(f"{path} cannot be read as a picture: it is damaged, too large or of another kind than Pillow "
                         f"reads (HEIC and RAW are); save it as PNG or JPEG ({reason})") from None  # fmt: skip


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 or 32 bits; convert("RGB") would clip it at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputError("its grey values leave the range of 16 bits; save it with 8 or 16 bits")
        eight = image.mode == "I" and values.max() <= 255  # small numbers in 32 bits: label maps, depth
        grey = Image.fromarray((values if eight else (values / 257).round()).astype(np.uint8))
        if (clear := image.info.get("transparency")) is not None:
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        image = grey
    elif image.mode == "F":
        raise InputError("its pixels are floating-point numbers without a known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def list_pictures(folder: str | Path) -> list[Path]:
    """The picture files directly in a folder, by name; hidden files are left out, and other files are named once.
    InputError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is {'a file' if folder.exists() else 'missing'}; a folder of pictures is needed")
    try:
        files = sorted(path for path in folder.iterdir() if path.name[0] != "." and not path.is_dir())
    except OSError as problem:
        raise InputError(f"cannot look into {folder}: {problem.strerror}") from None
    found = [path for path in files if is_picture(path)]
    left = [path.name for path in files if path not in found and path.suffix.lower() not in SIDE_FILES]
    if not found:
        beside = f" ({left[0]} cannot be read)" if left else ""
        raise InputError(f"{folder} holds no picture{beside}; put in PNG, JPEG, WebP or AVIF files")
    if left and folder.resolve() not in _told:
        _told.add(folder.resolve())
        log.warning("%s: left out, as Pillow does not read them: %s", folder, ", ".join(left))
    return found


def center_crop_resize(image: Image.Image, resolution: int) -> Image.Image:
    """Cut the central square and resize it with Pillow's default filter (bicubic), as the official 512 loader does. A
    picture that already is [resolution, resolution] is returned as it is."""
    if image.size == (resolution, resolution):
        return image
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((resolution, resolution))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB picture to float32 [1,3,H,W] in [0,1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def to_pil(picture: torch.Tensor, rounding: str = "floor") -> Image.Image:
    """float [3,H,W] or [1,3,H,W], clamped to [0,1], to a picture of 8 bits. rounding: "floor" truncates 255 x, as the
    released code of Prompt-to-Prompt, SPDInv and Paint-by-Example does; "nearest" rounds it, as diffusers' image
    processor does (PIXELS, SVDiff, Preserve and Personalize). InputError on NaN, which a diverged model gives."""
    step = {"floor": torch.floor, "nearest": torch.round}[rounding]
    picture = picture.detach().float().cpu()
    if picture.ndim == 4:
        (picture,) = picture  # one picture only
    if picture.isnan().any():
        raise InputError("the model gave a picture of NaN: lower the learning rate or the guidance, or use float32")
    return Image.fromarray(step(picture.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def save_png(path: str | Path, picture: Image.Image | torch.Tensor, rounding: str = "floor") -> None:
    """Write a picture (or tensor, see `to_pil`) as PNG, atomically."""
    picture = to_pil(picture, rounding) if isinstance(picture, torch.Tensor) else picture
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def grid(
    rows: list[list[Image.Image | None]], row_labels: list[str] | None = None, column_labels: list[str] | None = None,
    least_side: int = 128, gap: int = 4,
) -> Image.Image:  # fmt: skip
    """Lay pictures out in rows on white, labels wrapped on the left and on top; None leaves a cell empty. Pictures
    whose shorter side is under `least_side` pixels are enlarged (Lanczos) by a whole factor."""
    rows = [[cell and _enlarge(cell, least_side) for cell in row] for row in rows]
    cells = [cell for row in rows for cell in row if cell]
    if not cells:
        raise ValueError("a grid needs at least one picture")
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    font = ImageFont.load_default(size=14)
    for aside in (width, 2 * width):  # a long label makes its room on the left, before it stretches all rows
        left = [_wrap(label, aside, font) for label in row_labels or []]
        if all(_text_height(label, font) <= height for label in left):
            break
    above = [_wrap(label, width, font) for label in column_labels or []]
    margin = aside + gap if left else 0
    header = max((_text_height(label, font) + gap for label in above), default=0)
    height = max([height, *(_text_height(label, font) for label in left)])
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (margin + columns * (width + gap), header + len(rows) * (height + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(above):
        pen.multiline_text((margin + column * (width + gap), 0), label, "black", font)
    for line, label in enumerate(left):
        pen.multiline_text((0, header + line * (height + gap)), label, "black", font)
    for line, row in enumerate(rows):
        for column, cell in enumerate(row):
            if cell:
                sheet.paste(cell, (margin + column * (width + gap), header + line * (height + gap)))
    return sheet


def _enlarge(image: Image.Image, least_side: int) -> Image.Image:
    factor = math.ceil(least_side / min(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.LANCZOS) if factor > 1 else image


def _wrap(label: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    return textwrap.fill(label, max(1, int(width / font.getlength("n"))))


def _text_height(text: str, font: ImageFont.FreeTypeFont) -> int:
    return math.ceil(ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)[3])
