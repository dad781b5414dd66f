"""Scores of one personalised model: DreamBench's three (lipschitz_personalize/reproduction/scores.py), diversity,
likeness, and what the picturebook's attribute classifier sees."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from common.data import Subject
from common.encoders import Encoders
from common.images import load_image, to_tensor
from common.metrics import dino_similarity, lpips_distance
from eval.tracks.personalization.protocol import asked, context_seen, subject_seen, usual_color
from lipschitz_personalize.reproduction import scores

PROTOCOL = "dreambench"


def read_references(subject: Subject) -> list[Tensor]:
    """The subject's own pictures, [1, 3, h, w] each in [0, 1]: they may differ in size."""
    return [to_tensor(load_image(path)) for path in subject.paths]


@dataclass(frozen=True)
class Truths:
    """The true picture of every prompt, and the same with the thing in kind and colour but without what marks the
    individual: [prompts, 3, H, W] each. The second is where identity begins, the first is all of it."""

    marked: Tensor
    unmarked: Tensor


def read_truths(folder: Path, subject: Subject, prompts: int) -> Truths | None:
    """marked/<subject>/<pp>.png and unmarked/… of a folder; None where there are none, as for photographs."""
    if not (folder / "marked" / subject.name).is_dir():
        return None
    names = [f"{number:02d}.png" for number in range(prompts)]
    found = {kind: torch.cat([to_tensor(load_image(folder / kind / subject.name / name)) for name in names])
             for kind in ("marked", "unmarked")}  # fmt: skip
    return Truths(**found)


def likeness(pictures: Tensor, truths: Truths, references: Sequence[Tensor], dino) -> float:
    """The share of the way of pictures [..., 3, H, W] from the unmarked thing (0) to the true picture (1), in the mean
    DINO cosine with the subject's own pictures. Pictures that copy can exceed 1; NaN where the two ends are one."""
    floor, ceiling, own = (
        torch.stack([dino_similarity(batch.flatten(0, -4), real, dino).mean() for real in references]).mean()
        for batch in (truths.unmarked, truths.marked, pictures)
    )
    return ((own - floor) / (ceiling - floor)).item() if ceiling > floor else math.nan


def ceiling(references: list[Tensor], eyes: Encoders) -> dict[str, float]:
    """Fidelity of each real picture with the other real ones: the row "Real pictures" of DreamBench's tables."""
    rows = [scores.fidelity(one, references[:i] + references[i + 1 :], eyes.clip, eyes.dino, PROTOCOL)
            for i, one in enumerate(references)]  # fmt: skip
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def diversity(pictures: Tensor, eyes: Encoders) -> float:
    """Mean LPIPS between the pictures [prompts, k, 3, H, W] of the same prompt; NaN where k = 1."""
    found = []
    for i, j in combinations(range(pictures.shape[1]), 2):
        found += lpips_distance(pictures[:, i], pictures[:, j], eyes.lpips).tolist()
    return mean(found)


def subject_scores(
    pictures: Tensor, templates: list[str], subject: Subject, references: list[Tensor], eyes: Encoders,
    truths: Truths | None = None,
) -> tuple[dict[str, float], list[list[bool | None]]]:  # fmt: skip
    """Scores of one subject's pictures [prompts, k, 3, H, W] by score_key, and per picture whether the classifier sees
    what its prompt asks for (None: nobody judged)."""
    found = scores.fidelity(pictures.flatten(0, 1), references, eyes.clip, eyes.dino, PROTOCOL)
    found |= scores.adherence(pictures, templates, subject.class_name, eyes.clip, PROTOCOL)
    found[f"diversity ({eyes.lpips.label})"] = diversity(pictures, eyes)
    if truths is not None:
        found[f"likeness ({eyes.dino.label})"] = likeness(pictures, truths, references, eyes.dino)
    if eyes.classifier is None:
        return found, [[None] * pictures.shape[1] for _ in templates]
    seen, shares = judged(pictures, templates, subject.class_name, references, eyes.classifier)
    return found | shares, seen


def judged(
    pictures: Tensor, templates: list[str], kind: str, references: list[Tensor], classifier
) -> tuple[list[list[bool | None]], dict[str, float]]:
    """What the attribute classifier says: per picture whether the context is there, and the shares of pictures with
    their context and with the subject's kind and colour."""
    color = usual_color(kind, [classifier.read(reference)[0] for reference in references])
    contexts, identities = [], []
    for template, batch in zip(templates, pictures, strict=True):
        wanted = asked(template, kind)
        readings = classifier.read(batch)
        contexts.append([context_seen(wanted, kind, reading) if wanted else None for reading in readings])
        identities += [subject_seen(wanted, kind, color, reading) for reading in readings]
    every = [seen for row in contexts for seen in row]
    return contexts, {"context (picturebook)": share(every), "identity (picturebook)": share(identities)}


def share(flags: Iterable[bool | None]) -> float:
    """Of the flags that are not None; NaN if there is none."""
    return mean(flag for flag in flags if flag is not None)


def mean(values: Iterable[float]) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else math.nan
