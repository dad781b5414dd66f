"""Measures the shipped weights on scenes that training never drew, and compares with the bars they are to reach.

Here: what all checks share, and the table. The checks themselves, one subject a file, are in checks/.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from common.picturebook.classifier import AttributeClassifier, Reading
from common.picturebook.drawing import draw
from common.picturebook.scenes import ANIMALS, FACING_KINDS, Scene, caption, sample_scene
from common.picturebook.shipping import shipped_pipeline
from common.picturebook.stages.corpus import FIRST_SEED

STEPS, GUIDANCE, BATCH = 50, 7.5, 50


@dataclass(frozen=True)
class Result:
    """One row of the table. bar, aim: what value is to be at least (at_least) or at most; None: it is only told. note:
    what the value hides. check: the name of the check that measured it."""

    what: str
    value: float
    n: int
    bar: float | None = None
    aim: float | None = None
    at_least: bool = True
    note: str = ""
    check: str = ""

    def reaches(self, goal: float) -> bool:
        return self.value >= goal if self.at_least else self.value <= goal

    @property
    def reached(self) -> bool:
        return self.bar is None or self.reaches(self.bar)

    @property
    def sign(self) -> str:
        return ">=" if self.at_least else "<="

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if not self.reached:
            return "not reached"
        return "aim reached" if self.aim is not None and self.reaches(self.aim) else ""

    def __str__(self) -> str:
        goals = "".join(f" {self.sign}{goal:6.4g}" if goal is not None else " " * 9 for goal in (self.bar, self.aim))
        line = f"{self.what:76} {self.value:8.2f} {goals} {self.n:6d}  {self.verdict}".rstrip()
        return f"{line}\n    {self.note}" if self.note else line


# ------------------------------------------------------------------------------------------------ scenes and pictures


def held_out_scenes(count: int, things: int, unseen: bool = False, split: str = "test") -> list[Scene]:
    """Scenes with that many unmarked things by split seed; unseen: of colours and kinds never trained together."""
    shares = [float(things == n) for n in (1, 2, 3)]
    first = FIRST_SEED[split]
    return [sample_scene(first + index, shares, held_out=unseen, marked=0.0) for index in range(count)]


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 255


def drawn(scenes: list[Scene]) -> torch.Tensor:
    return to_tensor([draw(scene).picture for scene in scenes])


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-10))


def plain_words(scene: Scene) -> str:
    """Colour, kind and background only: what the simplest text-to-image score asks for."""
    things = tuple(replace(thing, material="plain", hat=False, pose="standing") for thing in scene.things)
    return caption(replace(scene, things=things, light="day", style="plain"))


def all_words(scene: Scene) -> str:
    """Everything that is drawn, facing included."""
    return caption(scene, facing=True)


# -------------------------------------------------------------------------------------------------- what models make


@cache
def pipeline() -> StableDiffusionPipeline:
    """The shipped pipeline as fast as it runs on a CPU, one for all checks."""
    pipe = shipped_pipeline()
    for part in (pipe.unet, pipe.vae):
        part.requires_grad_(False).to(memory_format=torch.channels_last)
    pipe.unet.fuse_qkv_projections()
    return pipe


@torch.inference_mode()
def generate(
    pipe: StableDiffusionPipeline, prompts: Sequence[str], seed: int = 0, guidance: float = GUIDANCE
) -> torch.Tensor:
    """Samples [B, 3, 64, 64] in [0, 1] with 50 DDIM steps; each prompt has a seed of its own."""
    made = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(seed + start + k) for k in range(len(part))]
        settings = dict(num_inference_steps=STEPS, guidance_scale=guidance, generator=generators, output_type="pt")
        made.append(pipe(list(part), **settings).images)
    return torch.cat(made)


@cache
def samples(count: int, things: int, guidance: float = GUIDANCE, plain: bool = False, unseen: bool = False):
    """Pictures [count, 3, 64, 64] of the captions of held-out scenes; several checks look at the same ones."""
    words = plain_words if plain else all_words
    return generate(pipeline(), [words(scene) for scene in held_out_scenes(count, things, unseen)], 0, guidance)


@torch.inference_mode()
def through_vae(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, 64, 64] in [0, 1] as the VAE gives them back."""
    vae, made = pipeline().vae, []
    for part in pictures.split(100):
        back = vae.decode(vae.encode(part * 2 - 1).latent_dist.mean).sample
        made.append((back / 2 + 0.5).clamp(0, 1))
    return torch.cat(made)


# --------------------------------------------------------------------------------------------- what the classifier sees


def share(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags)


def readings(pictures: torch.Tensor, classifier: AttributeClassifier) -> list[Reading]:
    return [reading for part in pictures.split(100) for reading in classifier.read(part)]


def pairs_seen(scenes: list[Scene], pictures: torch.Tensor, classifier: AttributeClassifier) -> list[bool]:
    """Whether all (colour, kind) pairs are read, and for one thing the background too."""
    flags = []
    for scene, reading in zip(scenes, readings(pictures, classifier), strict=True):
        wanted = {(thing.color, thing.kind) for thing in scene.things}
        background = len(scene.things) > 1 or reading.background == scene.background
        flags.append(background and reading.pairs(len(wanted)) == wanted)
    return flags


def missed(scene: Scene, reading: Reading) -> set[str]:
    """What of all that `all_words` asks for is not read; "pairs" stands for colours and kinds."""
    found = {name for name in ("background", "light", "style") if getattr(reading, name) != getattr(scene, name)}
    if reading.pairs(len(scene.things)) != {(thing.color, thing.kind) for thing in scene.things}:
        found.add("pairs")
    for thing in scene.things:
        asked = {"material", "hat"}
        asked |= ({"pose"} if thing.kind in ANIMALS else set()) | ({"facing"} if thing.kind in FACING_KINDS else set())
        found |= {name for name in asked if reading.thing(thing.kind)[name] != getattr(thing, name)}
    return found


def everything_seen(scenes: list[Scene], pictures: torch.Tensor, classifier: AttributeClassifier) -> list[bool]:
    read = readings(pictures, classifier)
    return [not missed(scene, reading) for scene, reading in zip(scenes, read, strict=True)]


# ---------------------------------------------------------------------------------------------------------- the table


def check(count: int = 300, only: Sequence[str] = (), kept: bool = False) -> int:
    """Prints the table; returns 0 where every bar is reached, else 1.

    count: pictures per share. only: names of checks, of checks.CHECKS; all of them if none is given. kept: into the
    model card too, each check as soon as it is measured.
    """
    from common.picturebook.card import keep
    from common.picturebook.checks import CHECKS

    results, start = [], time.time()
    print(f"{'measured on scenes never trained on':76} {'value':>8} {'bar':>8} {'aim':>8} {'n':>6}")
    for name in only or CHECKS:
        found = [replace(result, check=name) for result in CHECKS[name](count)]
        for result in found:
            print(result, flush=True)
        if kept:
            keep(found, CHECKS)
        results += found
    judged = [result for result in results if result.bar is not None]
    minutes = (time.time() - start) / 60
    print(f"{sum(result.reached for result in judged)} of {len(judged)} bars reached in {minutes:.1f} minutes")
    return 0 if all(result.reached for result in judged) else 1
