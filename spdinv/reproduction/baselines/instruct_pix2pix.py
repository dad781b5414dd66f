"""InstructPix2Pix (CVPR 2023, arXiv 2211.09800): a model trained to follow instructions. Table 2's InstructP2P.

It needs weights of its own, timbrooks/instruct-pix2pix: its UNet sees the picture beside the latents.
"""

import os

import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

from common.model_files import find_folder, load_whole

MODEL = "timbrooks/instruct-pix2pix"


def load_instruct_pix2pix(
    name: str | os.PathLike = MODEL, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionInstructPix2PixPipeline:
    """A local folder or a hub id, loaded with the care of common.pipelines.load_pipeline; the sampler is the published
    one. Raises InputError for anything that is not such a model, or not whole."""
    accepted = {StableDiffusionInstructPix2PixPipeline.__name__: StableDiffusionInstructPix2PixPipeline}
    pipe = load_whole(
        find_folder(str(name), accepted=accepted), accepted, dtype=dtype, safety_checker=None,
        requires_safety_checker=False, feature_extractor=None, image_encoder=None,
    )  # fmt: skip
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(leave=False, disable=None)
    return pipe.to(device)


@torch.no_grad()
def edit(
    pipe: DiffusionPipeline, picture: torch.Tensor, instruction: str, num_inference_steps: int = 100,
    guidance_scale: float = 7.5, image_guidance_scale: float = 1.5, seed: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Follow `instruction` ("turn the cat white") on `picture` [1,3,H,W] in [0,1]; returns such a picture. The defaults
    are those of the released script. Three predictions are combined (Eq. 3 there): eps(z, 0, 0) + image_guidance_scale
    (eps(z, picture, 0) - eps(z, 0, 0)) + guidance_scale (eps(z, picture, text) - eps(z, picture, 0))."""
    return pipe(
        prompt=instruction, image=picture, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
        image_guidance_scale=image_guidance_scale, generator=torch.Generator().manual_seed(seed), output_type="pt",
    ).images.float()  # fmt: skip
