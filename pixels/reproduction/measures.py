"""Scores of exemplar edits: likeness to the exemplar, fidelity to the source, seams, the transition between the two.

The paper names CLIP-I and FID and leaves crop rule, networks and reference set open. Pasting the exemplar's pixels wins
CLIP-I by construction, so likeness and seam are to be read together, with paste as the control. Where the true picture
is known, seam, sharpness and transition are told against it, from both sides: a blur has no seam either, and is no
success.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from common.encoders import Clip
from common.metrics import lpips_distance, mse, psnr, score_key, truth_scores
from pixels.edit_map import binarize

LEAST_CHANGE = 1e-3  # mean square, of pixels that source and truth differ in
MOST_UNDONE = 0.5  # of the way from the source to the true edit, in an edit whose seam is judged
SQUARE = 224  # crops are squashed to this before CLIP, whose own processor would cut a long crop's ends off


def edit_scores(
    source: Tensor, exemplars: list[Tensor], edited: Tensor, edit_map: Tensor, encoders, truth: Tensor | None = None
) -> dict[str, float]:
    """All scores of one edit, by score_key; NaN where the region they speak of is empty.

    Pictures [1, 3, H, W] in [0, 1], as read back from 8-bit files; edit_map [1, 1, H', W'], white = keep, the least of
    all maps. Likeness is to the nearest exemplar. truth: the true composite, where there is one.
    """
    full = F.interpolate(edit_map, source.shape[-2:], mode="bilinear", align_corners=False)
    white, grey = (full >= 1).float(), ((full > 0) & (full < 1)).float()
    compared = torch.where(white > 0, edited, source)  # no receptive field reaches into the edit
    scores = {
        **clip_likeness(exemplars, edited, full, encoders.clip),
        "psnr_kept": psnr(source, edited, white).item(),
        "mse_kept": mse(source, edited, white).item(),
        score_key("lpips_kept", encoders.lpips.label): lpips_distance(source, compared, encoders.lpips, white).item(),
        "mse_grey": mse(source, edited, grey).item(),  # how much the released zone left the source
        "contrast": contrast(edited, exemplars, full),
        "seam": seam(edited, [source, *exemplars], full),
    }  # fmt: skip
    if truth is not None:
        gap = transition_gap(edited, truth, source, full)
        scores |= {**truth_scores(truth, edited, encoders.lpips), "sharpness": sharpness(edited, truth, full),
                   "transition_gap": gap}  # fmt: skip
        # where nothing is put in, there is no seam to be judged
        scores["seam_gap"] = math.nan if gap > MOST_UNDONE else seam_gap(edited, truth, full)
    return scores


# --------------------------------------------------------------------------------------------------------- likeness


def region_box(edit_map: Tensor) -> tuple[int, int, int, int] | None:
    """top, bottom, left, right of the binarised map's region (darker than 0.5), or None where there is none."""
    rows, columns = binarize(edit_map)[0, 0].nonzero(as_tuple=True)
    if not len(rows):
        return None
    return rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1


def clip_likeness(exemplars: list[Tensor], edited: Tensor, edit_map: Tensor, clip: Clip) -> dict[str, float]:
    """CLIP-I of the edited region, two readings of the paper's words: against the same box of the exemplar, and against
    the whole exemplar (as Paint-by-Example's tool does). Cosines; the best over the exemplars."""
    keys = [score_key("CLIP-I", clip.label, protocol) for protocol in ("same_box", "whole_exemplar")]
    if (box := region_box(edit_map)) is None:
        return dict.fromkeys(keys, math.nan)
    region, boxes = clip.embed(squashed(edited, box)), (box, (0, edited.shape[-2], 0, edited.shape[-1]))
    return {key: max((region @ clip.embed(squashed(exemplar, place)).T).item() for exemplar in exemplars)
            for key, place in zip(keys, boxes, strict=True)}  # fmt: skip


def squashed(picture: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The box (as of region_box) of a picture, as a square for CLIP."""
    top, bottom, left, right = box
    part = picture[..., top:bottom, left:right]
    return F.interpolate(part, (SQUARE, SQUARE), mode="bilinear", align_corners=False, antialias=True)


def contrast(edited: Tensor, exemplars: list[Tensor], edit_map: Tensor) -> float:
    """Deviation of the pixels of the edited region over that of the exemplars there: near 0 for a region of one colour.
    NaN where there is no region."""
    region = binarize(edit_map)[0, 0] > 0
    if region.sum() < 2:
        return math.nan
    deviation = lambda picture: picture[0][:, region].std(dim=1).mean()  # noqa: E731
    return (deviation(edited) / torch.stack([deviation(exemplar) for exemplar in exemplars]).mean()).item()


# ------------------------------------------------------------------------------------------------------------ seams


def seam(picture: Tensor, real: list[Tensor], edit_map: Tensor, least_pairs: int = 16) -> float:
    """How much steeper the picture is along the map's border than real pictures are there; grey levels of 255: the most
    that it changes within two lines of `border_profile`, wherever they lie in the map's grey zone, less the mean of the
    same for `real` pictures [1, 3, H, W]. NaN where the map has no border."""
    profiles = [border_profile(image, edit_map, least_pairs) for image in (picture, *real)]
    if not len(profiles[0]):
        return math.nan
    highest = [np.convolve(profile, np.ones(min(2, len(profile))), "valid").max() for profile in profiles]
    return float(255 * (highest[0] - np.mean(highest[1:])))


def seam_gap(picture: Tensor, truth: Tensor, edit_map: Tensor, least_pairs: int = 16) -> float:
    """Mean |difference| of the border profiles of a picture and of the true one, grey levels of 255: too steep and too
    flat both count. What the VAE alone does is its value for the true picture through the VAE."""
    mine, true = (border_profile(image, edit_map, least_pairs) for image in (picture, truth))
    return float(255 * np.abs(mine - true).mean()) if len(mine) else math.nan


def border_profile(picture: Tensor, edit_map: Tensor, least_pairs: int = 16, margin: float = 4.0) -> np.ndarray:
    """Mean |difference| of neighbouring pixels across each contour of the signed distance to the border of the
    binarised map, as far as the grey zone reaches and `margin` pixels beyond, from inside to outside. A pair counts by
    how squarely it crosses, which is the difference of its two distances. Contours of few pairs are left out."""
    grey = edit_map[0, 0].cpu().numpy()
    inside = grey < 0.5
    if inside.all() or not inside.any():
        return np.empty(0)
    distance = ndimage.distance_transform_edt(~inside) - ndimage.distance_transform_edt(inside)
    zone = np.abs(distance[(grey > 0) & (grey < 1)])
    reach = (zone.max() if zone.size else 0) + margin
    pixels = picture[0].cpu().double().numpy()
    weights, steps, places = [], [], []
    for axis in (0, 1):
        weights.append(np.abs(np.diff(distance, axis=axis)).clip(0, 1).ravel())
        steps.append(np.abs(np.diff(pixels, axis=axis + 1)).mean(0).ravel())
        lines = distance.swapaxes(0, axis)
        places.append(((lines[1:] + lines[:-1]) / 2).swapaxes(0, axis).ravel())
    weight, step, place = (np.concatenate(parts) for parts in (weights, steps, places))
    near = np.abs(place) <= reach
    contour = np.floor(place[near] + reach).astype(int)
    total, mass = np.bincount(contour, weight[near] * step[near]), np.bincount(contour, weight[near])
    return total[mass >= least_pairs] / mass[mass >= least_pairs]


# ------------------------------------------------------------------------------------------------------- transitions


def sharpness(picture: Tensor, truth: Tensor, edit_map: Tensor) -> float:
    """Mean step between neighbouring pixels where the map is not white, over that of the true picture: 1 is as sharp,
    below it blurred. NaN without such a place."""
    place = edit_map < 1

    def steps(image: Tensor) -> Tensor:
        return torch.cat([image.diff(dim=axis).abs().mean(1, keepdim=True)[place.narrow(axis, 1, place.shape[axis] - 1)]
                          for axis in (2, 3)]).mean()  # fmt: skip

    return (steps(picture) / steps(truth)).item()


def transition(
    picture: Tensor, source: Tensor, target: Tensor, edit_map: Tensor, bands: int = 8, least_pixels: int = 32
) -> np.ndarray:
    """How much of the way from source to target a picture goes in each band of the map's greys, from black to white
    [bands]: 0 is the source, 1 the target, by least squares of picture - source on target - source. NaN for a band of
    few pixels, or where source and target agree."""
    band = (edit_map[0, 0] * bands).long().clamp(max=bands - 1)
    way, gone = (target - source)[0].double(), (picture - source)[0].double()
    found = []
    for number in range(bands):
        place = band == number
        length = way[:, place].square().sum()
        known = place.sum() >= least_pixels and length / (3 * place.sum()) > LEAST_CHANGE
        found.append(((gone * way)[:, place].sum() / length).item() if known else math.nan)
    return np.array(found)


def transition_gap(picture: Tensor, truth: Tensor, source: Tensor, edit_map: Tensor) -> float:
    """Mean |1 - share| of the way from the source to the true picture over the bands: 0 for the truth, 1 where nothing
    was done."""
    gaps = np.abs(1 - transition(picture, source, truth, edit_map))
    return float(np.nanmean(gaps)) if not np.isnan(gaps).all() else math.nan
