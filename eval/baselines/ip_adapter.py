"""IP-Adapter (Ye et al., arXiv 2308.06721) on Stable Diffusion's inpainting model, with published weights.

The paper does not say which of its variants it compared with; this is the plain one of SD 1.5, scale 1, empty prompt.
"""

import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from common.files import refused_as
from common.model_files import find_folder

HUB_ID = "stable-diffusion-v1-5/stable-diffusion-inpainting"
ADAPTER = {"pretrained_model_name_or_path_or_dict": "h94/IP-Adapter", "subfolder": "models",
           "weight_name": "ip-adapter_sd15.safetensors"}  # fmt: skip
CLASSES = {"StableDiffusionInpaintPipeline": StableDiffusionInpaintPipeline}
SIDE = 512


def load(name: str = HUB_ID, device: str = "cpu", dtype: torch.dtype = torch.float32, adapter: dict = ADAPTER):
    """The inpainting pipeline with the adapter at scale 1."""
    folder = find_folder(name, accepted=CLASSES)
    with refused_as(f"Cannot load {name} with its adapter"):
        pipe = StableDiffusionInpaintPipeline.from_pretrained(
            folder, safety_checker=None, requires_safety_checker=False, torch_dtype=dtype, local_files_only=True
        )
        pipe.load_ip_adapter(**adapter)
    pipe.set_ip_adapter_scale(1.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def edit(
    pipe, source: Image.Image, exemplar: Image.Image, mask: Image.Image, generator: torch.Generator
) -> Image.Image:
    """One exemplar into the white part of the mask; 50 steps, guidance 7.5."""
    return pipe(
        prompt="", image=source, mask_image=mask, ip_adapter_image=exemplar, height=source.height, width=source.width,
        num_inference_steps=50, guidance_scale=7.5, strength=1.0, generator=generator,
    ).images[0]  # fmt: skip
