"""Versatile Diffusion (Xu et al., ICCV 2023) with its published weights.

It has no masked mode, and the paper does not say how it was given one. Here it draws a variation of the exemplar, which
is put into the masked part of the source.
"""

import diffusers
import torch
from diffusers.pipelines.deprecated import versatile_diffusion as module
from PIL import Image

from common.files import refused_as
from common.model_files import find_folder

HUB_ID = "shi-labs/versatile-diffusion"
CLASSES = {"VersatileDiffusionPipeline": module.VersatileDiffusionPipeline}
SIDE = 512


def load(name: str = HUB_ID, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """The image-variation part of the pipeline. Its index names a module that diffusers has moved."""
    diffusers.pipelines.versatile_diffusion = module
    folder = find_folder(name, accepted=CLASSES)
    with refused_as(f"Cannot load the model in {folder}"):
        pipe = module.VersatileDiffusionImageVariationPipeline.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def edit(
    pipe, source: Image.Image, exemplar: Image.Image, mask: Image.Image, generator: torch.Generator
) -> Image.Image:
    """A variation of the exemplar in the white part of the mask; 50 steps, guidance 7.5."""
    drawn = pipe(image=exemplar, height=source.height, width=source.width, num_inference_steps=50, guidance_scale=7.5,
                 generator=generator).images[0]  # fmt: skip
    return Image.composite(drawn, source, mask)
