"""What a micro-step sees: latents of instance and class pictures, conditioning, and the mask of Custom Diffusion."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.images import list_pictures
from common.pipelines import Conditioning
from common.runs import measure
from common.training import generate_class_pictures, load_pictures, picture_batch, picture_indices, step_generator
from lipschitz_personalize.augmentation import augment
from lipschitz_personalize.objectives import encode_pictures, encode_text

CLASS_SEED = 2**62  # added to the seed: class pictures come in an order of their own


@dataclass(frozen=True, eq=False)
class Source:
    """Pictures of one kind with their prompts, of which each picture of a batch gets one at random.

    conditioning, latents: where they can be made once, else None. masked: the loss is Custom Diffusion's, inside of a
    mask; augmented: that mask may be smaller than the picture.
    """

    paths: list[Path]
    pictures: list[Tensor]
    prompts: list[str]
    seed: int
    conditioning: Conditioning | None
    latents: Tensor | None
    masked: bool
    augmented: bool


@dataclass(frozen=True, eq=False)
class Batch:
    """latents [B,C,h,w], cond of B; the first `instances` of B show the subject, mask [instances,1,h,w] or None."""

    latents: Tensor
    cond: Conditioning
    mask: Tensor | None
    instances: int


def sources(pipe, args: argparse.Namespace, paths: list[Path], trains_text: bool) -> list[Source]:
    """The subject's pictures, and with prior preservation the class pictures of --class_data_dir."""
    own_prompts = getattr(args, "instance_prompts", None) or [args.instance_prompt]  # several: Textual Inversion
    found = [(paths, own_prompts, args.seed, args.parameter_space == "custom_diffusion")]
    if args.with_prior_preservation:
        theirs = list_pictures(args.class_data_dir)
        found.append((theirs, [args.class_prompt], (args.seed + CLASS_SEED) % 2**63, False))
    made = []
    for paths, prompts, seed, masked in found:
        augmented = masked and args.augment
        pictures = load_pictures(paths, args.resolution, squash=args.squash or augmented)
        latents = None
        if args.cache_latents and not augmented:
            generators = [step_generator(seed, number, 1) for number in range(len(pictures))]
            squares = [cut(args, pictures, [number], generator) for number, generator in enumerate(generators)]
            latents = torch.cat([encode_pictures(pipe, *pair) for pair in zip(squares, generators, strict=True)])
        with torch.no_grad():
            cond = None if trains_text or len(prompts) > 1 else encode_text(pipe, prompts, args.resolution)
        made.append(Source(paths, pictures, prompts, seed, cond, latents, masked, augmented))
    return made


def cut(args: argparse.Namespace, pictures: list[Tensor], indices: list[int], generator: torch.Generator) -> Tensor:
    return picture_batch(pictures, indices, args.resolution, generator, args.center_crop, args.random_flip)


def next_batch(
    pipe, args: argparse.Namespace, given: list[Source], step: int, micro: int, accelerator, generator: torch.Generator
) -> Batch:
    """The pictures of a micro-step, --train_batch_size of each source; all that is random comes from the generator."""
    latents, conds, mask = [], [], None
    for source in given:
        indices = picture_indices(len(source.pictures), args.train_batch_size, source.seed, step, micro,
                                  args.gradient_accumulation_steps, accelerator.process_index,
                                  accelerator.num_processes)  # fmt: skip
        prefixes = [""] * len(indices)
        if source.latents is not None:
            latents.append(source.latents[indices])
        else:
            pictures = cut(args, source.pictures, indices, generator)
            if source.augmented:
                changed = [augment(picture, pipe.vae_scale_factor, generator) for picture in pictures]
                pictures = torch.stack([picture for picture, _, _ in changed])
                mask = torch.stack([inside for _, inside, _ in changed]).to(pipe.device)
                prefixes = [prefix for _, _, prefix in changed]
            latents.append(encode_pictures(pipe, pictures, generator))
        if source.masked and mask is None:  # the same loss without augmentation: all of the picture counts
            mask = torch.ones_like(latents[-1][:, :1])
        if source.conditioning is not None and not any(prefixes):
            conds.append(source.conditioning[[0] * len(indices)])
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
