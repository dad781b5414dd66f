"""Negative-prompt inversion (NPI, arXiv 2305.16807): DDIM inversion, and the source prompt in the place of "".

Guidance then adds a multiple of eps(source) - eps(source) = 0 to the source branch: it is drawn at scale 1, whatever
the scale.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline

from common.ddim import Schedule, slerp
from common.pipelines import Conditioning, encode_prompt
from spdinv.inversions import ddim
from spdinv.inversions.result import Inversion


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning, interpolation: float = 0.0
) -> Inversion:
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`; see with_source_prompt for interpolation."""
    return with_source_prompt(pipe, ddim.invert(pipe, schedule, latents, cond), cond, interpolation)


def with_source_prompt(
    pipe: DiffusionPipeline, inversion: Inversion, cond: Conditioning, interpolation: float = 0.0
) -> Inversion:
    """The same inversion with the source prompt as the unconditional one, in every branch and step. cond: source
    prompts of the B inverted pictures. interpolation: 0 the source prompt, 1 the null text, between them on the arc
    (slerp of the whole embedding; ProxEdit's npi_interp). SDXL's pooled text goes the same way."""
    uncond, pooled = cond.embeds, cond.added and cond.added["text_embeds"]
    if interpolation > 0:
        null = encode_prompt(pipe, [""])[[0] * len(cond)]
        uncond = slerp(interpolation, uncond.float(), null.embeds.float())
        if pooled is not None:
            pooled = slerp(interpolation, pooled.float(), null.added["text_embeds"].float())
    steps = len(inversion.trajectory) - 1
    return replace(inversion, uncond_embeds=uncond.expand(steps, -1, -1, -1), uncond_pooled=pooled)
