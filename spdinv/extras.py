"""What SPDInv's released code adds to its inversion, each by itself: the source prompt as unconditional text, proximal
and inversion guidance (the formulas are those of inversions/proximal.py), and a colour fix of the edited picture.

They act on an inversion once it is done, whichever it is, so that what each explains can be measured.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline

from common.pipelines import Conditioning, encode_prompt
from common.runs import InputError
from spdinv.inversions import direct, negative_prompt, proximal
from spdinv.inversions.result import Inversion


def apply(
    pipe: DiffusionPipeline,
    inversion: Inversion,
    cond: Conditioning,
    engine: str,
    *,
    negative_prompt_embedding: bool = False,
    proximal: bool = False,
    proximal_mode: str = "soft",
    proximal_quantile: float = 0.7,
    inversion_guidance: bool = False,
    proximal_recon_lr: float = 1.0,
    proximal_recon_t: int = 400,
    proximal_dilation: int = 1,
) -> Inversion:
    """The same inversion, with unconditional embeddings and a sampling step as the switches say.

    cond: the source prompt, one item. engine: for masactrl, as released, only the source branch gets the source prompt
    (the target keeps the null text), and only the target branch is thresholded. Settings: see proximal.step.
    An inversion's own unconditional embeddings give way to the source prompt; the settings of ProxEdit's step to these.
    Direct Inversion's corrections are for a plain guided step; on another the source branch is held without them.
    Raises InputError where the inversion's sampling step is not a guided step.
    """
    corrected = inversion.corrections is not None and engine != "pnp"  # pnp has no source branch to correct
    if negative_prompt_embedding:
        inversion = with_source_prompt(pipe, inversion, cond, source_only=engine == "masactrl")
    if proximal or inversion_guidance:
        step = proximal_step(
            inversion,
            mode=proximal_mode if proximal else "none",
            quantile=proximal_quantile,
            branches="target" if engine == "masactrl" else "all",
            guidance="inversion" if inversion_guidance else "none",
            recon_lr=proximal_recon_lr,
            recon_t=proximal_recon_t,
            dilation=proximal_dilation,
        )
        inversion = replace(inversion, step=step)
    return direct.hold(inversion) if corrected and (negative_prompt_embedding or proximal) else inversion


def with_source_prompt(
    pipe: DiffusionPipeline, inversion: Inversion, cond: Conditioning, source_only: bool
) -> Inversion:
    """negative_prompt.with_source_prompt; source_only: with the null text for a second, target, branch."""
    inversion = negative_prompt.with_source_prompt(pipe, inversion, cond)
    if not source_only:
        return inversion
    null, steps = encode_prompt(pipe, [""]), len(inversion.trajectory) - 1
    embeds = torch.cat([inversion.uncond_embeds, null.embeds.expand(steps, 1, -1, -1)], dim=1)
    pooled = inversion.uncond_pooled
    if pooled is not None:
        pooled = torch.cat([pooled, null.added["text_embeds"]])
    return replace(inversion, uncond_embeds=embeds, uncond_pooled=pooled)


def proximal_step(inversion: Inversion, **settings):
    if inversion.step is not None and getattr(inversion.step, "func", None) is not proximal.step:
        raise InputError("this inversion samples in its own way: leave out --proximal and --inversion_guidance.")
    return partial(proximal.step, **settings)


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
