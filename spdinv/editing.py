"""From a picture and two prompts to the edited picture: encode, invert, edit, decode."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from common.ddim import Schedule, make_schedule
from common.images import as_rgb, center_crop_resize, to_pil, to_tensor
from common.pipelines import decode_latents, encode_image, encode_prompt, native_resolution
from common.runs import InputError
from spdinv import extras
from spdinv.attention_maps import Recorder
from spdinv.engines import ENGINES
from spdinv.engines.attention import hooked, layers
from spdinv.inversions import INVERSIONS
from spdinv.inversions.result import Inversion
from spdinv.options import Method


@dataclass(frozen=True, eq=False)
class Edit:
    """reconstruction: the source branch, decoded, [1,3,H,W] in [0,1]. edited: the target branch, None for engine
    "none". latents: those that were inverted, [1,4,h,w]; reconstructed_latents: where the source branch came out."""

    reconstruction: torch.Tensor
    edited: torch.Tensor | None
    inversion: Inversion
    latents: torch.Tensor
    reconstructed_latents: torch.Tensor

    @property
    def latent_mse(self) -> float:
        return (self.latents - self.reconstructed_latents).square().mean().item()


def edit(
    pipe: DiffusionPipeline, picture: Image.Image, source_prompt: str, target_prompt: str, method: Method | None = None
) -> Image.Image:
    """The central square of a picture of any size and mode, edited, at the model's own resolution. method: SPDInv under
    Prompt-to-Prompt by default. Raises InputError as edit_picture does."""
    square = center_crop_resize(as_rgb(picture), native_resolution(pipe))
    method = method or Method()
    return to_pil(edit_picture(pipe, to_tensor(square).to(pipe.device), source_prompt, target_prompt, method).edited)


@torch.no_grad()
def edit_picture(
    pipe: DiffusionPipeline, picture: torch.Tensor, source_prompt: str, target_prompt: str | None, method: Method,
    recorder: Recorder | None = None, inversion: Inversion | None = None,
) -> Edit:  # fmt: skip
    """Invert `picture` [1,3,H,W] in [0,1] under the source prompt, and draw it anew with the target prompt.

    recorder: sees the cross-attention maps of the drawing. inversion: Edit.inversion of a method that differs in engine
    and extras alone, on the same picture; else one is made. Raises InputError where the model, the prompts and the
    method's options do not fit together, before the inversion is paid for.
    """
    schedule = make_schedule(pipe.scheduler, method.num_inference_steps)
    fine = make_schedule(pipe.scheduler, method.inversion_steps or method.num_inference_steps)
    if not set(schedule.timesteps) <= set(fine.timesteps):
        raise InputError(f"an inversion of {method.inversion_steps} steps does not pass all timesteps of "
                         f"{method.num_inference_steps} sampling steps: take a multiple of these, or 999")  # fmt: skip
    latents = encode_image(pipe, picture).float()
    prompts = [source_prompt] if method.engine == "none" else [source_prompt, target_prompt]
    engine = ENGINES[method.engine]
    engine.check(pipe, prompts, method.num_inference_steps, latents.shape[-2:], **method.engine_options)
    cond = encode_prompt(pipe, [source_prompt])  # once for the whole inversion
    if inversion is None:
        inversion = INVERSIONS[method.inversion](pipe, fine, latents, cond, **method.inversion_options)
        inversion = thin(inversion, fine, schedule)
    switches = {name: value for name, value in method.extras.items() if name != "color_fix"}
    adapted = extras.apply(pipe, inversion, cond, method.engine, **switches)
    with hooked(pipe.unet, recorder, layers(pipe.unet, "attn2")) if recorder else nullcontext():
        z = engine(pipe, schedule, adapted, prompts, method.guidance_scale, **method.engine_options)
    pictures = decode_latents(pipe, z)
    edited = pictures[1:] if len(prompts) > 1 else None
    if method.extras.get("color_fix") and edited is not None:
        edited = extras.color_fix(edited, picture.to(edited))
    return Edit(pictures[:1], edited, inversion, latents, z[:1])


def thin(inversion: Inversion, fine: Schedule, schedule: Schedule) -> Inversion:
    """Of an inversion over the steps of `fine` the levels that the sampler of `schedule` visits; the rounds in between
    are added up. (Plug-and-Play inverts in 999 steps and samples in 50.)"""
    if fine.timesteps == schedule.timesteps:
        return inversion
    levels = [0, *(1 + fine.timesteps[::-1].index(t) for t in schedule.timesteps[::-1])]
    rounds = torch.stack([inversion.rounds[low:high].sum(0) for low, high in pairwise(levels)])
    return replace(inversion, trajectory=inversion.trajectory[levels], rounds=rounds)
