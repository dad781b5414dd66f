"""Scores of pictures: likeness and prompt following; on the picturebook, what its attribute classifier sees."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean

import torch
from torch import Tensor

from common.data import Subject
from common.images import center_crop_resize, load_image, to_tensor
from common.metrics import clip_image_similarity, clip_text_similarity, dino_similarity, lpips_distance, score_key
from common.pipelines import is_picturebook
from common.runs import read_json
from svdiff.reproduction.study import Scorer, Study


def references(study: Study, subject: Subject) -> Tensor:
    """The subject's own pictures, [n,3,H,W]."""
    return torch.cat([to_tensor(center_crop_resize(load_image(path), study.resolution)) for path in subject.paths])


def truths(study: Study, subject: Subject) -> dict[str, Tensor]:
    """{"true picture", "twin"} -> as the picturebook draws the subject's prompts, [--prompts,3,H,W], and the same
    without what marks the individual; {} of subjects that it has not drawn."""
    if study.args.dataset != "picturebook":
        return {}
    from common.picturebook.benchmarks import ensure_truths

    folder = ensure_truths(study.args.split)
    names = [f"{number:02d}.png" for number in range(len(study.prompts(subject)))]
    return {called: torch.cat([to_tensor(load_image(folder / kind / subject.name / name)) for name in names])
            for called, kind in (("true picture", "marked"), ("twin", "unmarked"))}  # fmt: skip


def likeness(study: Study, subject: Subject, prompt: str) -> Scorer:
    """Fig. 9b's two scores (CLIP's cosine with the prompt, 1 - LPIPS averaged over the subject's pictures), and
    DreamBench's DINO and CLIP-I; of the picturebook's subjects also the share of the way in DINO from their twins, the
    right kind and colour without the marking, to true pictures of the same prompts. prompt: without the token."""
    eyes, device = study.encoders, study.pipe.device
    own = references(study, subject).to(device)

    def dino(pictures: Tensor) -> float:
        return dino_similarity(pictures.to(device), own, eyes.dino).mean().item()

    ends = [dino(drawn) for drawn in truths(study, subject).values()]

    def score(picture: Tensor) -> dict[str, float]:
        one = picture.to(device)
        alike = 1 - lpips_distance(one.expand_as(own), own, eyes.lpips).mean().item()
        found = {
            score_key("image_alignment", eyes.lpips.label): alike,
            score_key("CLIP-T", eyes.clip.label): clip_text_similarity(one, [prompt], eyes.clip).item(),
            score_key("DINO", eyes.dino.label): (seen := dino(one)),
            score_key("CLIP-I", eyes.clip.label): clip_image_similarity(one, own, eyes.clip).mean().item(),
        }
        if ends and ends[0] > ends[1]:
            found[score_key("likeness", eyes.dino.label)] = (seen - ends[1]) / (ends[0] - ends[1])
        return found | seen_in(study, [subject], picture)

    return score


def load_eye(study: Study):
    """The attribute classifier; None for models of other worlds than the picturebook, which it cannot judge."""
    if not is_picturebook(study.pipe) or study.resolution != 64:
        return None
    from common.picturebook.classifier import load_classifier

    return load_classifier()


@cache
def usual_color(subject: Subject, classifier) -> str:
    """The colour in which the classifier most often sees a subject in its own pictures."""
    readings = [classifier.read(to_tensor(load_image(path)))[0] for path in subject.paths]
    seen = [reading.thing(subject.class_name)["color"] for reading in readings]
    return max(seen, key=seen.count)


def presences(subjects: Sequence[Subject], picture: Tensor, classifier) -> list[float]:
    """How sure the classifier is of each subject's kind in that subject's own colour, 0 to 1."""
    from common.picturebook.scenes import COLORS, KINDS

    found = classifier(picture)["pairs"][0].sigmoid()
    places = [(KINDS.index(one.class_name), COLORS.index(usual_color(one, classifier))) for one in subjects]
    return [found[place].item() for place in places]


def scenes_of(subjects: Sequence[Subject]) -> list[dict]:
    """The scene of each subject's first picture, as the picturebook has drawn it; [] of pictures by others."""
    file = subjects[0].paths[0].parents[1] / "scenes.json"
    known = read_json(file) if file.is_file() else {}
    names = [f"{one.name}/{one.paths[0].name}" for one in subjects]
    return [known[name] for name in names] if known.keys() >= set(names) else []


def true_pictures(subjects: Sequence[Subject], prompt: str, seeds: list[int]) -> Tensor:
    """These individuals drawn side by side in any order and anywhere, a picture per seed and prompt, [n,3,H,W]."""
    from common.picturebook.drawing import draw
    from common.picturebook.scenes import BACKGROUNDS, Scene, layout

    things, drawn = [Scene.from_dict(scene).things[0] for scene in scenes_of(subjects)], []
    for seed in seeds:
        rng = random.Random(f"{prompt} {seed}")
        order = rng.sample(things, len(things))
        placed = tuple(replace(thing, **place) for thing, place in zip(order, layout(rng, len(order)), strict=True))
        drawn.append(to_tensor(draw(Scene(placed, rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))).picture))
    return torch.cat(drawn)


@cache
def least_presences(subjects: tuple[Subject, ...], classifier) -> list[float]:
    """From where on each subject counts as there: 0.5; of several in one picture, half as sure as the classifier is, on
    average, of 16 true pictures of all of them (where an individual is small, its marking can outweigh its colour)."""
    if len(subjects) == 1 or not scenes_of(subjects):
        return [0.5] * len(subjects)
    pictures = true_pictures(subjects, "how sure", list(range(16)))
    sure = [presences(subjects, picture[None], classifier) for picture in pictures]
    return [fmean(own) / 2 for own in zip(*sure, strict=True)]


def seen_in(study: Study, subjects: Sequence[Subject], picture: Tensor) -> dict[str, float]:
    """{"present": share of the subjects that are there, "both_present": 1 if all are}; nothing without a classifier.
    NaN for subjects of one kind and colour, which it cannot tell apart."""
    if (classifier := load_eye(study)) is None:
        return {}
    if len({(one.class_name, usual_color(one, classifier)) for one in subjects}) < len(subjects):
        return {"present": math.nan, "both_present": math.nan}
    least = least_presences(tuple(subjects), classifier)
    there = [sure > enough for sure, enough in zip(presences(subjects, picture, classifier), least, strict=True)]
    return {"present": sum(there) / len(there), "both_present": float(all(there))}


def sides(study: Study, subjects: Sequence[Subject], picture: Tensor) -> dict[str, float]:
    """How much more the classifier sees of A than of B, -1 to 1; nothing without one."""
    if (classifier := load_eye(study)) is None:
        return {}
    one, two = presences(subjects, picture, classifier)
    return {"A minus B": one - two}


def seam(picture: Tensor) -> float:
    """How much the step across the picture's middle, upright or level, stands out from all other steps: the larger of
    the two ratios of mean absolute differences. 1 where there is no seam. picture [1,3,H,W]."""
    ratios = []
    for axis in (2, 3):
        steps = picture.diff(dim=axis).abs().mean(dim=[d for d in range(4) if d != axis])
        ratios.append(float(steps[picture.shape[axis] // 2 - 1] / steps.mean().clamp(min=1e-6)))
    return max(ratios)
