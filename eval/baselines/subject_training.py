"""What the two fine-tuning baselines share: the subject that the picturebook brings, batches, the last files."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data import read_subjects
from common.images import grid
from common.pipelines import chosen_resolution, encode_image, load_pipeline
from common.runs import InputError, atomic_path, write_config, write_json
from common.training import draw_pictures, picture_batch, picture_indices, step_generator

PICTUREBOOK_SUBJECT = "cat"  # of the validation split; trained on where no pictures are given


def give_subject(args: argparse.Namespace, instance_prompt: str, class_prompt: str) -> str | None:
    """Without --instance_data_dir: the picturebook's subject, and the two prompts ("{}" is its class). Returns that
    class, or None where pictures are given."""
    if args.instance_data_dir is not None:
        return None
    from common.picturebook.benchmarks import ensure_subjects

    (subject,) = read_subjects(ensure_subjects("validation"), [PICTUREBOOK_SUBJECT])
    args.instance_data_dir = str(subject.paths[0].parent)
    args.instance_prompt = args.instance_prompt or instance_prompt.format(subject.class_name)
    args.class_prompt = args.class_prompt or class_prompt.format(subject.class_name)
    return subject.class_name


def print_config(args: argparse.Namespace) -> None:
    print(json.dumps({name: value for name, value in sorted(vars(args).items()) if name != "print_config"}, indent=2))


def load_frozen(args: argparse.Namespace, device: torch.device):
    """The pipeline, frozen, and the side of the training pictures."""
    pipe = load_pipeline(args.pretrained_model_name_or_path, device)
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise InputError(f"{args.pretrained_model_name_or_path} is an SDXL model; this baseline trains SD 1.x and 2.x")
    resolution = chosen_resolution(pipe, args.resolution)
    if args.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
        pipe.unet.train()  # diffusers checkpoints in this mode only; there is no dropout
    return pipe, resolution


def batch_of(
    args: argparse.Namespace, pictures: Sequence[Tensor], step: int, micro: int, accelerator, resolution: int, which=0
) -> tuple[Tensor, torch.Generator]:
    """The pictures [B,3,H,W] that this process sees in a micro-step, and the generator for all else that is random.
    which: 0 for the subject's pictures, 1 for the class's, whose noises are their own."""
    process, processes, micros = accelerator.process_index, accelerator.num_processes, args.gradient_accumulation_steps
    generator = step_generator(args.seed, step, micro + which * micros, process)
    chosen = picture_indices(len(pictures), args.train_batch_size, args.seed, step, micro, micros, process, processes)
    return picture_batch(pictures, chosen, resolution, generator, args.center_crop, args.random_flip), generator


@torch.no_grad()
def encoded(pipe, pictures: Tensor, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (a sample of the posterior), noise and timesteps of a batch, all drawn on the CPU."""
    latents = encode_image(pipe, pictures, sample=True, generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    t = torch.randint(steps, (len(latents),), generator=generator).to(latents.device)
    return latents, noise, t


def average_gradients(accelerator, parameters: Sequence[Tensor]) -> None:
    """The mean over processes; the parameters are few, so no wrapper is needed around the frozen network."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def validate(args: argparse.Namespace, pipe, prompt: str, name: str) -> None:
    """Draw --num_validation_images of `prompt` into a grid."""
    generators = [torch.Generator().manual_seed(args.seed + k) for k in range(args.num_validation_images)]
    images = draw_pictures(pipe, [prompt] * len(generators), generators, num_inference_steps=25)
    with atomic_path(Path(args.output_dir) / name) as temporary:
        grid([images], [prompt]).save(temporary)


def finish(args: argparse.Namespace, pipe, prompt: str, losses: list[float], **metrics: Any) -> None:
    """config.json, metrics.json and grid.png beside the weights."""
    write_config(args.output_dir, args)
    last = losses[-100:]
    summary = {"steps": args.max_train_steps, "loss_last_100": sum(last) / len(last) if last else None}
    write_json(Path(args.output_dir) / "metrics.json", {**summary, **metrics})
    validate(args, pipe, prompt, "grid.png")
    print(f"written to {args.output_dir}: look at grid.png")


def check_finite(loss: float, step: int) -> None:
    """InputError where a training has diverged."""
    if loss != loss or loss == float("inf"):
        raise InputError(
            f"the loss is {loss} at step {step}: lower --learning_rate, or train with --mixed_precision no"
        )
