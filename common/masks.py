"""Masks and edit maps from files: one reader for every script, which refuses what could be meant in two ways.

A file says of each pixel how much it may change. It does so in greys (8 bits, 0 and 1 alone, 10, 12 or 16 bits, floats
of [0, 1]; a picture or an array .npy), in one colour on black, or in transparency: a picture whose region was erased,
or a layer with the region painted on it.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.images import open_picture
from common.runs import InputError

HOW = "save it as grey PNG of 8 bits, black and white, without transparency"
FULL_SCALES = (1, 255, 1023, 4095, 65535)
COLOURED = 16  # channels of one pixel this far apart are a colour; JPEG moves grey by less


def load_mask(
    path: str | Path, size: tuple[int, int] | None = None, picture: Image.Image | None = None
) -> torch.Tensor:
    """Read a mask: float32 [H,W] of 0 and 1, where 1 may change (light, painted or erased in the file).

    size: height and width of what it belongs to. picture: what it belongs to, known again if it is that with a region
    erased. InputError for another size, if nothing may change, or if the file could mean two things.
    """
    values = read_grey(path, 1, picture)
    size = size or (picture and picture.size[::-1])
    if size:
        check_same_size(str(path), tuple(values.shape), "its picture", size)
    if values.max() < 0.5:
        lightest = round(255 * float(values.max()))
        raise InputError(f"the mask {path} is empty: its lightest value is {lightest}, 128 to 255 mark the edit")
    return (values >= 0.5).float()


def check_same_size(name: str, size: tuple[int, int], other: str, wanted: tuple[int, int]) -> None:
    """Raises InputError unless two files that lie on each other agree; sizes as (height, width)."""
    if tuple(size) != tuple(wanted):
        raise InputError(f"{name} is {size[1]}x{size[0]} pixels and {other} is {wanted[1]}x{wanted[0]}: both must have "
                         "one size, draw the one on the other")  # fmt: skip


def read_grey(
    path: str | Path, edit: float = 1, picture: Image.Image | None = None, any_scale: bool = False
) -> torch.Tensor:
    """The values of a mask or map, float32 [H,W] in [0,1].

    edit: the value that means "change", 1 or 0; it decides what transparency is read as. picture: see load_mask.
    any_scale: numbers of which only the order counts (depth) are given as they are.
    """
    if Path(path).suffix.lower() == ".npy":
        values = _to_unit(_read_array(path), path, any_scale)
    else:
        image = open_picture(path)
        if image.mode == "F" or image.mode.startswith("I"):
            if image.has_transparency_data:
                raise InputError(f"{path} has deep greys and transparent parts: {HOW}")
            values = _to_unit(np.asarray(image), path, any_scale)
        else:
            values = _from_colours(image, path, edit, picture, any_scale)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _read_array(path: str | Path) -> np.ndarray:
    """An array [H,W], [1,H,W] or [H,W,1]; what its header says is held against the file before memory is asked for."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as problem:  # numpy raises half a dozen kinds for a file that is none of its own
        raise InputError(f"{path} cannot be read as an array: {' '.join(str(problem).split())}") from None
    if not isinstance(values, np.memmap) or values.offset + values.nbytes != Path(path).stat().st_size:
        raise InputError(f"{path} holds another number of values than it says, or several arrays; save one [H, W]")
    said = f"{values.dtype} {values.shape}"
    while values.ndim > 2 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "buif" or not values.size:
        raise InputError(f"{path} holds {said}; an array [H, W] of numbers is needed")
    return values


def _to_unit(values: np.ndarray, path: str | Path, any_scale: bool = False) -> np.ndarray:
    """Numbers to [0,1] by what their largest says of their scale."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path} holds NaN or infinity; values from 0 to 1 are needed")
    if any_scale:
        return values
    whole = bool((values == np.rint(values)).all())
    if low < 0 or high > 1 and not whole:
        raise InputError(f"{path} holds values from {low:g} to {high:g}; 0 to 1, or 8 bits, are needed")
    if 1 < high < 16:  # numbers of classes, rather than greys
        raise InputError(f"the lightest value of {path} is {high:g} of 255, as in a map of numbered regions: {HOW}")
    for scale in FULL_SCALES:
        if high <= scale and (scale <= 255 or high >= scale / 16 * 15 or scale == 65535 and high >= scale / 2):
            return values / scale
    raise InputError(f"the lightest value of {path} is {high:g}, which no number of bits has as its white: {HOW}")


def _from_colours(image: Image.Image, path, edit: float, picture: Image.Image | None, any_scale: bool) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).astype(int)
    rgb, alpha = rgba[..., :3], rgba[..., 3]
    if alpha.min() < 255:
        change = _from_transparency(rgb, alpha, path, edit, picture)
        return change if edit == 1 else 1 - change
    coloured = np.ptp(rgb, axis=-1) > COLOURED
    if coloured.mean() < 0.001:
        return _to_unit(np.asarray(image.convert("RGB").convert("L")), path, any_scale)
    rest = rgb[~coloured]
    if edit == 1 and len(rest) and rest.max() <= COLOURED and _one_colour(rgb[coloured]):
        return coloured.astype(float)  # a region in one colour on black
    raise InputError(f"{path} is coloured, and which colour may change is not known: {HOW}")


def _from_transparency(rgb: np.ndarray, alpha: np.ndarray, path, edit: float, picture) -> np.ndarray:
    """How much each pixel may change, [H,W] in [0,1]: what was erased from a picture, or painted on a clear layer."""
    visible = alpha >= 128
    if visible.any() and not visible.all():
        seen = rgb[visible]
        if picture is not None and picture.size == alpha.shape[::-1]:
            if np.abs(seen - np.asarray(picture.convert("RGB")).astype(int)[visible]).mean() < 8:
                return 1 - alpha / 255
        solid = rgb[alpha >= 250] if (alpha >= 250).any() else seen
        if _one_colour(solid):
            light, grey = solid.mean() >= 128, np.ptp(solid.mean(0)) <= COLOURED
            if not grey or light == (edit == 1):  # white marks, or black where black does
                return alpha / 255
        elif len(np.unique(solid // 32, axis=0)) > 16 and (np.ptp(solid, axis=-1) > COLOURED).mean() > 0.05:
            return 1 - alpha / 255  # a photograph
    raise InputError(f"{path} has transparent parts, which could be what is to change or what is to stay: {HOW}")


def _one_colour(pixels: np.ndarray) -> bool:
    return len(pixels) > 0 and bool((np.ptp(pixels, axis=0) <= COLOURED).all())
