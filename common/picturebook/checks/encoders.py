"""The networks that the UNet paints with and that pictures are judged by: VAE, CLIP, DINO, classifier, distances."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTModel

from common.picturebook.classifier import AttributeClassifier, load_classifier
from common.picturebook.drawing import draw
from common.picturebook.quality import (
    Result,
    drawn,
    everything_seen,
    held_out_scenes,
    pairs_seen,
    pipeline,
    plain_words,
    psnr,
    share,
    through_vae,
    to_tensor,
)
from common.picturebook.scenes import BACKGROUNDS, COLORS, KINDS, Scene, sample_scene
from common.picturebook.shipping import MODELS, shipped_clip, shipped_dino
from common.picturebook.stages.corpus import FIRST_SEED
from common.picturebook.stages.dino import VIEWS, draw_views, embed, individual


def size(count: int) -> Iterator[Result]:
    sizes = [path.stat().st_size / 1e6 for path in MODELS.rglob("*") if path.is_file()]
    yield Result("size of all models (MB)", sum(sizes), len(sizes), 40, at_least=False)
    yield Result("size of the largest file (MB)", max(sizes), len(sizes), 15, at_least=False)


def classifier(count: int) -> Iterator[Result]:
    """On drawings: it is the judge of everything else."""
    judge, one, two = load_classifier(), held_out_scenes(count, 1), held_out_scenes(count, 2)
    for scenes, what, bar in (
        (one, "colour, thing, background of one thing", 98),
        (two, "both pairs of two things", 95),
    ):
        yield Result(f"classifier on drawings: {what} (%)", share(pairs_seen(scenes, drawn(scenes), judge)), count, bar)
    for scenes, what in ((one, "one thing"), (two, "two things")):
        right = share(everything_seen(scenes, drawn(scenes), judge))
        yield Result(f"classifier on drawings: everything, {what} (%)", right, count, 97)


def vae(count: int) -> Iterator[Result]:
    """Inside of things: over the pixels of their masks."""
    drawings = [draw(sample_scene(FIRST_SEED["test"] + k)) for k in range(count)]
    pictures = to_tensor([drawing.picture for drawing in drawings])
    masks = torch.from_numpy(np.stack([np.maximum.reduce(drawing.masks) for drawing in drawings]))[:, None]
    back = through_vae(pictures)
    squared = ((back - pictures).square().mean(1, keepdim=True) * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))
    yield Result("VAE: inside of things (dB)", float((-10 * torch.log10(squared)).mean()), count, 28, 31)
    yield Result("VAE: over the picture (dB)", float(psnr(back, pictures).mean()), count, 30.5, 33)
    judge, one, two = load_classifier(), held_out_scenes(count, 1), held_out_scenes(count, 2)
    through = {name: through_vae(drawn(scenes)) for name, scenes in (("one", one), ("two", two))}
    right = share(pairs_seen(two, through["two"], judge))
    yield Result("VAE: two things right through it (%)", right, count, 96, 98)
    for name, scenes in (("one", one), ("two", two)):
        right = share(everything_seen(scenes, through[name], judge))
        yield Result(f"VAE: everything right through it, {name} thing{'s' * (name == 'two')} (%)", right, count)


@torch.no_grad()
def clip(count: int) -> Iterator[Result]:
    """Zero-shot among all 720 captions "a red cat in a meadow"."""
    model, tokenizer, scenes = shipped_clip(), pipeline().tokenizer, held_out_scenes(count, 1)
    scenes = [replace(scene, light="day", style="plain") for scene in scenes]
    choices = [(c, k, b) for c in COLORS for k in KINDS for b in BACKGROUNDS]
    blank = scenes[0].things[0]
    texts = [plain_words(Scene((replace(blank, color=c, kind=k),), background=b)) for c, k, b in choices]
    ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    text = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
    image = F.normalize(model.get_image_features(drawn(scenes) * 2 - 1).pooler_output, dim=1)
    best = [choices[k] for k in (image @ text.T).argmax(1).tolist()]
    wanted = [(scene.things[0].color, scene.things[0].kind, scene.background) for scene in scenes]
    right = share([a == b for a, b in zip(best, wanted, strict=True)])
    yield Result("CLIP: zero-shot colour, thing, background among 720 (%)", right, count, 90)


@torch.no_grad()
def dino(count: int) -> Iterator[Result]:
    """Cosines of pictures of one individual against those of two individuals of one kind, none seen in training."""
    model, first, count = shipped_dino(), 100_000, max(count, 2 * len(KINDS))
    pictures = torch.from_numpy(np.concatenate([draw_views(first + k) for k in range(count)])).permute(0, 3, 1, 2) / 255
    features = torch.cat([embed(model, part) for part in pictures.split(100)]).unflatten(0, (count, VIEWS))
    kinds = [individual(first + k).kind for k in range(count)]
    same = torch.cat([(f @ f.T)[torch.triu_indices(VIEWS, VIEWS, 1).unbind()] for f in features])
    other = torch.cat(
        [(features[a] @ features[b].T).flatten() for a in range(count) for b in range(a) if kinds[a] == kinds[b]]
    )
    ranks = torch.cat([same, other]).argsort().argsort()[: len(same)].double() + 1
    area = (ranks.sum() - len(same) * (len(same) + 1) / 2) / (len(same) * len(other))
    yield Result("DINO: same individual against same kind (AUC)", float(area), len(same), 0.9)


# ----------------------------------------------------------------------------------------------------------- distances


def perceptual_distance(a: torch.Tensor, b: torch.Tensor, eye: AttributeClassifier) -> torch.Tensor:
    """LPIPS (Zhang et al., CVPR 2018, Eq. 1) with the classifier's maps and unit weights, [B]."""
    total = torch.zeros(len(a))
    for x, y in zip(eye.features(a), eye.features(b), strict=True):
        x, y = (z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10) for z in (x, y))
        total += (x - y).square().sum(1).mean((1, 2))
    return total


@torch.no_grad()
def structure_distance(a: torch.Tensor, b: torch.Tensor, model: ViTModel) -> torch.Tensor:
    """Mean squared difference of the two self-similarities of the last block's keys (Tumanyan et al., CVPR 2022, Eq. 3)
    of two batches [B, 3, 64, 64] in [0, 1] -> [B]."""
    layers = [module for name, module in model.named_modules() if name.endswith(("attention.k_proj", "attention.key"))]
    caught: list[torch.Tensor] = []
    hook = layers[-1].register_forward_hook(lambda module, inputs, output: caught.append(F.normalize(output, dim=-1)))
    try:
        for pictures in (a, b):
            embed(model, pictures)
    finally:
        hook.remove()
    first, second = (keys @ keys.mT for keys in caught)
    return (first - second).square().mean((1, 2))


def blurred(pictures: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        pictures = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return pictures


@torch.no_grad()
def distances(count: int) -> Iterator[Result]:
    """LPIPS must grow with blur and noise; structure distance must find a new kind of thing, and a move, larger than a
    new colour."""
    eye, model = load_classifier(), shipped_dino()
    scenes = [replace(scene, light="day", style="plain") for scene in held_out_scenes(count, 1)]
    pictures, right = drawn(scenes), []
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    for ladder in (
        [blurred(pictures, k) for k in (1, 3, 6)],
        [(pictures + s * noise).clamp(0, 1) for s in (0.02, 0.08, 0.25)],
    ):
        near, middle, far = (perceptual_distance(pictures, x, eye) for x in ladder)
        right += ((near < middle) & (middle < far)).tolist()
    yield Result("LPIPS ranks blur and noise (%)", share(right), len(right), 95)
    rng = random.Random(0)
    changes = {
        "color": [{"color": rng.choice([c for c in COLORS if c != s.things[0].color])} for s in scenes],
        "move": [{"x": s.things[0].x + (0.2 if s.things[0].x < 0.5 else -0.2)} for s in scenes],
        "kind": [{"kind": rng.choice([k for k in KINDS if k != s.things[0].kind])} for s in scenes],
    }
    found = {
        name: structure_distance(
            pictures, drawn([s.with_thing(0, **change) for s, change in zip(scenes, each, strict=True)]), model
        )
        for name, each in changes.items()
    }
    for name, what, aim in (("move", "a move", None), ("kind", "a new thing", 90)):
        nearer = share((found["color"] < found[name]).tolist())
        yield Result(f"structure distance: a new colour nearer than {what} (%)", nearer, count, 80, aim)
