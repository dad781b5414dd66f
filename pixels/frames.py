"""Photographs, exemplars and maps of any size to one frame, all by the same rule, so that they stay aligned."""

from PIL import Image
from torch import Tensor

from common.images import to_pil, to_tensor
from common.runs import InputError

Size = tuple[int, int]  # height, width


def fit(image: Image.Image, size: Size, mode: str = "squash") -> Image.Image:
    """A picture in the frame. mode: "squash" the whole picture into it, as the released code does with source and
    exemplar (bilinear); or "crop" the central part of the frame's proportions first."""
    height, width = size
    if mode == "crop":
        image = image.crop(central_box(image.height, image.width, size))
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def fit_map(edit_map: Tensor, size: Size, mode: str = "squash") -> Tensor:
    """The part of a map [1, 1, H, W] that lies over the frame, at its own resolution: the step to the latent grid,
    which takes any size, does the rest. (The released demo cuts maps, not pictures, to multiples of 64: no difference
    where they are such already.)"""
    if mode == "squash":
        return edit_map
    left, top, right, bottom = central_box(*edit_map.shape[-2:], size)
    return edit_map[..., top:bottom, left:right]


def central_box(height: int, width: int, size: Size) -> tuple[int, int, int, int]:
    """The largest centred box with the proportions of `size`: left, top, right, bottom."""
    scale = min(height / size[0], width / size[1])
    tall, wide = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def place(exemplar: Image.Image, box: tuple[float, float, float, float], size: Size) -> Image.Image:
    """An exemplar put where the user wants it, zeros (black) around it (paper, Appendix 3). box: left, top, right,
    bottom of the exemplar in the frame, as fractions of it."""
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(f"the box {box} is not left < right and top < bottom, all from 0 to 1")
    height, width = size
    corner = round(left * width), round(top * height)
    area = max(round((right - left) * width), 1), max(round((bottom - top) * height), 1)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(exemplar.resize(area, Image.Resampling.BILINEAR), corner)
    return canvas


def check_alignment(source: Size, edit_map: Size, name: str) -> None:
    """Raises InputError where map and source have other proportions: brought to one frame, the map would move on the
    picture."""
    if abs(edit_map[1] / edit_map[0] / (source[1] / source[0]) - 1) > 0.02:
        raise InputError(f"{name} is {edit_map[1]}x{edit_map[0]} pixels and the source {source[1]}x{source[0]}: the "
                         "proportions differ and the map would lie askew; draw it on a copy of the source")  # fmt: skip


def frame_tensor(image: Image.Image, size: Size, mode: str) -> Tensor:
    """`fit` as a tensor [1, 3, H, W] in [0, 1]."""
    return to_tensor(fit(image, size, mode))


def to_picture(tensor: Tensor) -> Image.Image:
    """[1, 3, H, W] in [0, 1] to 8 bits, rounded to the nearest as diffusers' image processor does (released code)."""
    return to_pil(tensor, rounding="nearest")
