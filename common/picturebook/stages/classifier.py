"""Stage classifier: the attributes of scenes, on drawn pictures, made softer and noisier, and on pictures that went
through the VAE: it is to read from a generated picture what a person reads.

Being the judge of the generator, it alone also learns the pairs of colour and kind that are held out of the others.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from common.picturebook.classifier import SCENE_HEADS, THING_HEADS, AttributeClassifier
from common.picturebook.scenes import ANIMALS, COLORS, FACING_KINDS, KINDS, Scene
from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run, fast

BATCH, HELD_OUT_BATCH, PEAK, SOFT = 52, 12, 2e-3, 8000
UNKNOWN = -100  # cross_entropy's ignore_index


def targets(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Per head the right answer; UNKNOWN where the question makes no sense for the kind, or the kind is absent."""
    truth = {"pairs": torch.zeros(len(scenes), len(KINDS), len(COLORS))}
    for name, values in SCENE_HEADS.items():
        truth[name] = torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
    for name in THING_HEADS:
        truth[name] = torch.full((len(scenes), len(KINDS)), UNKNOWN)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            k = KINDS.index(thing.kind)
            truth["pairs"][row, k, COLORS.index(thing.color)] = 1
            for name, values in THING_HEADS.items():
                sensible = {"facing": thing.kind in FACING_KINDS, "pose": thing.kind in ANIMALS}.get(name, True)
                if sensible and not (thing.marking and name in ("material", "hat")):
                    truth[name][row, k] = values.index(getattr(thing, name))
    return truth


def worsen(pictures: torch.Tensor, rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """Blur, noise, brightness and tint, so that a soft generated picture is read as well as a drawn one."""
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]).float().div(16).expand(3, 1, 3, 3)
        pictures = F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    noise = torch.randn(pictures.shape, generator=generator) * rng.choice((0, 0.02, 0.05))
    tint = 1 + 0.05 * torch.randn((len(pictures), 3, 1, 1), generator=generator)
    return (pictures * tint + noise).clamp(0, 1)


def loss_of(out: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> torch.Tensor:
    pairs = F.binary_cross_entropy_with_logits(out["pairs"], truth["pairs"], reduction="none").sum((1, 2)).mean()
    scene = sum(F.cross_entropy(out[name], truth[name]) for name in SCENE_HEADS)
    things = sum(F.cross_entropy(out[n].flatten(0, 1), truth[n].flatten(), ignore_index=UNKNOWN) for n in THING_HEADS)
    return pairs + scene + things


@torch.no_grad()
def through_vae(corpus: Corpus, count: int, vae: AutoencoderKL) -> torch.Tensor:
    """The first pictures of a corpus as the VAE gives them back: uint8 [count, 3, 64, 64]."""
    vae, made = vae.to(DEVICE, memory_format=torch.channels_last), []
    for start in tqdm(range(0, count, 100), desc="through the VAE", mininterval=10):
        pictures = corpus.batch(range(start, min(start + 100, count))).to(DEVICE, memory_format=torch.channels_last)
        with fast():
            back = vae.decode(vae.encode(pictures * 2 - 1).latent_dist.mean).sample.float()
        made.append((back * 127.5 + 127.5).round().clamp(0, 255).byte().cpu())
    return torch.cat(made)


def train(
    corpus: Corpus, held_out: Corpus, vae: AutoencoderKL, work: Path, steps: int,
    start: AttributeClassifier | None = None,
) -> AttributeClassifier:  # fmt: skip
    """start: a trained one to go on from."""
    torch.manual_seed(0)
    model = (start or AttributeClassifier()).train().requires_grad_(True).to(memory_format=torch.channels_last)
    run = Run("classifier", work, model, steps, PEAK)
    soft = [through_vae(c, count, vae) for c, count in ((corpus, SOFT), (held_out, SOFT // 4))]
    for step in run.todo():
        parts, batches = [], []
        for c, n, known in ((corpus, BATCH, soft[0]), (held_out, HELD_OUT_BATCH, soft[1])):
            drawn, passed = order(len(c), n // 2, step), order(len(known), n // 2, step)
            parts += [(c, drawn), (c, passed)]
            batches += [c.batch(drawn), known[torch.from_numpy(passed)].float() / 255]
        pictures = torch.cat(batches)
        pictures = worsen(pictures, random.Random(step), torch.Generator().manual_seed(step))
        pictures = pictures.to(DEVICE, memory_format=torch.channels_last)
        truth = targets([c.scenes[index] for c, indices in parts for index in indices])
        loss = loss_of(model(pictures), {name: answers.to(DEVICE) for name, answers in truth.items()})
        run.descend(step, loss)
    return run.finish()
