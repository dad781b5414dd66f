"""Edit maps mu and the thresholds that they meet: where a picture changes, how much, and when.

A map is float32 [1 or B, 1, H, W] in [0, 1]. As in the released code, and unlike most inpainting tools,

    white (1)    keeps the source at every step,
    black (0)    starts from the exemplar,
    grey         starts from the source, and is let go the earlier the darker it is.

Exactly black, that is: the exemplar enters at the first step alone, and only where the map, reduced to the latent grid,
is at or below the first threshold. `white="edit"` in `read` takes maps of the opposite meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from common.masks import read_grey
from common.runs import InputError
from pixels.thresholds import THRESHOLDS

# ------------------------------------------------------------------------------------------------------------- maps


def read(path: str | Path, white: str = "keep") -> Tensor:
    """A map [1, 1, H, W] from a picture or a .npy array (see common/masks.py for what is read and what is refused).
    white: "keep" as released; "edit" for maps whose white is to change: they are inverted."""
    return polarity(read_grey(path, edit=float(white == "edit"))[None, None], white)


def check(edit_map: Tensor) -> Tensor:
    """The map itself, in float32 at most, as the thresholds are; InputError unless it is [B, 1, H, W] with values in
    [0, 1]."""
    if edit_map.ndim != 4 or edit_map.shape[1] != 1:
        raise InputError(f"the edit map has the shape {tuple(edit_map.shape)}; [1, 1, H, W] is needed")
    if not (edit_map.min() >= 0 and edit_map.max() <= 1):  # also false for NaN
        raise InputError("the edit map has values outside [0, 1], or NaN; 0 is black and 1 is white")
    return edit_map.float() if edit_map.dtype == torch.float64 else edit_map


def polarity(edit_map: Tensor, white: str) -> Tensor:
    """The map as this code reads it, white = keep; one whose white means "edit" is inverted."""
    if white not in ("keep", "edit"):
        raise InputError(f"white is {white!r}; in a map it means either 'keep' or 'edit'")
    return edit_map if white == "keep" else 1 - edit_map


def from_mask(mask: Tensor, grow: float = 0, ramp: float = 0, blur: float = 0) -> Tensor:
    """A map from a mask [H, W] whose 1 is to change ("growing and blurring", paper, Implementation Details): black on
    it and within `grow` pixels of it, then a linear ramp to white over `ramp` pixels, then a Gaussian blur of deviation
    `blur`, which also greys the inside of the border (grow by twice the blur to keep all of the mask black). Raises
    InputError for an empty mask."""
    inside = mask.numpy() > 0.5
    if not inside.any():
        raise InputError("the mask is empty; 1 (white) marks what is to change")
    if blur > max(mask.shape):
        raise InputError(f"a blur of {blur:g} pixels is wider than the mask, {mask.shape[1]}x{mask.shape[0]}")
    distance = ndimage.distance_transform_edt(~inside)
    grey = np.clip((distance - grow) / ramp, 0, 1) if ramp else (distance > grow).astype(np.float64)
    grey = ndimage.gaussian_filter(grey, blur, mode="nearest") if blur else grey
    return torch.from_numpy(grey.astype(np.float32)).clamp(0, 1)[None, None]


def gradient(size: tuple[int, int], exemplar: str = "right", start: float = 0.0, end: float = 1.0) -> Tensor:
    """A map [1, 1, *size] that runs linearly from white to black towards the side "left", "right", "top" or "bottom",
    where the exemplar is. start, end: where white ends and black begins, as fractions of the way."""
    if exemplar not in ("left", "right", "top", "bottom"):
        raise InputError(f"there is no side {exemplar!r}; the exemplar is on the left, right, top or bottom")
    if not 0 <= start < end <= 1:
        raise InputError(f"a gradient runs from {start} to {end}; 0 <= start < end <= 1 is needed")
    length = size[1] if exemplar in ("left", "right") else size[0]
    way = (torch.arange(length) + 0.5) / length  # centres of pixels
    line = 1 - ((way - start) / (end - start)).clamp(0, 1)
    line = line.flip(0) if exemplar in ("left", "top") else line
    return (line[None, :] if exemplar in ("left", "right") else line[:, None]).expand(size)[None, None].contiguous()


def from_depth(depth: Tensor, edit: str = "far") -> Tensor:
    """A map from a depth picture [H, W], on any scale, whose larger values are nearer, as estimators draw it. edit:
    which end takes the exemplar, "far" or "near". The nearest and the farthest tenth of the pixels are wholly black or
    white; in between the map is linear. InputError for a flat depth."""
    first, last = np.quantile(depth.numpy(), (0.1, 0.9))
    if not first < last:
        raise InputError("the depth picture is flat between its quantiles; it has no near and far")
    nearness = ((depth.float() - first) / (last - first)).clamp(0, 1)
    return (nearness if edit == "far" else 1 - nearness)[None, None]


def histogram(edit_map: Tensor, black_point: float = 0.0, gamma: float = 1.0) -> Tensor:
    """A map with another histogram ("simple histogram transformations", paper, Implementation Details): what is at or
    below `black_point` becomes 0, linear from there to white, and the result is raised to the power `gamma`."""
    if not 0 <= black_point < 1 or gamma <= 0:
        raise InputError(f"black point {black_point}, gamma {gamma}: 0 <= black < 1 and gamma above 0 are needed")
    return (((edit_map - black_point) / (1 - black_point)).clamp(0, 1)) ** gamma


def binarize(edit_map: Tensor, level: float = 0.5) -> Tensor:
    """The mask, 1 = edit, for methods that take no grey maps: darker than `level`, which the paper leaves open."""
    return (edit_map < level).float()


def to_latent_grid(edit_map: Tensor, size: tuple[int, int]) -> Tensor:
    """mu_d, the map on the latent grid (Alg. 1, l. 6): bilinear without antialiasing, as released; for an exact eighth
    the mean of the central 2x2 pixels of each 8x8 block."""
    return F.interpolate(edit_map, size, mode="bilinear", align_corners=False)


# ------------------------------------------------------------------------------------------------------- thresholds

Threshold = str | Callable[[Tensor, int], Tensor]


def thresholds(threshold: Threshold, count: int, schedule: str = "released") -> Tensor:
    """tau [count], float32: step i keeps the source where mu > tau_i.

    threshold: a key of THRESHOLDS, or any function of (i, n) as there. schedule: "released" runs over i / N for the N
    network calls, so that white is kept to the end. "paper" is Alg. 1 to the letter: with T + 1 calls the thresholds
    are 0, 1/T, ..., 1, the first is 0 whatever the function (l. 9), and the last lets even white go.
    """
    if count < 1:
        raise InputError("there is no step to run: raise the strength or the number of steps")
    n = count if schedule == "released" else max(count - 1, 1)
    function = THRESHOLDS[threshold] if isinstance(threshold, str) else threshold
    tau = torch.as_tensor(function(torch.arange(count), n)).float()
    if tau.shape != (count,) or not tau.isfinite().all():
        raise InputError(f"a threshold function must give {count} finite numbers; this one gave {tau.tolist()}")
    if schedule == "paper":
        tau[0] = 0
    return tau


@dataclass(frozen=True)
class Coverage:
    """What a map does on the latent grid, in cells of one picture."""

    exemplar: int  # start from the exemplar: mu <= tau_0
    released: int  # start from the source and are let go before the last step
    kept: int  # keep the source at every step

    @property
    def total(self) -> int:
        return self.exemplar + self.released + self.kept

    def __str__(self) -> str:
        share = f"{100 * self.exemplar / self.total:.1f} %"
        return (f"{self.exemplar} of {self.total} latent cells ({share}) take the exemplar, {self.released} are "
                f"released on the way, {self.kept} keep the source")  # fmt: skip


def coverage(mu: Tensor, tau: Tensor) -> Coverage:
    """Count the cells of a map [..., h, w] on the latent grid under thresholds tau [N]."""
    exemplar, kept = int((mu <= tau[0]).sum()), int((mu > tau.max()).sum())
    return Coverage(exemplar, mu.numel() - exemplar - kept, kept)


def injections(mu: Tensor, tau: Tensor) -> Tensor:
    """How many of the N steps put the source back, per cell: int64, shaped as mu."""
    return sum((mu > level).long() for level in tau)
