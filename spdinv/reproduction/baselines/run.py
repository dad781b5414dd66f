"""Table 2's baselines on PIE-Bench items: their flags, their models, and rows like those of the inversions."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.runs import InputError, measure
from spdinv.reproduction.items import Bench, square_mask

# Names in result rows, and the flags that name their models; the published settings are each function's defaults.
BASELINES = {
    "blended_diffusion": ("unconditional_model", "guiding_clip"),
    "instruct_pix2pix": ("instruct_pix2pix",),
    "elite": ("elite",),
}


@dataclass(frozen=True)
class Baseline:
    """A baseline and the models it needs, as config.json keeps them."""

    name: str
    models: dict[str, Any] = field(default_factory=dict)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("baselines that invert nothing (paper, Table 2)").add_argument
    add("--baselines", nargs="+", choices=tuple(BASELINES), default=[], help="run these too")
    add("--unconditional_model", metavar="PATH",
        help="of blended_diffusion: OpenAI's 256x256_diffusion_uncond.pt, or a folder with a UNet2DModel")  # fmt: skip
    add("--guiding_clip", default="openai/clip-vit-base-patch16", help="of blended_diffusion")
    add("--instruct_pix2pix", default="timbrooks/instruct-pix2pix", help="folder or hub id of its weights")


def chosen(args: argparse.Namespace) -> dict[str, Baseline]:
    """The baselines that the flags ask for, by name. Raises InputError where one lacks its model."""
    if "blended_diffusion" in args.baselines and not args.unconditional_model:
        raise InputError("baseline blended_diffusion needs its model of pixels: give --unconditional_model")
    if args.unconditional_model and not Path(args.unconditional_model).exists():
        raise InputError(f"--unconditional_model {args.unconditional_model} does not exist; give a file or folder")
    if "elite" in args.baselines and not args.elite:
        raise InputError("baseline elite needs ELITE's weights: give --elite")
    return {name: Baseline(name, {flag: getattr(args, flag) for flag in BASELINES[name]}) for name in args.baselines}


def load(args: argparse.Namespace, pipe, elite) -> dict[str, Callable]:
    """By name: draw(item, picture [1,3,H,W] in [0,1], mask [1,1,H,W]) -> edited picture of the same shape.

    pipe: the Stable Diffusion at hand. elite: what customised.load gave, with its subject added by the caller.
    """
    import torch.nn.functional as F

    from common.encoders import load_clip
    from spdinv.customised.elite import trained_key_values
    from spdinv.reproduction.baselines import blended_diffusion, from_noise, guided_diffusion, instruct_pix2pix

    def from_elite(item, picture, mask):
        with trained_key_values(pipe, elite, args.elite):
            return from_noise.draw(pipe, item.target_prompt, resolution=picture.shape[-1], seed=args.seed)

    draws = {"elite": from_elite}
    if "blended_diffusion" in args.baselines:
        unet, alpha_bar = guided_diffusion.load_unconditional(args.unconditional_model, pipe.device)
        clip = load_clip(args.guiding_clip, args.device)

        def pixels(item, picture, mask):
            side = (unet.config.sample_size,) * 2  # the model's own size, there and back
            small = F.interpolate(picture, side, mode="bicubic", antialias=True).clamp(0, 1)
            mask = F.interpolate(mask, side, mode="nearest-exact")
            edited = blended_diffusion.edit(unet, alpha_bar, clip, small, mask, item.target_prompt, seed=args.seed)
            return F.interpolate(edited, picture.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)

        draws["blended_diffusion"] = pixels
    if "instruct_pix2pix" in args.baselines:
        instructed = instruct_pix2pix.load_instruct_pix2pix(args.instruct_pix2pix, pipe.device, pipe.unet.dtype)

        def instruction(item, picture, mask):
            if not item.instruction:
                raise InputError(f"item {item.id} has no editing_instruction, which instruct_pix2pix follows; add it")
            return instruct_pix2pix.edit(instructed, picture, item.instruction, seed=args.seed)

        draws["instruct_pix2pix"] = instruction
    return {name: draws[name] for name in args.baselines}


def run_item(bench: Bench, item, draw: Callable, name: str):
    """(row, pictures) as items.run_item gives them, for one baseline; there is no reconstruction among the pictures."""
    from common.images import to_pil

    image, picture = bench.square(item)
    with measure() as cost:
        edited = draw(item, picture, square_mask(item, picture.shape[-2:]).to(picture.device))
    pictures = {"source": image, "edited": to_pil(edited)}
    return bench.row(item, name, pictures, cost.seconds, cost.peak_memory_mb, float("nan")), pictures
