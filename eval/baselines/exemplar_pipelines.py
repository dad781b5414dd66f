"""What PIXELS' Table 1 compares with and diffusers has: pipelines that bring weights of their own, and are shown an
exemplar and a binary mask.

IP-Adapter (Ye et al., arXiv 2308.06721): the paper does not say which of its variants it took; this is the plain one of
SD 1.5 on Stable Diffusion's inpainting model. Versatile Diffusion (Xu et al., ICCV 2023) has no masked mode, and the
paper does not say how it was given one: here it draws a variation of the exemplar, which is put into the mask.
Paint-by-Example: Yang et al., CVPR 2023. All as published: 50 steps, at 512 pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.pipelines.deprecated import paint_by_example, versatile_diffusion
from PIL import Image

from common.files import refused_as
from common.model_files import find_folder, inspect_folder
from eval.baselines.shown import ADAPTER

SIDE = 512
Edit = Callable[[Any, Image.Image, Image.Image, Image.Image, torch.Generator], Image.Image]


@dataclass(frozen=True)
class Pretrained:
    """named: the pipeline's class in the folder's index. runs: the class that is run, with further arguments of its
    from_pretrained. adapter: of load_ip_adapter. edit(pipe, source, exemplar, mask, generator) -> picture: one exemplar
    into the white part of the mask; pictures have the pipeline's size."""

    hub_id: str
    named: str
    runs: type
    edit: Edit
    settings: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, str] | None = None

    def load(self, name: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32):
        """The pipeline; InputError for what cannot be loaded. Indices name modules that diffusers has moved: they are
        put back under their old names."""
        diffusers.pipelines.paint_by_example = paint_by_example
        diffusers.pipelines.versatile_diffusion = versatile_diffusion
        classes = {self.named: self.runs}
        folder = find_folder(name or self.hub_id, accepted=classes)
        inspect_folder(folder, classes, ("unet", "vae"))
        with refused_as(f"Cannot load the model in {folder}"):
            pipe = self.runs.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **self.settings)
            if self.adapter:
                pipe.load_ip_adapter(**self.adapter)
                pipe.set_ip_adapter_scale(1.0)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)


def ip_adapter_edit(pipe, source, exemplar, mask, generator) -> Image.Image:
    return pipe(
        prompt="", image=source, mask_image=mask, ip_adapter_image=exemplar, height=source.height, width=source.width,
        num_inference_steps=50, guidance_scale=7.5, strength=1.0, generator=generator,
    ).images[0]  # fmt: skip


def paint_by_example_edit(pipe, source, exemplar, mask, generator) -> Image.Image:
    return pipe(
        image=source, mask_image=mask, example_image=exemplar, height=source.height, width=source.width,
        num_inference_steps=50, guidance_scale=5.0, generator=generator,
    ).images[0]  # fmt: skip


def versatile_diffusion_edit(pipe, source, exemplar, mask, generator) -> Image.Image:
    drawn = pipe(image=exemplar, height=source.height, width=source.width, num_inference_steps=50, guidance_scale=7.5,
                 generator=generator).images[0]  # fmt: skip
    return Image.composite(drawn, source, mask)


UNCHECKED = {"safety_checker": None, "requires_safety_checker": False}
PIPELINES = {
    "paint_by_example": Pretrained(
        "Fantasy-Studio/Paint-by-Example", "PaintByExamplePipeline", paint_by_example.PaintByExamplePipeline,
        paint_by_example_edit, UNCHECKED,
    ),
    "ip_adapter": Pretrained(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "StableDiffusionInpaintPipeline",
        diffusers.StableDiffusionInpaintPipeline, ip_adapter_edit, UNCHECKED,
        ADAPTER,
    ),
    "versatile_diffusion": Pretrained(
        "shi-labs/versatile-diffusion", "VersatileDiffusionPipeline",
        versatile_diffusion.VersatileDiffusionImageVariationPipeline, versatile_diffusion_edit,
    ),
}  # fmt: skip
