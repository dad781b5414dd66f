"""Table 2's baselines on PIE-Bench items: their flags and their models. Imports nothing heavy before it is needed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from common.runs import InputError

# Names in result rows, and the flags that name their models; the published settings are each function's defaults.
BASELINES = {"blended_diffusion": ("unconditional_model", "guiding_clip"), "instruct_pix2pix": ("instruct_pix2pix",),
             "elite": ("elite",)}  # fmt: skip
REFERENCES = ("truth", "truth_vae", "source")  # the true edit, the same through the VAE, nothing done


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("baselines that invert nothing (paper, Table 2)").add_argument
    add("--baselines", nargs="+", choices=(*BASELINES, *REFERENCES), default=[], help="run these too; truth, truth_vae "
        "and source are what scores stand beside: the true edit, the same through the VAE, nothing done")  # fmt: skip
    add("--unconditional_model", metavar="PATH",
        help="of blended_diffusion: OpenAI's 256x256_diffusion_uncond.pt, or a folder with a UNet2DModel")  # fmt: skip
    add("--guiding_clip", default="openai/clip-vit-base-patch16", help="of blended_diffusion")
    add("--instruct_pix2pix", default="timbrooks/instruct-pix2pix", help="folder or hub id of its weights")


def chosen(args: argparse.Namespace) -> dict[str, SimpleNamespace]:
    """By name, for config.json, the baselines that the flags ask for, and the models that each needs. Raises InputError
    where one lacks its model."""
    if "blended_diffusion" in args.baselines and not args.unconditional_model:
        raise InputError("baseline blended_diffusion needs its model of pixels: give --unconditional_model")
    if args.unconditional_model and not Path(args.unconditional_model).exists():
        raise InputError(f"--unconditional_model {args.unconditional_model} does not exist; give a file or folder")
    if "elite" in args.baselines and not args.elite:
        raise InputError("baseline elite needs ELITE's weights: give --elite")
    return {name: SimpleNamespace(name=name, models={flag: getattr(args, flag) for flag in BASELINES.get(name, ())})
            for name in args.baselines}  # fmt: skip


def load(args: argparse.Namespace, pipe, elite, folder: Path) -> dict[str, Callable]:
    """By name: draw(item, picture [1,3,H,W] in [0,1], mask [1,1,H,W]) -> edited picture of the same shape. pipe: the
    Stable Diffusion at hand. elite: what customised.load gave, with its subject added by the caller. folder: of the
    items."""
    import torch.nn.functional as F

    from common.encoders import load_clip
    from common.images import load_image, to_tensor
    from common.pipelines import decode_latents, encode_image
    from spdinv.customised.elite import trained_key_values
    from spdinv.reproduction.baselines import blended_diffusion, guided_diffusion, instruct_pix2pix

    def from_elite(item, picture, mask):
        with trained_key_values(pipe, elite, args.elite):
            return from_noise(pipe, item.target_prompt, resolution=picture.shape[-1], seed=args.seed)

    def truth(item, picture, mask):
        if "truth_path" not in item.extras:
            raise InputError(f"item {item.id} has no true edit: leave out --baselines truth and truth_vae")
        return to_tensor(load_image(folder / item.extras["truth_path"])).to(picture)

    def through_the_vae(item, picture, mask):
        return decode_latents(pipe, encode_image(pipe, truth(item, picture, mask)))

    draws = {"elite": from_elite, "truth": truth, "truth_vae": through_the_vae,
             "source": lambda item, picture, mask: picture}  # fmt: skip
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


def from_noise(pipe, prompt: str, num_inference_steps=100, guidance_scale=5.0, resolution: int | None = None, seed=0):
    """Table 2's row ELITE: a customised model as it is used without an inversion. A prompt drawn from random noise,
    [1,3,H,W] in [0,1], by diffusers' own pipeline, with the sampler and the settings of ELITE's script."""
    import torch
    from diffusers import LMSDiscreteScheduler

    from common.pipelines import native_resolution

    scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    own = type(pipe)(**{**pipe.components, "scheduler": scheduler}, requires_safety_checker=False)
    own.set_progress_bar_config(leave=False, disable=None)
    side = (resolution or native_resolution(pipe)) // pipe.vae_scale_factor
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(pipe.device, pipe.dtype)
    drawn = own(prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, latents=noise,
                output_type="pt").images  # fmt: skip
    return drawn.float()
