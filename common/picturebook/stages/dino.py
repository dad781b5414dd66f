"""Stage dino: a ViT that knows individuals, in DINO's file format.

Two views of a training pair are two drawings of one individual, in other places, sizes, facings and poses, on other
backgrounds, towards the end in turned hues; the loss is contrastive (InfoNCE) among individuals, many of the same kind.
DINO itself distils crops without negatives, which wants far more steps than two cores can take.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTModel

from common.picturebook.drawing import draw
from common.picturebook.hashes import drawing_hash
from common.picturebook.scenes import ANIMALS, BACKGROUNDS, FACINGS, KINDS, POSES, Scene, Thing, layout, sample_thing
from common.picturebook.stages.training import DEVICE, Run

INDIVIDUALS, VIEWS, BATCH, PEAK, TEMPERATURE = 3000, 5, 64, 1e-3, 0.1


def new_dino() -> ViTModel:
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, intermediate_size=384, image_size=64, patch_size=8,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False).float()


def individual(number: int) -> Thing:
    """An individual, deterministic in its number; kinds take turns."""
    rng = random.Random(f"individual {number}")
    thing = sample_thing(rng, layout(rng, 1)[0], (KINDS[number % len(KINDS)],))
    return replace(thing, material="plain", hat=False, marking=rng.randrange(1, 1 << 30))


def view(thing: Thing, seed: int) -> Scene:
    """The individual alone in another place, size, facing and pose, on another background."""
    rng = random.Random(f"view {seed}")
    pose = rng.choice(POSES) if thing.kind in ANIMALS else "standing"
    thing = replace(thing, facing=rng.choice(FACINGS), pose=pose, **layout(rng, 1)[0])
    light = "night" if rng.random() < 0.15 else "day"
    return Scene((thing,), background=rng.choice(BACKGROUNDS), light=light, seed=rng.randrange(1 << 30))


def draw_views(number: int) -> np.ndarray:
    thing = individual(number)
    return np.stack([np.asarray(draw(view(thing, number * VIEWS + k)).picture) for k in range(VIEWS)])


def album(folder: Path, first: int = 0, count: int = INDIVIDUALS) -> np.ndarray:
    """uint8 [count, VIEWS, 64, 64, 3]: every individual's pictures, drawn once and kept on disk."""
    path = folder / f"album_{first}_{count}_{drawing_hash()}.npy"
    if not path.exists():
        with ProcessPoolExecutor() as pool:
            pictures = np.stack(list(pool.map(draw_views, range(first, first + count), chunksize=50)))
        np.save(path.with_suffix(".part.npy"), pictures)
        path.with_suffix(".part.npy").replace(path)
    return np.load(path, mmap_mode="r")


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what DINO's pictures are normalised with


def embed(model: ViTModel, pictures: torch.Tensor) -> torch.Tensor:
    """Unit class tokens [B, 128] of pictures [B, 3, 64, 64] in [0, 1]."""
    mean, std = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return F.normalize(model((pictures - mean) / std).last_hidden_state[:, 0], dim=1)


def recoloured(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Four of five pictures [B, 3, 64, 64] with hues turned by an angle of their own, at 0 to 1.4 of their saturation.

    DINO's views are colour-jittered too; without it structure distance, meant to see shape, would see mostly colour.
    """
    angle = 2 * torch.pi * torch.rand(len(pictures), generator=generator)
    saturation = 1.4 * torch.rand(len(pictures), generator=generator)
    grey = pictures.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)  # to luma, three times
    axis = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5  # generates turns about grey
    turn = torch.linalg.matrix_exp(angle[:, None, None] * axis)
    chroma = torch.eye(3) - grey
    matrix = grey + saturation[:, None, None] * (chroma @ turn @ chroma)
    matrix[torch.rand(len(pictures), generator=generator) > 0.8] = torch.eye(3)
    return torch.einsum("bij,bjhw->bihw", matrix, pictures).clamp(0, 1)


def train(work: Path, steps: int, start: ViTModel | None = None) -> ViTModel:
    torch.manual_seed(0)
    pictures = album(work)
    model = (start or new_dino()).train().requires_grad_(True)
    run = Run("dino", work, model, steps, PEAK)
    for step in run.todo():
        rng = np.random.default_rng([1, step])
        # two of the twelve kinds at a time: the negatives are mostly of the same kind, as "another cat" is
        kinds = rng.choice(len(KINDS), 2, replace=False)
        who = np.concatenate(
            [rng.choice(INDIVIDUALS // len(KINDS), BATCH // 2, replace=False) * len(KINDS) + k for k in kinds]
        )
        which = np.stack([rng.choice(VIEWS, 2, replace=False) for _ in who])
        views = torch.from_numpy(np.concatenate([pictures[who, which[:, 0]], pictures[who, which[:, 1]]]))
        generator = torch.Generator().manual_seed(step)
        views = views.permute(0, 3, 1, 2) / 255
        if step >= 0.6 * steps:  # too hard a task for a beginner
            views = recoloured(views, generator)
        noise = 0.02 * torch.randn(views.shape, generator=generator)
        embedded = embed(model, (views + noise).clamp(0, 1).to(DEVICE))
        logits = embedded @ embedded.T / TEMPERATURE
        logits.fill_diagonal_(-1e4)
        loss = F.cross_entropy(logits, torch.arange(2 * BATCH, device=DEVICE).roll(BATCH))
        run.descend(step, loss)
    return run.finish()
