"""From a picture and two prompts to the edited picture: encode, invert, edit, decode."""

from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from common.ddim import make_schedule
from common.pipelines import decode_latents, encode_image, encode_prompt
from spdinv.engines import ENGINES, p2p
from spdinv.inversions import INVERSIONS, Inversion
from spdinv.options import Method


@dataclass(frozen=True, eq=False)
class Edit:
    """reconstruction: the source branch, decoded, [1,3,H,W] in [0,1]. edited: the target branch, None for engine
    "none". latents: the clean latents that were inverted, [1,4,h,w]; reconstructed_latents: where the source branch
    came out."""

    reconstruction: torch.Tensor
    edited: torch.Tensor | None
    inversion: Inversion
    latents: torch.Tensor
    reconstructed_latents: torch.Tensor

    @property
    def latent_mse(self) -> float:
        return (self.latents - self.reconstructed_latents).square().mean().item()


@torch.no_grad()
def edit_picture(
    pipe: DiffusionPipeline, picture: torch.Tensor, source_prompt: str, target_prompt: str | None, method: Method
) -> Edit:
    """Invert `picture` [1,3,H,W] in [0,1] under the source prompt, and draw it anew with the target prompt.

    Raises InputError where the model, the prompts and the method's options do not fit together; prompts are checked
    before the inversion is paid for.
    """
    schedule = make_schedule(pipe.scheduler, method.num_inference_steps)
    latents = encode_image(pipe, picture).float()
    prompts = [source_prompt] if method.engine == "none" else [source_prompt, target_prompt]
    if method.engine == "p2p":
        p2p.PromptToPrompt(pipe, prompts, method.num_inference_steps, latents.shape[-2:], **method.engine_options)
    cond = encode_prompt(pipe, [source_prompt])  # once for the whole inversion
    inversion = INVERSIONS[method.inversion](pipe, schedule, latents, cond, **method.inversion_options)
    z = ENGINES[method.engine](pipe, schedule, inversion, prompts, method.guidance_scale, **method.engine_options)
    pictures = decode_latents(pipe, z)
    return Edit(pictures[:1], pictures[1:] if len(prompts) > 1 else None, inversion, latents, z[:1])
