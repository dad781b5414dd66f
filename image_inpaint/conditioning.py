"""What the UNet is told: nine channels, and one token of context from the reference picture (Sec. 4.1, Eq. 6).

As Paint-by-Example, and unlike Stable Diffusion's inpainting model, in order and in polarity:

    here            [noisy latents 4 | latents of the masked picture 4 | keep mask 1]     1 = kept, 0 = hole
    SD inpainting   [noisy latents 4 | fill mask 1 | latents of the masked picture 4]     1 = hole, 0 = kept

A mask that a user gives or a function here returns is always a fill mask (white = fill); a keep mask exists only on its
way into the network, and names say which is which.
"""

import copy

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from torch import Tensor, nn

from common.runs import InputError

CHANNELS = 9


def masked_picture(source: Tensor, fill: Tensor) -> Tensor:
    """The source [B, 3, H, W] in [0, 1] with mid-grey, 0 in [-1, 1], in its hole. fill [B, 1, H, W], 1 = hole; a soft
    rim, which training's resizing leaves, fades into the grey, as in the released code."""
    keep = (1 - fill).to(source)
    return source * keep + 0.5 * (1 - keep)


def keep_on_latents(fill: Tensor, size: tuple[int, int], resize: str = "bilinear") -> Tensor:
    """The keep mask on the latent grid [B, 1, h, w]; bilinear, Paint-by-Example's, leaves the rims soft; nearest is
    diffusers'."""
    return F.interpolate(1 - fill.float(), size, mode=resize)


def nine_channels(noisy: Tensor, masked_latents: Tensor, keep: Tensor) -> Tensor:
    """[B, 4, h, w], [B, 4, h, w], [B, 1, h, w] -> [B, 9, h, w] in Paint-by-Example's order."""
    return torch.cat([noisy, masked_latents, keep], dim=1)


def widen(unet: UNet2DConditionModel, with_weights: bool = True) -> UNet2DConditionModel:
    """A UNet of four input channels -> one of nine, float32, that does the same at first: the new ones start at zero.
    with_weights False: random weights throughout, the ablation "without Stable Diffusion prior" (Sec. 5.4)."""
    if unet.config.in_channels != 4:
        raise InputError(f"a UNet of 4 input channels can be widened; this one has {unet.config.in_channels}")
    wide = UNet2DConditionModel.from_config(unet.config, in_channels=CHANNELS)
    if with_weights:
        weights = unet.state_dict()
        first = weights["conv_in.weight"]
        new = first.new_zeros(first.shape[0], CHANNELS - 4, *first.shape[2:])
        wide.load_state_dict({**weights, "conv_in.weight": torch.cat([first, new], dim=1)})
    return wide.to(unet.device)


def new_encoder(vision_tower: nn.Module, width: int) -> PaintByExampleImageEncoder:
    """CLIP's vision tower (CLIPVisionModel), frozen, under an untrained mapper: (layers + 1) // 5 transformer blocks of
    one head, final norm, projection to the UNet's `width`, learned unconditional vector."""
    config = copy.deepcopy(vision_tower.config)
    config.projection_dim = width  # what from_pretrained makes the projection by; CLIP's own is not used
    encoder = PaintByExampleImageEncoder(config)
    encoder.model.load_state_dict(vision_tower.state_dict())
    encoder.model.requires_grad_(False)
    return encoder.eval()


def trained_part(encoder: PaintByExampleImageEncoder) -> dict[str, nn.Parameter]:
    """All of the encoder but CLIP."""
    return {name: p for name, p in encoder.named_parameters() if not name.startswith("model.")}


def squashed(pictures: Tensor, side: int) -> Tensor:
    """[B, C, H, W] as squares, bilinear, averaging where it shrinks."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)


def reference_pixels(references: Tensor, pipe) -> Tensor:
    """References [B, 3, h, w] in [0, 1] as CLIP wants them: squashed to its size (diffusers cuts the ends of long ones
    off, Paint-by-Example does not), normalised."""
    encoder, processor = pipe.image_encoder, pipe.feature_extractor
    references = squashed(references, encoder.config.image_size)
    mean, std = (references.new_tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std))
    return ((references.clamp(0, 1) - mean) / std).to(encoder.device, encoder.dtype)


def class_tokens(encoder: PaintByExampleImageEncoder, pixels: Tensor) -> Tensor:
    """CLIP's class token after its last norm [B, D] (1024 for ViT-L/14), not projected; CLIP is never trained."""
    return encoder.model(pixel_values=pixels).pooler_output


def context_of(encoder: PaintByExampleImageEncoder, tokens: Tensor) -> Tensor:
    """Class tokens [B, D] -> context [B, 1, D'] of the UNet: mapper, final norm, projection."""
    return encoder.proj_out(encoder.final_layer_norm(encoder.mapper(tokens[:, None])))


def embed_references(pipe, references: Tensor) -> Tensor:
    """References [B, 3, h, w] in [0, 1] -> context [B, 1, D']."""
    return context_of(pipe.image_encoder, class_tokens(pipe.image_encoder, reference_pixels(references, pipe)))


def unconditional(encoder: PaintByExampleImageEncoder, batch: int) -> Tensor:
    """The learned vector that stands for no reference, [B, 1, D']."""
    return encoder.uncond_vector.expand(batch, -1, -1)
