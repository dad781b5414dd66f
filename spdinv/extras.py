"""What SPDInv's released code adds to its inversion, each by itself, so that what each explains can be measured: the
source prompt as unconditional text, proximal and inversion guidance (inversions/proximal.py), and a colour fix.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from common.pipelines import Conditioning, encode_prompt
from common.runs import InputError
from spdinv.inversions import negative_prompt
from spdinv.inversions.proximal import step as proximal_step
from spdinv.inversions.result import Inversion


def apply(
    pipe: DiffusionPipeline, inversion: Inversion, cond: Conditioning, engine: str, *,
    negative_prompt_embedding: bool = False, proximal: bool = False, inversion_guidance: bool = False, **settings,
) -> Inversion:  # fmt: skip
    """The same inversion, with unconditional embeddings and a sampling step as the switches say.

    cond: the source prompt, one item. engine: for masactrl, as released, only the source branch gets the source prompt
    (the target keeps the null text), and only the target branch is thresholded. settings: presets.PROXIMAL_SETTINGS.
    An inversion's own unconditional embeddings give way to the source prompt; the settings of ProxEdit's step to these.
    Raises InputError where the inversion's sampling step is not a guided step.
    """
    if negative_prompt_embedding:
        inversion = negative_prompt.with_source_prompt(pipe, inversion, cond)
        if engine == "masactrl":  # a second, target, branch
            null, embeds, pooled = encode_prompt(pipe, [""]), inversion.uncond_embeds, inversion.uncond_pooled
            embeds = torch.cat([embeds, null.embeds.expand_as(embeds)], dim=1)
            pooled = None if pooled is None else torch.cat([pooled, null.added["text_embeds"]])
            inversion = replace(inversion, uncond_embeds=embeds, uncond_pooled=pooled)
    if proximal or inversion_guidance:
        if inversion.step is not None and getattr(inversion.step, "func", None) is not proximal_step:
            raise InputError("this inversion samples in its own way: leave out --proximal and --inversion_guidance.")
        settings = {name.removeprefix("proximal_"): value for name, value in settings.items()}
        settings |= {} if proximal else {"mode": "none"}
        branches, guidance = "target" if engine == "masactrl" else "all", "inversion" if inversion_guidance else "none"
        inversion = replace(inversion, step=partial(proximal_step, branches=branches, guidance=guidance, **settings))
    return inversion


def blur(picture: torch.Tensor, radius: int) -> torch.Tensor:
    """picture [B,3,H,W] with the kernel [1 2 1] x [1 2 1] / 16, its places `radius` apart; edges are repeated."""
    line = picture.new_tensor([1.0, 2.0, 1.0]) / 4
    kernel = (line[:, None] * line).expand(picture.shape[1], 1, 3, 3)
    padded = F.pad(picture, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, dilation=radius, groups=picture.shape[1])


def color_fix(picture: torch.Tensor, source: torch.Tensor, levels: int = 5) -> torch.Tensor:
    """`picture` [1,3,H,W] in [0,1] with the low frequencies of `source`, as the released Plug-and-Play script does it
    (a wavelet transform with holes: each level blurs with radius 2^level, and what the blur takes away is its detail).
    """
    low, wanted = picture, source
    for level in range(levels):
        low, wanted = blur(low, 2**level), blur(wanted, 2**level)
    return (picture - low + wanted).clamp(0, 1)  # picture - low: all details together
