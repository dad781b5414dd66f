"""The lawn's runs: train along, load the points of each training, sample, score. (What they are for: lawn.py.)"""

import argparse
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.data import Subject, read_subjects
from common.encoders import Encoders, load_encoders
from common.files import append_row
from common.flags import weights_of
from common.picturebook.benchmarks import ensure_lawn, ensure_truths
from common.picturebook.scenes import BACKGROUND_WORDS, COLORS, HELD_OUT
from common.runs import joined_config, run_rows, write_config
from common.shards import all_done
from eval.tracks.personalization import protocol, scoring
from eval.tracks.personalization.arena import row_of
from eval.tracks.personalization.methods import METHODS, Method
from lipschitz_personalize.loading import load_trained
from lipschitz_personalize.objectives import load_backbone

# What all rows of a folder have in common.
SAME = ("pretrained_model_name_or_path", "weights", "steps", "images_per_prompt", "num_inference_steps",
        "guidance_scale")  # fmt: skip
STRENGTHS = (0.25, 0.5, 0.75)  # of the way from the base to the plain weights
OTHERS = 4  # further things of the subject's class, in other colours
SEED_OF_OTHERS = 900


def train_along(
    method: Method, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int, steps: list[int]
) -> dict[int, Path]:
    """step -> folder of the weights as a training of so many steps would have left them, inside `folder`.

    Trainings resume exactly, so that a run to the longest, with checkpoints, holds all shorter ones: each is written
    out by taking its checkpoint up and asking for no further step. That is true of a constant learning rate alone.
    """
    longest, whole = max(steps), folder / "whole"
    shared = settings | {"class_data_dir": whole / "class_pictures"}
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    every = {"checkpointing_steps": math.gcd(*steps)} if len(steps) > 1 else {}
    method.train(subject, whole, model, shared | every | {"max_train_steps": longest}, seed)
    found = {}
    for step in sorted(steps)[:-1]:
        found[step] = folder / f"step-{step}"
        taken_up = {"max_train_steps": step, "resume_from_checkpoint": whole / f"checkpoint-{step}"}
        method.train(subject, found[step], model, shared | taken_up, seed)
    for place in whole.glob("checkpoint-*"):
        shutil.rmtree(place)
    return found | {longest: whole}


def points_of(setting, args: argparse.Namespace, folders: dict[int, Path]) -> Iterator[tuple]:
    """(arm, name of the point, its place on the arm's curve, pipeline) of a training: its steps, and of a plain one
    what is made of its last weights."""
    model, device, last = args.pretrained_model_name_or_path, args.device, folders[max(folders)]
    for step in args.steps if setting.arm in args.arms else ():
        yield setting.arm, f"{setting.name} @{step}", step, load_trained(folders[step], model, device)
    if setting.arm != "plain":
        return
    for strength in STRENGTHS if "interpolation" in args.arms else ():
        pipe = load_trained(last, model, device, strength)
        yield "interpolation", f"interpolation {setting.rate:g} @{strength:g}", strength, pipe
    if "random" in args.arms:
        moved = randomly_moved(load_backbone(model, device), load_trained(last, model, device))
        yield "random", f"random {setting.rate:g} @1", 1, moved


@torch.no_grad()
def randomly_moved(base, pipe, seed: int = 0):
    """The base with every tensor moved as far as in `pipe`, in a direction of chance: what a change of that size does
    that has learned nothing."""
    generator = torch.Generator().manual_seed(seed)
    for own, moved in zip(base.unet.parameters(), pipe.unet.parameters(), strict=True):
        direction = torch.randn(own.shape, generator=generator).to(own)
        own.add_(direction * ((moved.to(own) - own).norm() / direction.norm()))
    return base


# ------------------------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Data:
    """Of a subject: prompt templates, its own pictures, scoring.Truths, the background of all of them, and (prompt,
    colour) of other things of its class."""

    subject: Subject
    templates: list[str]
    references: list[torch.Tensor]
    truths: scoring.Truths
    lawn: str
    others: list[tuple[str, str]]


def read_data(folder: Path, truths: Path, subject: Subject, classifier) -> Data:
    references, kind = scoring.read_references(subject), subject.class_name
    readings = [classifier.read(reference)[0] for reference in references]
    lawn = Counter(reading.background for reading in readings).most_common(1)[0][0]
    usual = protocol.usual_color(kind, readings)
    colors = [color for color in COLORS if color != usual and (color, kind) not in HELD_OUT][:OTHERS]
    places = [words for name, words in BACKGROUND_WORDS.items() if name != lawn]
    others = [(f"a {color} {kind} {places[n % len(places)]}", color) for n, color in enumerate(colors)]
    templates = protocol.prompts_of(folder, subject)
    true = scoring.read_truths(truths, subject, len(templates))
    return Data(subject, templates, references, true, lawn, others)


def score(pipe, token: str, data: Data, eyes: Encoders, how: protocol.Sampling, seed: int) -> dict[str, float]:
    """The three numbers of a point and what they are made of."""
    kind = data.subject.class_name
    pictures = protocol.sample_subject(pipe, data.templates, token, kind, seed, how)
    found, _ = scoring.subject_scores(pictures, data.templates, data.subject, data.references, eyes, data.truths)
    leaks = []
    for template, batch in zip(data.templates, pictures, strict=True):
        if protocol.asked(template, kind).get("background") not in (None, data.lawn):
            leaks += [reading.background == data.lawn for reading in eyes.classifier.read(batch)]
    others = protocol.sample(pipe, [prompt for prompt, _ in data.others], seed, how, SEED_OF_OTHERS)
    first = [[reading.things[0] for reading in eyes.classifier.read(batch)] for batch in others]
    kept = [thing["kind"] == kind and thing["color"] == color
            for (_, color), things in zip(data.others, first, strict=True) for thing in things]  # fmt: skip
    return found | {
        "leak (picturebook)": scoring.share(leaks),
        "class_kept (picturebook)": scoring.share(kept),
        "class_likeness (picturebook)": scoring.likeness(others, data.truths, data.references, eyes.dino),
    }


# ------------------------------------------------------------------------------------------------------------- a run


def run(args: argparse.Namespace, settings: list, curves_of: Callable[..., dict[str, float]]) -> list[dict]:
    """Train, sample and score what is missing of lawn.Settings; all rows, none for a shard that ends before others.
    curves_of: see lawn.py."""
    output = Path(args.output_dir) / args.split
    folder, truths = ensure_lawn(args.split), ensure_truths(args.split)
    subjects = read_subjects(folder)[: args.limit]
    args.weights = weights_of(args.pretrained_model_name_or_path)
    write_config(output, joined_config(output, vars(args), SAME))
    eyes, file = load_encoders("picturebook", args.device), output / "rows.jsonl"
    work = [(setting, subject, seed) for seed in args.seeds for subject in subjects for setting in settings]
    for setting, subject, seed in args.shard.of(work):
        done = {(row["method"], row["item"], row["seed"]) for row in run_rows(output)}
        if (f"{setting.name} all", subject.name, seed) not in done:
            data = read_data(folder, truths, subject, eyes.classifier)
            place = output / "weights" / f"shard-{args.shard.index}"
            for row in rows_along(args, setting, data, seed, eyes, curves_of, place):
                append_row(file, row)
    wanted = [(f"{setting.name} all", subject.name, seed) for setting, subject, seed in work]
    return [row for row in run_rows(output) if row["metrics"]] if all_done(file, wanted, args.shard) else []


def rows_along(args: argparse.Namespace, setting, data: Data, seed: int, eyes, curves_of, place: Path) -> list[dict]:
    """One row for each point of a training, and an empty one that says that it is whole."""
    how = protocol.Sampling(args.num_inference_steps, args.guidance_scale, args.images_per_prompt)
    method, model, rows = METHODS[setting.method], args.pretrained_model_name_or_path, []
    folders = train_along(method, data.subject, place, model, setting.flags, seed, args.steps)
    for arm, name, at, pipe in points_of(setting, args, folders):
        where = {"arm": arm, "rate": setting.rate, "weight": setting.weight, "at": at,
                 "curves": curves_of(arm, setting, at, args)}  # fmt: skip
        metrics = score(pipe, method.token, data, eyes, how, seed)
        rows.append(row_of("lipschitz_personalize", name, data.subject, seed, metrics, **where))
    shutil.rmtree(place, ignore_errors=True)
    return [*rows, row_of("lipschitz_personalize", f"{setting.name} all", data.subject, seed, {})]
