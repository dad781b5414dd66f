"""Pictures of which the ideal noise is known, because they were drawn from it (paper, Sec. 3.1 and supplement A)."""

import argparse
import zlib
from collections.abc import Iterator

import torch
from diffusers import DiffusionPipeline

from common.ddim import make_schedule
from common.pipelines import Conditioning, decode_latents, encode_image, encode_prompt
from common.runs import progress
from spdinv.reproduction.experiments import Task
from spdinv.sampling import generate


def scales_of(args: argparse.Namespace, *default: float) -> list[float]:
    """The guidance scales at which pictures are drawn."""
    return list(dict.fromkeys(args.drawing_scale or default))


def batches(task: Task) -> list[list]:
    """Always the same items side by side: a network's rounding depends on its batch."""
    size = task.args.batch_size
    return [task.items[start : start + size] for start in range(0, len(task.items), size)]


def in_order(task: Task, names: dict[float, list[str]]) -> list[tuple[str, str]]:
    """(name, item id) of all rows, as one process makes them. names: of rows, by the scale of their drawing."""
    return [(name, item.id) for batch in batches(task) for own in names.values() for name in own for item in batch]


def drawings(
    task: Task, names: dict[float, list[str]], done: set[tuple[str, str]]
) -> Iterator[tuple[list, float, Conditioning, torch.Tensor]]:
    """Batch by batch of this shard and scale by scale, where a row is missing: the items, the scale, their prompts, and
    the way from their ideal noise to the pictures, [T+1,B,4,h,w], clean latents first.

    done: (name, item id) of the rows that are there.
    """
    args, pipe = task.args, task.pipe
    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    for batch in progress(args.shard.of(batches(task)), "batches"):
        noise = ideal_noise(pipe, [item.id for item in batch], args.seed, task.resolution)
        cond = encode_prompt(pipe, [item.source_prompt for item in batch])
        for scale, wanted in names.items():
            if any((name, item.id) not in done for name in wanted for item in batch):
                yield batch, scale, cond, generate(pipe, schedule, noise, cond, scale)


def ideal_noise(pipe: DiffusionPipeline, names: list[str], seed: int, resolution: int) -> torch.Tensor:
    """Standard normal z_T [B,4,h,w], one per name; always the same for the same name and seed, on any device."""
    side = resolution // pipe.vae_scale_factor
    seeds = [zlib.crc32(f"{seed} {name}".encode()) for name in names]
    drawn = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(own)) for own in seeds]
    return torch.stack(drawn).to(pipe.device)


@torch.no_grad()
def through_a_file(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Clean latents [B,4,h,w] decoded, cut to 8 bits as a saved picture is, and encoded again."""
    pictures = (decode_latents(pipe, latents) * 255).floor() / 255
    return encode_image(pipe, pictures).float()
