"""From a picture and the box of a thing to what training reads: source, reference and hole (Sec. 4.1), and from there
to what the UNet reads: latents of the picture with and without its hole, keep mask, class token.

The picture is its own target: the reference I_r is the box of the thing cut out of it (as in Paint-by-Example; Sec. 4.1
prints I_m * I_s), and the hole I_m is where it was.
VAE and CLIP are frozen, so that views can be encoded once and kept (--cache_views).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.runs import InputError
from image_inpaint.augment import augment_reference, augment_source
from image_inpaint.conditioning import class_tokens, keep_on_latents, masked_picture, reference_pixels, squashed
from image_inpaint.masks import Box, Size, box_mask, box_of, integer, padded, training_mask

REFERENCE_PADDING = 10 / 512  # of the shorter side, around the box of the reference
CHUNK = 4  # triples that the VAE takes at once: memory stays that of eight pictures, whatever the batch
SHRINK = 0.6  # of the smallest free space between enlarged box and crop, at most


@dataclass(frozen=True)
class Augmentation:
    """source, reference: names of augment.NAMES. mask: enlarge and reshape the hole. crop: Paint-by-Example's random
    squares; otherwise the picture is squashed."""

    source: Sequence[str] = ("flip", "rotation")
    reference: Sequence[str] = ("flip", "rotation", "blur", "elastic")
    mask: bool = True
    crop: bool = True


@dataclass(frozen=True)
class Triple:
    """source [3, R, R] and reference [3, r, r] in [0, 1]; fill [1, R, R], 1 = hole, its rim soft where it was resized,
    as in the released code."""

    source: Tensor
    reference: Tensor
    fill: Tensor


def square_window(box: Box, size: tuple[int, int], generator: torch.Generator) -> Box | None:
    """A random square that contains the box: as large as the shorter side, then shrunk towards the box by up to 0.6 of
    the smallest free space (Paint-by-Example's crop). None, for the whole picture, where it has no choice of places."""
    side = min(size)
    ranges = [(max(0, box[2 + k] - side), min(box[k], size[1 - k] - side)) for k in (0, 1)]  # of left and top edge
    if not any(low < high for low, high in ranges):
        return None
    left, top = (integer(generator, low, high) for low, high in ranges)
    free = min(box[0] - left, box[1] - top, left + side - box[2], top + side - box[3])
    margin = integer(generator, 0, int(SHRINK * free))
    return left + margin, top + margin, left + side - margin, top + side - margin


def reference_box(box: Box, size: Size) -> Box:
    """What is cut out as the reference: the thing's box with a small margin."""
    return padded(box, size, max(1, round(REFERENCE_PADDING * min(size))))


def cut(picture: Tensor, box: Box) -> Tensor:
    return picture[..., box[1] : box[3], box[0] : box[2]]


def make_triple(
    picture: Tensor, box: Box, resolution: int, reference_size: int, augmentation: Augmentation,
    generator: torch.Generator,
) -> Triple:  # fmt: skip
    """picture [3, H, W] in [0, 1]; box: the thing's, inside of it. Raises InputError for a box without area."""
    size = tuple(picture.shape[-2:])
    source, region = picture[None], box_mask(box, size)[None, None]
    if not region.any():
        raise InputError(f"the box {box} holds no pixel of a picture of {size[1]}x{size[0]}")
    turned, moved = augment_source(source, region, augmentation.source, generator)
    if moved.any():  # a rotation can carry a thing at the edge out of the picture
        source, box = turned, box_of(moved[0, 0])
    fill, outer = training_mask(box, size, generator, augmentation.mask)  # I_m
    reference = cut(source, reference_box(box, size))  # I_r
    reference = augment_reference(squashed(reference, reference_size), augmentation.reference, generator)
    fill = fill[None, None]
    if augmentation.crop and (window := square_window(outer, size, generator)):
        source, fill = cut(source, window), cut(fill, window)
    return Triple(squashed(source, resolution)[0].clamp(0, 1), reference[0], squashed(fill, resolution)[0].clamp(0, 1))


# ----------------------------------------------------------------------------------------------- as the UNet reads


@dataclass(frozen=True)
class Views:
    """Mean and deviation of the VAE's posterior [N, 4, h, w] of pictures and of pictures without their holes (not yet
    scaled), keep masks [N, 1, h, w], CLIP's class tokens [N, D]; float32, on the CPU."""

    mean: Tensor
    std: Tensor
    masked_mean: Tensor
    masked_std: Tensor
    keep: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, rows) -> "Views":
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: Sequence["Views"]) -> "Views":
        return Views(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Views)))


@torch.no_grad()
def encode(pipe, triples: Sequence[Triple]) -> Views:
    """The triples through the VAE, a few at a time, and through CLIP."""
    source = torch.stack([triple.source for triple in triples])
    fill = torch.stack([triple.fill for triple in triples])
    masked, encoded = masked_picture(source, fill), []
    for start in range(0, len(triples), CHUNK):
        rows = slice(start, start + CHUNK)
        both = torch.cat([source[rows], masked[rows]]) * 2 - 1
        posterior = pipe.vae.encode(both.to(pipe.device, pipe.vae.dtype)).latent_dist
        encoded.append([*posterior.mean.float().cpu().chunk(2), *posterior.std.float().cpu().chunk(2)])
    mean, masked_mean, std, masked_std = (torch.cat(part) for part in zip(*encoded, strict=True))
    pixels = reference_pixels(torch.stack([triple.reference for triple in triples]), pipe)
    tokens = class_tokens(pipe.image_encoder, pixels).float().cpu()
    return Views(mean, std, masked_mean, masked_std, keep_on_latents(fill, mean.shape[-2:]), tokens)


def draw_latents(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of the posterior."""
    return mean + std * torch.randn(mean.shape, generator=generator)
