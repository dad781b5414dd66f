"""Picture files to tensors and back: every mode a photograph comes in, masks, the official 512 loader, grids."""

import math
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from common.runs import InputError, atomic_path

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".mpo"}


def load_image(path: str | Path) -> Image.Image:
    """Read a picture file as an RGB picture that looks as a viewer shows it.

    EXIF rotation is applied, transparency is put on white, 16-bit grey is scaled (not clipped) to 8 bits, of several
    pictures in one file (MPO, GIF, TIFF) the first is taken. InputError if the file is missing, damaged or no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a picture file is needed here")
    try:
        with Image.open(path) as file:
            return _to_rgb(ImageOps.exif_transpose(file))
    except Exception as problem:  # Pillow's decoders raise a dozen kinds for a damaged file
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise InputError(f"{path} cannot be read as a picture, it is damaged or of another kind: {reason}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") would clip it at 255
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        raise InputError("its pixels are floating-point numbers without a known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def list_pictures(folder: str | Path) -> list[Path]:
    """The picture files directly in a folder, by name; hidden files are left out. InputError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is {'a file' if folder.exists() else 'missing'}; a folder of pictures is needed")
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not found:
        raise InputError(f"{folder} holds no picture; put in at least one of {', '.join(sorted(SUFFIXES))}")
    return sorted(found)


def load_mask(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read a mask: float32 [H,W] of 0 and 1, where 1 (light or transparent in the file) may change.

    `size` (height, width) resizes by nearest neighbour. InputError if nothing may change.
    """
    grey = load_image(path).convert("L")
    if size is not None:
        grey = grey.resize((size[1], size[0]), Image.Resampling.NEAREST)
    values = np.asarray(grey)
    if values.max() < 128:
        raise InputError(f"the mask {path} is empty: its lightest value is {values.max()}, 128 to 255 mark the edit")
    return torch.from_numpy((values >= 128).astype(np.float32))


def center_crop_resize(image: Image.Image, resolution: int) -> Image.Image:
    """Cut the central square and resize it with Pillow's default filter (bicubic), as the official 512 loader does.

    A picture that already is [resolution, resolution] is returned as it is.
    """
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
    """float [3,H,W] or [1,3,H,W] in [0,1] to a picture of 8 bits.

    rounding: "floor" truncates 255 x, as the released code of Prompt-to-Prompt, SPDInv and Paint-by-Example does;
    "nearest" rounds it, as diffusers' image processor does (PIXELS, SVDiff, Preserve and Personalize).
    Values outside [0,1] are clamped. InputError on NaN, which a diverged model gives.
    """
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
    rows: list[list[Image.Image | None]],
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    least_side: int = 128,
    gap: int = 4,
) -> Image.Image:
    """Lay pictures out in rows on white, labels wrapped on the left and on top; None leaves a cell empty.

    Pictures whose shorter side is under `least_side` pixels are enlarged (Lanczos) by a whole factor.
    """
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
