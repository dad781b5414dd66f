"""Paint-by-Example (Yang et al., CVPR 2023) with its published weights, through diffusers."""

import diffusers
import torch
from diffusers.pipelines.deprecated import paint_by_example as module
from PIL import Image

from common.files import refused_as
from common.model_files import find_folder, inspect_folder

HUB_ID = "Fantasy-Studio/Paint-by-Example"
CLASSES = {"PaintByExamplePipeline": module.PaintByExamplePipeline}
SIDE = 512  # it was trained at


def load(name: str = HUB_ID, device: str = "cpu", dtype: torch.dtype = torch.float32):
    """The pipeline, frozen. Its index names a module that diffusers has moved; it is put back under the old name."""
    diffusers.pipelines.paint_by_example = module
    folder = find_folder(name, accepted=CLASSES)
    inspect_folder(folder, CLASSES, ("unet", "vae"))
    with refused_as(f"Cannot load the model in {folder}"):
        pipe = module.PaintByExamplePipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, torch_dtype=dtype, local_files_only=True
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def edit(
    pipe, source: Image.Image, exemplar: Image.Image, mask: Image.Image, generator: torch.Generator
) -> Image.Image:
    """One exemplar into the white part of the mask, 50 steps and guidance 5 as published. Sizes are the caller's."""
    return pipe(
        image=source, mask_image=mask, example_image=exemplar, height=source.height, width=source.width,
        num_inference_steps=50, guidance_scale=5.0, generator=generator,
    ).images[0]  # fmt: skip
