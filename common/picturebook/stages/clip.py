"""Stage clip: a CLIPModel trained on pictures and captions; its text tower then conditions the UNet, as in SD 1.x."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from common.picturebook.scenes import BACKGROUNDS, COLORS, KINDS, LIGHTS, MATERIALS, STYLES, Scene, caption
from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run
from common.picturebook.tokenizer import MAX_LENGTH

BATCH, PEAK, NEGATIVES, WIDTH = 128, 1e-3, 1, 128


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    tower = dict(hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_attention_heads=2, projection_dim=WIDTH)
    text = dict(
        num_hidden_layers=3, vocab_size=len(tokenizer), max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(num_hidden_layers=4, image_size=64, patch_size=8)
    config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=WIDTH)
    return CLIPModel(config).float()


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids [B, longest]; the text tower is causal, so padding to 77 would change nothing before the end token."""
    return tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt").input_ids


def altered(scene: Scene, rng: random.Random) -> Scene:
    """The scene with one attribute changed: the caption of it is a hard negative."""
    index, change = (
        rng.randrange(len(scene.things)),
        rng.choice(("color", "color", "kind", "background", "material", "swap")),
    )
    thing = scene.things[index]

    def other(values, value):
        return rng.choice([v for v in values if v != value])

    if change == "background":
        return replace(scene, background=other(BACKGROUNDS, scene.background))
    if change == "swap" and len(scene.things) > 1:
        first, second = scene.things[:2]
        return scene.with_thing(0, color=second.color).with_thing(1, color=first.color)
    values = {"kind": KINDS, "material": MATERIALS}.get(change, COLORS)
    field = change if change in ("kind", "material") else "color"
    return scene.with_thing(index, **{field: other(values, getattr(thing, field))})


def attributes(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """What pictures show: which (kind, colour) pairs [B, 120], background, light, style (indices [B])."""
    pairs = torch.zeros(len(scenes), len(KINDS), len(COLORS))
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            pairs[row, KINDS.index(thing.kind), COLORS.index(thing.color)] = 1
    return {
        "pairs": pairs.flatten(1),
        "background": torch.tensor([BACKGROUNDS.index(scene.background) for scene in scenes]),
        "light": torch.tensor([LIGHTS.index(scene.light) for scene in scenes]),
        "style": torch.tensor([STYLES.index(scene.style) for scene in scenes]),
    }


class Tutor(torch.nn.Module):
    """Reads attributes off the picture embedding, in training only: captions alone are a weak teacher of seeing."""

    def __init__(self):
        super().__init__()
        self.pairs = torch.nn.Linear(WIDTH, len(KINDS) * len(COLORS))
        self.rest = torch.nn.ModuleDict(
            {name: torch.nn.Linear(WIDTH, n) for name, n in (("background", 6), ("light", 2), ("style", 2))}
        )

    def loss(self, embedding: torch.Tensor, truth: dict[str, torch.Tensor]) -> torch.Tensor:
        pairs = (
            F.binary_cross_entropy_with_logits(self.pairs(embedding), truth["pairs"], reduction="none").sum(1).mean()
        )
        return pairs + sum(F.cross_entropy(head(embedding), truth[name]) for name, head in self.rest.items())


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, captions: list[str]
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy. images [B, D]; texts [B + hard negatives, D], the first B being the right ones.

    Two scenes of a batch may have the same caption: such pairs are neither right nor wrong and are left out.
    """
    logits = scale * images @ texts.T
    same = torch.tensor([[a == b for b in captions] for a in captions[: len(images)]])
    same[:, : len(images)].fill_diagonal_(False)
    logits = logits.masked_fill(same.to(logits.device), -1e4)
    target = torch.arange(len(images), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(images)].T, target)) / 2


def train(
    corpus: Corpus, tokenizer: CLIPTokenizer, work: Path, steps: int, start: CLIPModel | None = None
) -> CLIPModel:
    """start: a trained one whose picture tower is to improve; its text tower, on which the UNet relies, stays."""
    torch.manual_seed(0)
    clip, tutor = (start or new_clip(tokenizer)).train(), Tutor()
    clip.requires_grad_(True)
    if start:
        clip.text_model.requires_grad_(False)
    name = "clip_vision" if start else "clip"
    run = Run(name, work, torch.nn.ModuleList([clip, tutor]), steps, PEAK, averaged=clip)
    for step in run.todo():
        rng = random.Random(step)
        indices = order(len(corpus), BATCH, step)
        scenes = [corpus.scenes[index] for index in indices]
        captions = [caption(scene, random.Random(f"{step} {row}")) for row, scene in enumerate(scenes)]
        captions += [
            caption(altered(scene, rng), random.Random(f"{step} {row}"))
            for _ in range(NEGATIVES)
            for row, scene in enumerate(scenes)
        ]
        images = clip.get_image_features(corpus.batch(indices).to(DEVICE) * 2 - 1).pooler_output
        texts = clip.get_text_features(tokens(tokenizer, captions).to(DEVICE)).pooler_output
        match = contrastive_loss(
            F.normalize(images, dim=1), F.normalize(texts, dim=1), clip.logit_scale.exp().clamp(max=100), captions
        )
        seen = tutor.loss(images, {name: truth.to(DEVICE) for name, truth in attributes(scenes).items()})
        run.descend(step, match + 0.3 * seen, match=match, seen=seen)
    return run.finish()
