"""A picture that explains what the maps did: what entered, and how long the source stayed."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from common.images import grid
from pixels.edit_map import coverage, injections
from pixels.frames import to_picture

EXEMPLAR_COLOR = torch.tensor([1.0, 0.1, 0.6])
RELEASED_COLOR = torch.tensor([1.0, 0.6, 0.0])
STRENGTH = 0.6  # how much of a colour lies over the source at most


def entered(source: Tensor, exemplars: list[Tensor], mus: list[Tensor], tau: Tensor) -> Tensor:
    """The surgical picture of line 10 in pixels: source [1, 3, H, W], and each exemplar in the cells that it takes."""
    picture = source
    for exemplar, mu in zip(exemplars, mus, strict=True):
        picture = torch.where(cells(mu > tau[0], source), picture, exemplar)
    return picture


def overlay(source: Tensor, mu: Tensor, tau: Tensor) -> Tensor:
    """Source [1, 3, H, W] under the colours of the map mu [1, 1, h, w]: pink where the exemplar enters, orange where
    the source is let go, the stronger the earlier, clear where it is put back at every step."""
    kept = injections(mu, tau) / len(tau)
    takes = (mu <= tau[0]).float()
    color = torch.where(takes.bool(), EXEMPLAR_COLOR.view(1, 3, 1, 1), RELEASED_COLOR.view(1, 3, 1, 1))
    alpha = cells(STRENGTH * (1 - kept), source)
    return source * (1 - alpha) + cells(color, source) * alpha


def cells(values: Tensor, like: Tensor) -> Tensor:
    """Latent cells [1, C, h, w] as blocks of the pixels of a picture; truth values stay such."""
    blocks = F.interpolate(values.float(), like.shape[-2:], mode="nearest")
    return blocks.bool() if values.dtype == torch.bool else blocks


def preview(source: Tensor, exemplars: list[Tensor], mus: list[Tensor], tau: Tensor) -> Image.Image:
    """Both pictures, labelled. source, exemplars [1, 3, H, W] in [0, 1]; mus [1, 1, h, w], latent grid; tau [N]."""
    source, exemplars, mus, tau = source.cpu(), [e.cpu() for e in exemplars], [m.cpu() for m in mus], tau.cpu()
    mu = torch.stack(mus).amin(0)
    counted = coverage(mu, tau)
    share = f"{100 * counted.exemplar / counted.total:.1f} %"
    labels = [
        f"what enters: {share} of the cells start from the exemplar",
        f"pink: exemplar; orange: source let go, the stronger the earlier of {len(tau)} steps; clear: source kept",
    ]
    pictures = [entered(source, exemplars, mus, tau), overlay(source, mu, tau)]
    return grid([[to_picture(picture) for picture in pictures]], column_labels=labels, least_side=256)
