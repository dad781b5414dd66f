"""Text to image: whether samples show what their prompts ask for; and a sheet of samples that nobody chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from common.picturebook.classifier import load_classifier
from common.picturebook.quality import (
    GUIDANCE,
    Result,
    all_words,
    drawn,
    everything_seen,
    generate,
    held_out_scenes,
    missed,
    pairs_seen,
    pipeline,
    readings,
    samples,
    share,
)
from common.picturebook.scenes import Scene, sample_scene
from common.picturebook.stages.corpus import FIRST_SEED

GUIDANCES = (3.0, GUIDANCE)
NUMBERS = {1: "one thing", 2: "two things"}


def plain_share(count: int, things: int, unseen: bool = False) -> float:
    scenes = held_out_scenes(count, things, unseen)
    pictures = samples(count, things, plain=True, unseen=unseen)
    return share(pairs_seen(scenes, pictures, load_classifier()))


def one_thing(count: int) -> Iterator[Result]:
    yield Result("text to image, one thing: colour, thing, background (%)", plain_share(count, 1), count, 99)


def two_things(count: int) -> Iterator[Result]:
    yield Result("text to image, two things: both colours and things (%)", plain_share(count, 2), count, 75, 90)


def unseen_pairs(count: int) -> Iterator[Result]:
    gap = plain_share(count, 1) - plain_share(count, 1, unseen=True)
    yield Result("seen minus unseen combinations, one thing (points)", gap, count, 6, 3, at_least=False)


def everything(count: int) -> Iterator[Result]:
    """Captions that name all that is drawn: material, hat, pose and facing of every thing, place, light and style."""
    goals = {1: (75, 90), 2: (45, 70)}
    for guidance in GUIDANCES:
        for things, name in NUMBERS.items():
            scenes, pictures = held_out_scenes(count, things), samples(count, things, guidance)
            seen = everything_seen(scenes, pictures, load_classifier())
            bar, aim = goals[things] if guidance == GUIDANCE else (None, None)
            lost: Counter[str] = Counter()
            for scene, reading in zip(scenes, readings(pictures, load_classifier()), strict=True):
                lost.update(missed(scene, reading))
            note = "missed: " + ", ".join(f"{what} {100 * n / count:.0f} %" for what, n in lost.most_common())
            yield Result(f"{name}, everything asked for, guidance {guidance:g} (%)", share(seen), count, bar, aim,
                         note=note)  # fmt: skip


def sample_sheet(path: Path, scenes: list[Scene] | None = None, guidance: float = GUIDANCE, columns: int = 6) -> None:
    """Writes pairs, a drawing at the left and a sample of its caption at the right: of the first 48 scenes of the test
    split, whatever they show."""
    scenes = scenes or [sample_scene(FIRST_SEED["test"] + k, marked=0.0) for k in range(48)]
    made = generate(pipeline(), [all_words(scene) for scene in scenes], 0, guidance)
    pairs = torch.cat([drawn(scenes), made], dim=3)
    gap, (height, width) = 6, pairs.shape[2:]
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (255, 255, 255))
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        picture = Image.fromarray((255 * pair).round().byte().permute(1, 2, 0).numpy())
        sheet.paste(picture, (gap + column * (width + gap), gap + row * (height + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)
