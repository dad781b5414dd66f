"""From a training's name to its result row: train, sample DreamBench's prompts, score, measure drift."""

import argparse
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from common.data import Subject, fill_prompt, read_subject_prompts, read_subjects
from common.encoders import Encoders
from common.files import read_json
from common.images import center_crop_resize, load_image, save_png, to_tensor
from common.picturebook.benchmarks import ensure_subjects
from common.training import step_generator
from lipschitz_personalize import options, train
from lipschitz_personalize.loading import load_trained
from lipschitz_personalize.objectives import load_backbone
from lipschitz_personalize.reproduction import drift, plan, scores

HELD_OUT = 4  # classes at whose prompts predictions are compared


@dataclass(frozen=True, eq=False)
class Bench:
    """What all trainings share. args: the flags of the evaluation; subjects: those wanted; prompts: by kind;
    classes: of the whole dataset; base: the model before any training; kept: its pictures, for drift (drift.draw)."""

    args: argparse.Namespace
    subjects: list[Subject]
    prompts: dict[str, list[str]]
    classes: list[str]
    eyes: Encoders
    base: object
    kept: dict = field(default_factory=dict)

    def templates(self, subject: Subject) -> list[str]:
        return self.prompts[subject.prompt_kind][: self.args.prompts]

    def folder(self, name: str, subject: Subject, seed: int) -> Path:
        return Path(self.args.output_dir) / "trained" / name / f"{subject.name}-{seed}"

    def picture(self, name: str, subject: Subject, seed: int, prompt: int, number: int) -> Path:
        place = Path(self.args.output_dir) / "pictures" / name / f"{subject.name}-{seed}"
        return place / f"{prompt:02d}-{number}.png"


def read_bench(args: argparse.Namespace) -> Bench:
    """Everything loaded."""
    folder = ensure_subjects(args.split) if args.dataset == "picturebook" else Path(args.dataset)
    everyone = read_subjects(folder, needed=args.subjects)
    named = read_subjects(folder, args.subjects) if args.subjects else everyone if args.full else everyone[:1]
    classes = sorted({subject.class_name for subject in everyone})
    base = load_backbone(args.pretrained_model_name_or_path, args.device)
    eyes = scores.load_eyes(args.metric_encoders, args.device, fid=args.drift)
    return Bench(args, named, read_subject_prompts(folder), classes, eyes, base)


def drop_weights(folder: Path) -> None:
    """Once a training's row is written: all but its settings, costs and pictures."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in ("metrics.json", "config.json", "grid.png"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def run_item(bench: Bench, name: str, subject: Subject, seed: int) -> dict:
    """Train (unless that is done), sample, score; returns the result row."""
    args, folder = bench.args, bench.folder(name, subject, seed)
    if not (folder / "metrics.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted: the time is to be that of one piece
        train.main(plan.training_flags(args, name, subject, seed, folder))
    cost, config = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    pipe, side = load_trained(folder, args.pretrained_model_name_or_path, args.device), config["resolution"]
    steps, guidance = options.sampling_of(config, args)
    sampling = {"height": side, "width": side, "num_inference_steps": steps, "guidance_scale": guidance}

    templates = bench.templates(subject)
    places = [(p, n) for p in range(len(templates)) for n in range(args.num_images)]
    prompts = [fill_prompt(templates[p], plan.token_of(args, name), subject.class_name) for p, _ in places]
    pictures = scores.sample(pipe, prompts, [step_generator(seed, p, n) for p, n in places], **sampling)
    for (p, n), picture in zip(places, pictures, strict=True):
        save_png(bench.picture(name, subject, seed, p, n), picture, rounding="nearest")
    real = torch.cat([to_tensor(center_crop_resize(load_image(path), side)) for path in subject.paths])
    metrics = scores.fidelity(pictures, [real], bench.eyes.clip, bench.eyes.dino)
    by_prompt = pictures.unflatten(0, (len(templates), args.num_images))
    metrics |= scores.adherence(by_prompt, templates, subject.class_name, bench.eyes.clip)
    metrics |= drift_of(bench, pipe, subject, seed, sampling)
    costs = {key: cost[key] for key in ("class_seconds", "peak_memory_mb", "trainable_parameters", "file_bytes")}
    return {
        "paper": "lipschitz_personalize", "method": name, "item": f"{subject.name}/{seed}", "seed": seed,
        "l2_reg_weight": config["l2_reg_weight"], "metrics": metrics,
        "seconds": cost["seconds"] + cost["class_seconds"], "train_seconds": cost["seconds"], **costs,
    }  # fmt: skip


def drift_of(bench: Bench, pipe, subject: Subject, seed: int, sampling: dict) -> dict[str, float]:
    """Weights and predictions; with --drift also samples, and whether held-out classes are still recognised."""
    args, eyes, start = bench.args, bench.eyes, plan.start_of(bench.args.pretrained_model_name_or_path)
    others = [other for other in args.held_out_classes or bench.classes if other != subject.class_name]
    prompts = [f"{start} {other}" for other in others]
    asked = prompts[:HELD_OUT] or drift.HELD_OUT_PROMPTS
    found = drift.measure_drift(pipe, bench.base, asked, seed, args.drift, bench.kept, **sampling)
    if not args.drift:
        return found

    def both(prompts) -> tuple[torch.Tensor, torch.Tensor]:
        count = max(2, args.num_images)  # a Frechet distance of one picture there is not
        return (drift.draw(pipe, prompts, count, seed, **sampling),
                drift.draw(bench.base, prompts, count, seed, bench.kept, **sampling))  # fmt: skip

    inception = {"inception": eyes.features} if eyes.features else {}
    found |= drift.sample_drift(*both(asked), eyes.dino, clip=eyes.clip, **inception)
    if others:  # among the subject's own class too: what drifted towards the subject is to be seen as such
        every = list(dict.fromkeys([*bench.classes, *others]))
        on_picturebook = args.dataset == "picturebook"
        recognise = drift.classifier_eye(args.device) if on_picturebook else drift.clip_eye(eyes.clip, every)
        for key, drawn in zip(("class_recognition", "class_recognition_base"), both(prompts), strict=True):
            found[key] = drift.class_recognition(drawn, others, recognise)
    return found
