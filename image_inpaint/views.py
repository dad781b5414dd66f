"""Training triples as the UNet reads them: latents of the picture with and without its hole, keep mask, class token.

VAE and CLIP are frozen, so that views can be encoded once and kept (--cache_views).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from image_inpaint.conditioning import class_tokens, keep_on_latents, masked_picture, reference_pixels
from image_inpaint.triples import Triple

CHUNK = 4  # triples that the VAE takes at once: memory stays that of eight pictures, whatever the batch


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
def encode(pipe, triples: Sequence[Triple], resize: str = "bilinear") -> Views:
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
    keep = keep_on_latents(fill, mean.shape[-2:], resize)
    return Views(mean, std, masked_mean, masked_std, keep, tokens)


def draw_latents(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of the posterior."""
    return mean + std * torch.randn(mean.shape, generator=generator)
