"""One subject and seed through the arena: train, sample, score, one row per variant; what is done is left alone.

A run's folder: rows.jsonl, pictures/<method>/<subject>/<seed>/<prompt>_<k>.png, config.json, and, while a variant is at
work or with --keep_weights, weights/<subject>/<seed>/<variant>/.
"""

import argparse
import gc
import math
import shutil
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from common.data import Subject, read_subjects
from common.encoders import DREAMBOOTH_ENCODERS, Encoders, load_encoders
from common.files import append_row, read_object, write_json
from common.flags import is_picturebook_folder, weights_of
from common.images import save_png
from common.picturebook.benchmarks import ensure_subjects, ensure_truths
from common.picturebook.scenes import KINDS
from common.runs import digest_of, joined_config, measure, progress, run_rows, write_config
from common.training import picture_hashes, step_generator
from eval.tracks.personalization import own, protocol, scoring, variants
from eval.tracks.personalization.methods import METHODS, Method
from eval.tracks.personalization.variants import Variant
from eval.tuning.tuner import left_out
from lipschitz_personalize.objectives import encode_pictures, network
from lipschitz_personalize.reproduction import drift

COST = "cost.json"  # in a training's folder, once it is whole
REAL = "real"  # the row of the subject's own pictures
DRIFT_PROMPTS = 4  # held-out prompts at which predictions are compared
HELD_OUT_PLACE = 900  # their seeds begin where no subject has a prompt
# What all rows of one folder have in common, beside the settings of each variant.
SAME = ("pretrained_model_name_or_path", "weights", "dataset", "split", "metric_encoders",
        "num_inference_steps", "guidance_scale", "images_per_prompt", "held_out_images")  # fmt: skip
PLACES = {"output_dir", "instance_data_dir", "class_data_dir", "print_config", "device"}  # flags of every run's own


@dataclass(eq=False)
class Arena:
    """What all subjects share. settings: variant -> flags of its training. classes: of the whole dataset. truths: true
    pictures of every prompt, where there are any. calm: the base model's samples of held-out prompts."""

    args: argparse.Namespace
    output: Path
    dataset: Path
    classes: list[str]
    how: protocol.Sampling
    variants: list[Variant]
    settings: dict[str, dict[str, Any]]
    eyes: Encoders
    rows: Path
    truths: Path | None = None
    calm: dict[Any, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.args.pretrained_model_name_or_path

    def done(self, subject: Subject, seed: int) -> set[str]:
        """The variants that have a row."""
        own = (subject.name, seed)
        return {row["method"] for row in run_rows(self.output) if (row["item"], row["seed"]) == own}

    @cached_property
    def base(self):
        """The base model, loaded when it is first asked for."""
        return METHODS["base"].load(self.output, self.model, self.args.device)


def prepare(args: argparse.Namespace, tuned: dict[str, dict] | None = None) -> tuple[Arena, list[Subject]]:
    """The arena with everything loaded that all subjects share, and the subjects. args: of options.parse."""
    output = Path(args.output_dir)
    wanted, settings, whole = variants.plan(args, tuned)
    on_picturebook, truths = is_picturebook_folder(args.pretrained_model_name_or_path), None
    if args.subjects_dir:
        folder = own.write_own(Path(args.subjects_dir), output / "subjects", on_picturebook)
    elif args.dataset == "picturebook":
        folder, truths = ensure_subjects(args.split), ensure_truths(args.split)
    else:
        folder = Path(args.dataset)
    subjects = read_subjects(folder, args.subjects)[: args.limit]
    args.weights = weights_of(args.pretrained_model_name_or_path)
    methods = {name: {flag: value for flag, value in (whole.get(name, {}) | flags).items() if flag not in PLACES}
               for name, flags in settings.items()}  # fmt: skip
    pictures = {one.name: digest_of([one.class_name, protocol.prompts_of(folder, one), picture_hashes(one.paths)])
                for one in subjects}  # fmt: skip
    config = joined_config(output, vars(args), SAME, methods=methods, pictures=pictures)
    eyes = load_encoders(args.metric_encoders, args.device, DREAMBOOTH_ENCODERS)
    classes = [one.class_name for one in read_subjects(folder)]
    if eyes.classifier is not None:
        if set(classes) <= set(KINDS):
            classes = list(KINDS)
        else:  # a user's own, of a class that the picturebook does not know
            eyes = replace(eyes, classifier=None)
    how = protocol.Sampling(args.num_inference_steps, args.guidance_scale, args.images_per_prompt)
    arena = Arena(args, output, folder, classes, how, wanted, settings, eyes, output / "rows.jsonl", truths)
    names = {variant.name for variant in wanted}
    if any(names - arena.done(subject, seed) for subject in subjects for seed in args.seeds):
        _ = arena.base  # a model that is not there is reported before anything is written
    write_config(output, config)
    return arena, subjects


def run_subject(arena: Arena, subject: Subject, seed: int) -> None:
    """Every variant that has no row yet, of one subject and seed; first the row of its own pictures.

    A variant that stops in one sentence, as a diverged training does, is left without a row; the others go on.
    """
    done = arena.done(subject, seed)
    missing = [variant for variant in arena.variants if variant.name not in done]
    if not missing:
        return
    references, place = scoring.read_references(subject), arena.output / "weights" / subject.name / str(seed)
    if REAL not in done:
        append_row(arena.rows, row_of("eval", REAL, subject, seed, scoring.ceiling(references, arena.eyes)))
    for number, variant in enumerate(progress(missing, f"{subject.name}, seed {seed}")):
        with left_out(f"{variant.name} has no row of {subject.name}"):
            append_row(arena.rows, run_variant(arena, variant, subject, seed, references, place))
        shared = any(other.trained_as == variant.trained_as for other in missing[number + 1 :])
        if not (arena.args.keep_weights or shared):  # a full model of SD 1.5 is 3.4 GB
            shutil.rmtree(place / variant.trained_as, ignore_errors=True)
    if not arena.args.keep_weights:
        shutil.rmtree(place, ignore_errors=True)


def run_variant(
    arena: Arena, variant: Variant, subject: Subject, seed: int, references: list[torch.Tensor], place: Path
) -> dict:
    """One row: train (or find it trained), load, sample, score."""
    method, folder = METHODS[variant.method], place / variant.trained_as
    cost = train_once(method, subject, folder, arena.model, arena.settings[variant.trained_as], seed)
    strength = {"strength": variant.strength} if variant.strength != 1 else {}
    pipe = method.load(folder, arena.model, arena.args.device, **strength)
    templates = protocol.prompts_of(arena.dataset, subject)
    called = subject.class_name if method.names_class else ""
    pictures = protocol.sample_subject(pipe, templates, method.token, called, seed, arena.how)
    truths = scoring.read_truths(arena.truths, subject, len(templates)) if arena.truths else None
    metrics, seen = scoring.subject_scores(pictures, templates, subject, references, arena.eyes, truths)
    if not method.needs:
        metrics |= drift_of(arena, pipe, subject, seed, trained=bool(method.script))
    if method.script:
        metrics |= {name: cost[name] for name in ("trainable_parameters", "file_bytes")}
    for number, batch in enumerate(pictures if variant.knob is None else ()):
        for k, picture in enumerate(batch):
            save_png(picture_path(arena.output, variant.name, subject, seed, number, k), picture, rounding="nearest")
    costs = {name: cost[name] for name in ("seconds", "peak_memory_mb")}
    return row_of(method.paper, variant.name, subject, seed, metrics, curves=variant.curves, seen=seen, **costs)


def picture_path(output: Path, method: str, subject: Subject, seed: int, prompt: int, number: int = 0) -> Path:
    return output / "pictures" / method / subject.name / str(seed) / f"{prompt:02d}_{number}.png"


def row_of(paper: str, method: str, subject: Subject, seed: int, metrics: dict[str, float], **more: Any) -> dict:
    """A result row (common.runs); seconds and peak memory are the training's."""
    row = {"paper": paper, "method": method, "item": subject.name, "kind": subject.class_name, "seed": seed}
    return row | {"metrics": metrics, "seconds": math.nan, "peak_memory_mb": math.nan} | more


# ---------------------------------------------------------------------------------------------------------- training


def train_once(
    method: Method, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Train into `folder` unless a whole training lies there; what it cost: seconds and memory of the script's `main`,
    with its class pictures, which every training here draws for itself, and the pictures it shows at the end."""
    if (folder / COST).is_file():
        return read_object(folder / COST)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted: it is to be timed whole
    held = 0.0
    if torch.cuda.is_initialized():  # there `measure` counts all that is allocated: base model and encoders too
        gc.collect()  # what an earlier training left
        held = torch.cuda.memory_allocated() / 2**20
    with measure() as cost:  # the scripts measure their loops inside; what remains is the peak since then
        method.train(subject, folder, model, settings, seed)
    numbers, size = weight_files(folder)
    write_json(folder / COST, {"seconds": cost.seconds, "peak_memory_mb": cost.peak_memory_mb - held,
                               "trainable_parameters": numbers, "file_bytes": size})  # fmt: skip
    return read_object(folder / COST)


def weight_files(folder: Path) -> tuple[int, int]:
    """(numbers, bytes) in the safetensors files that a training left, without its checkpoints."""
    numbers = size = 0
    for path in sorted(folder.rglob("*.safetensors")):
        if not any(part.startswith("checkpoint-") for part in path.relative_to(folder).parts):
            size += path.stat().st_size
            with safe_open(path, "pt") as file:
                numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return numbers, size


# ------------------------------------------------------------------------------------------------------------- drift


def drift_of(arena: Arena, pipe, subject: Subject, seed: int, trained: bool) -> dict[str, float]:
    """How the model speaks of everything but the subject: weights, predictions and samples against the base model's
    (from the same noise), and whether the other classes can still be recognised. Of the base itself only the latter.
    Where no held-out picture is wanted, as in tuning, the weights alone."""
    base, count, eyes = arena.base, arena.args.held_out_images, arena.eyes
    found = drift.weight_drift(network(pipe).state_dict(), network(base).state_dict()) if trained else {}
    on_picturebook = eyes.classifier is not None
    wanted = protocol.held_out(subject, arena.classes, on_picturebook)
    if not wanted or not count:  # a dataset of one class
        return found
    prompts, kinds = zip(*wanted, strict=True)

    def draw(one) -> torch.Tensor:
        return protocol.sample(one, prompts, seed, arena.how, HELD_OUT_PLACE, count).flatten(0, 1)

    ours = draw(pipe)
    # among all classes, the subject's own too: what drifted towards the subject is to be seen as such
    eye = drift.classifier_eye() if on_picturebook else drift.clip_eye(eyes.clip, list(dict.fromkeys(arena.classes)))
    label = "picturebook" if on_picturebook else eyes.clip.label
    found[f"held_out ({label})"] = drift.class_recognition(ours, kinds, eye)
    if not trained:
        return found
    key = (subject.class_name, seed)
    if key not in arena.calm:
        arena.calm[key] = draw(base)
    frechet = {"samples": eyes.features} if len(ours) > 1 else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few pictures in many dimensions: the definition on the page says so
        found |= drift.sample_drift(ours, arena.calm[key], eyes.dino, **frechet)
    asked = prompts[:DRIFT_PROMPTS]  # at the base's first picture of each
    latents = encode_pictures(base, arena.calm[key][::count][: len(asked)], step_generator(seed, 0))
    return found | drift.prediction_drift(pipe, base, asked, latents, seed)
