"""What a micro-step sees: latents of instance and class pictures, conditioning, and the mask of Custom Diffusion."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL.Image import Resampling
from torch import Tensor

from common.images import list_pictures, load_image
from common.pipelines import Conditioning
from common.runs import measure
from common.training import generate_class_pictures, load_pictures, picture_batch, picture_indices, step_generator
from lipschitz_personalize.objectives import backbone_of, encode_pictures, encode_text

SMALL, LARGE = ("a far away ", "very small "), ("zoomed in ", "close up ")  # of Custom Diffusion's augmentation
CLASS_SEED = 2**62  # added to the seed: class pictures come in an order of their own


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures of one kind with their prompts, of which each picture of a batch gets one at random.

    conditioning, latents: where they can be made once, else None. masked: the loss is Custom Diffusion's, inside of a
    mask; augmented: that mask may be smaller than the picture. sizes: (height, width) of the files, where SDXL is told.
    """

    paths: list[Path]
    pictures: list[Tensor]
    prompts: list[str]
    seed: int
    conditioning: Conditioning | None
    latents: Tensor | None
    masked: bool
    augmented: bool
    sizes: list[tuple[int, int]] | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """latents [B,C,h,w], cond of B; the first `instances` of B show the subject, mask [instances,1,h,w] or None."""

    latents: Tensor
    cond: Conditioning
    mask: Tensor | None
    instances: int


def sources(pipe, args: argparse.Namespace, paths: list[Path], trains_text: bool) -> list[Source]:
    """The subject's pictures, and with prior preservation the class pictures of --class_data_dir, which are never
    squashed. The subject's are resized as by the script whose settings these are."""
    own_prompts = getattr(args, "instance_prompts", None) or [args.instance_prompt]  # several: Textual Inversion
    found = [(paths, own_prompts, args.seed, args.parameter_space == "custom_diffusion")]
    if args.with_prior_preservation:
        theirs = list_pictures(args.class_data_dir)
        found.append((theirs, [args.class_prompt], (args.seed + CLASS_SEED) % 2**63, False))
    sdxl_lora = (backbone_of(pipe), args.parameter_space) == ("sdxl", "lora")
    squashed_by = Resampling.BILINEAR if args.parameter_space == "custom_diffusion" else Resampling.BICUBIC
    resample = Resampling.LANCZOS if sdxl_lora else squashed_by if args.squash else Resampling.BILINEAR
    made = []
    for paths, prompts, seed, masked in found:
        own, augmented, latents = not made, masked and args.augment, None
        pictures = load_pictures(paths, args.resolution, *((args.squash or augmented, resample) if own else ()))
        if args.cache_latents and not augmented:
            generators = [step_generator(seed, number, 1) for number in range(len(pictures))]
            squares = [cut(args, pictures, [number], generator) for number, generator in enumerate(generators)]
            latents = torch.cat([encode_pictures(pipe, *pair) for pair in zip(squares, generators, strict=True)])
        with torch.no_grad():
            cond = None if trains_text or len(prompts) > 1 else encode_text(pipe, prompts, args.resolution)
        told = own and sdxl_lora and latents is None
        sizes = [load_image(path).size[::-1] for path in paths] if told else None
        made.append(Source(paths, pictures, prompts, seed, cond, latents, masked, augmented, sizes))
    return made


def cut(args: argparse.Namespace, pictures: list[Tensor], indices: list[int], generator: torch.Generator, corners=None):
    return picture_batch(pictures, indices, args.resolution, generator, args.center_crop, args.random_flip, corners)


def placed(cond: Conditioning, sizes: list[tuple[int, int]], corners: list[tuple[int, int]]) -> Conditioning:
    """SDXL's conditioning that tells of each picture how large its file is and where it was cut."""
    ids = cond.added["time_ids"].clone()
    ids[:, :4] = torch.tensor([[*size, *corner] for size, corner in zip(sizes, corners, strict=True)]).to(ids)
    return Conditioning(cond.embeds, cond.added | {"time_ids": ids})


def next_batch(
    pipe, args: argparse.Namespace, given: list[Source], step: int, micro: int, accelerator, generator: torch.Generator
) -> Batch:
    """The pictures of a micro-step, --train_batch_size of each source; all that is random comes from the generator."""
    latents, conds, mask = [], [], None
    for source in given:
        indices = picture_indices(len(source.pictures), args.train_batch_size, source.seed, step, micro,
                                  args.gradient_accumulation_steps, accelerator.process_index,
                                  accelerator.num_processes)  # fmt: skip
        prefixes, corners = [""] * len(indices), []
        if source.latents is not None:
            latents.append(source.latents[indices])
        else:
            pictures = cut(args, source.pictures, indices, generator, corners)
            if source.augmented:
                changed = [augment(picture, pipe.vae_scale_factor, generator) for picture in pictures]
                pictures = torch.stack([picture for picture, _, _ in changed])
                mask = torch.stack([inside for _, inside, _ in changed]).to(pipe.device)
                prefixes = [prefix for _, _, prefix in changed]
            latents.append(encode_pictures(pipe, pictures, generator))
        if source.masked and mask is None:  # the same loss without augmentation: all of the picture counts
            mask = torch.ones_like(latents[-1][:, :1])
        if source.conditioning is not None and not any(prefixes):
            cond = source.conditioning[[0] * len(indices)]
            conds.append(placed(cond, [source.sizes[i] for i in indices], corners) if source.sizes else cond)
            continue
        picked = [0] * len(indices)
        if len(source.prompts) > 1:
            picked = torch.randint(len(source.prompts), (len(indices),), generator=generator)
        told = [prefix + source.prompts[place] for prefix, place in zip(prefixes, picked, strict=True)]
        conds.append(encode_text(pipe, told, args.resolution))
    return Batch(torch.cat(latents), Conditioning.cat(*conds), mask, len(latents[0]))


def ensure_class_pictures(pipe, args: argparse.Namespace, accelerator) -> float:
    """Draw what is missing in --class_data_dir (the run's own folder by default); returns the seconds it took."""
    if not args.with_prior_preservation:
        return 0.0
    args.class_data_dir = args.class_data_dir or str(Path(args.output_dir) / "class_pictures")
    with measure() as cost:
        generate_class_pictures(
            pipe, args.class_prompt, args.class_data_dir, args.num_class_images, args.resolution,
            args.sample_batch_size, args.seed, accelerator.process_index, accelerator.num_processes,
            guidance_scale=args.guidance_scale, num_inference_steps=args.num_inference_steps,
        )  # fmt: skip
        accelerator.wait_for_everyone()
    return cost.seconds


# -------------------------------------------------------------------------------------- Custom Diffusion's augmentation


def augment(picture: Tensor, factor: int, generator: torch.Generator) -> tuple[Tensor, Tensor, str]:
    """A square picture [3,S,S] in [0,1], shrunk onto grey or zoomed into -> (picture, mask [1,S/factor,S/factor] of
    latents that count, words that say so, to stand before the prompt).

    In two of three cases the scale is S/3 to S, else 1.2 S to 1.4 S, an even number. Under 0.6 S the picture is pasted
    somewhere on grey, and the loss counts inside of it only, less one latent cell all around; over S a random part is
    cut out; in between nothing is changed. (Released code, which scales the file's own pixels, not the training's.)
    """

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    size = picture.shape[-1]
    mask = torch.ones(1, size // factor, size // factor)
    down = torch.rand((), generator=generator) < 2 / 3
    low, high = (size // 3, size) if down else (int(1.2 * size), int(1.4 * size))
    scale = integer(low, high)
    scale += scale % 2
    if 0.6 * size <= scale <= size:
        return picture, mask, ""
    resized = F.interpolate(picture[None], (scale, scale), mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (integer(0, abs(size - scale)) for _ in range(2))
    if scale > size:
        return resized[:, top : top + size, left : left + size], mask, LARGE[integer(0, 1)]
    canvas = torch.full_like(picture, 0.5)
    canvas[:, top : top + scale, left : left + scale] = resized
    rows, columns = (_inner(start, scale, factor) for start in (top, left))
    mask.zero_()[:, rows, columns] = 1
    return canvas, mask, SMALL[integer(0, 1)]


def _inner(start: int, length: int, factor: int) -> slice:
    """The latent cells of start … start + length without the outermost ones, unless nothing would be left."""
    first, last = start // factor, (start + length) // factor
    return slice(first + 1, last - 1) if last - first > 2 else slice(first, max(last, first + 1))
