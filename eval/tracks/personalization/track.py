"""Track "personalization": the arena on the page. eval.personalize measures all of it; eval.compare a quick pair."""

import argparse
import shlex
from pathlib import Path

from common.data import Subject, fill_prompt
from common.flags import is_picturebook_folder
from common.runs import run_rows, write_json
from eval.tracks.personalization import methods, options
from eval.tracks.personalization.arena import REAL, picture_path, prepare, run_subject
from eval.tracks.personalization.matched import curve_of
from eval.tracks.personalization.protocol import prompts_of
from eval.tracks.personalization.variants import CURVES, tuned_settings
from eval.tracks.track import Item, Picture, Track, given, runs_of

NAME = "personalization"
QUICK = ["dreambooth", "dreambooth+penalty"]  # what eval.compare trains by itself, on one subject: a minute each
REFERENCES = (REAL, "base")  # shown apart: floor and ceiling
FIRST = "dreambooth+prior"
METHODS = {FIRST: methods.METHODS[FIRST].title, REAL: "Real pictures"}
METHODS |= {name: method.title for name, method in methods.METHODS.items()}
FRONTS = [("DINO/dreambench", score) for score in ("context", "CLIP-T/dreambench", "drift_score")]
COLUMNS = [
    "likeness", "context", "DINO/dreambench", "CLIP-T/dreambench", "held_out", "drift_score", "CLIP-I/dreambench",
    "identity", "diversity", "frechet_samples", "delta_theta_relative", "delta_eps_relative", "trainable_parameters",
    "file_bytes", "seconds", "peak_memory_mb",
]  # fmt: skip
ON_REAL = (
    "python -m eval.personalize --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 "
    "--dataset dreambooth/dataset"
)
SHOWN_PROMPTS = 4  # per subject, in the picture grid
SHOWN_SUBJECTS = 4
NOTES = [
    "DreamBench's protocol: every prompt of every subject, four pictures each unless the command gives another "
    "--images_per_prompt; the quick form is of one subject, one "
    "picture per prompt and one training, and decides nothing. Intervals resample subjects, and seeds within them.",
    "CLIP-T is of the prompt without the rare token. Context and identity are what the attribute classifier, which no "
    "model was trained with, sees: all that the prompt asks for, and the subject's kind in its usual colour.",
    "Drift is against the base model from the same noise, on prompts of the other classes. Seconds and memory are of a "
    "whole training, class pictures included; a subject's file is what has to be kept of it.",
    "IP-Adapter and BLIP-Diffusion need weights: encoders trained for Stable Diffusion 1.5, which the picturebook has "
    "no counterpart of: they have no rows there.",
]  # fmt: skip
TUNED = {
    True: "For every method the same number of settings was tried on the validation subjects "
    "(eval/tuning/personalization.py).",
    False: "The methods are not tuned yet (eval/tuning/personalization.py does that): all have their scripts' presets.",
}


def command(args: argparse.Namespace) -> list[str]:
    """The arguments of eval.personalize for the flags of eval.compare: the pair, one subject, a picture per prompt."""
    return given(
        args, "pretrained_model_name_or_path", "num_inference_steps", "device", seeds=args.seed, limit=1,
        metric_encoders="paper" if args.metric_encoders == "pie" else args.metric_encoders, images_per_prompt=1,
        held_out_images=1, output_dir=Path(args.output_dir) / NAME, methods=QUICK, curves=[],
    )  # fmt: skip


def run(args: argparse.Namespace) -> Track | None:
    """Train and score the quick pair where that is missing, and gather it with the committed rows of the whole arena;
    None for a dataset of edits without subjects, and for a model that does not train in minutes.

    args: the flags of eval.compare. InputError for input that eval.personalize refuses.
    """
    if args.dataset != "picturebook" or not is_picturebook_folder(args.pretrained_model_name_or_path):
        return None
    settings = options.parse(command(args))
    arena, subjects = prepare(settings)
    for subject in subjects:
        run_subject(arena, subject, args.seed)
    return track_of(arena.output, subjects, arena.dataset, settings)


def track_of(output: Path, subjects: list[Subject], dataset: Path, settings: argparse.Namespace) -> Track:
    """What a folder of rows shows; subjects: those to show pictures of."""
    rows = run_rows(output)
    runs = runs_of(NAME, output, rows, options.parse)
    measured = {row["method"] for run in runs for row in run.rows}
    shown = {name: title for name, title in METHODS.items() if name in measured}
    largest = max(runs, key=lambda run: len(run.rows))
    write_json(output / "metrics.json", {name: means(rows, name) for name in dict.fromkeys(r["method"] for r in rows)})
    flags = given(settings, "pretrained_model_name_or_path", "dataset", "subjects_dir", "images_per_prompt",
                  "num_inference_steps", "output_dir")  # fmt: skip
    whole = "python -m eval.personalize " + shlex.join(flags)
    return Track(
        name=NAME,
        title="Personalization",
        about="A handful of pictures of one subject, and a model that has to draw it in new places without forgetting "
        "everything else. DreamBooth + penalty keeps the weights near the base model's and needs no class pictures.",
        methods=shown,
        columns=COLUMNS,
        runs=runs,
        items=items_of(output, subjects[:SHOWN_SUBJECTS], dataset, rows, settings.seeds[0]),
        commands={
            name: f"{ON_REAL if methods.METHODS[name].needs else whole} --methods {name} --curves"
            for name in shown
            if name != REAL
        },
        papers={
            "Preserve and Personalize: Personalized Text-to-Image Diffusion Models without Distributional Drift (ICLR "
            "2026)": "https://arxiv.org/abs/2505.19519",
            "SVDiff (ICCV 2023)": "https://arxiv.org/abs/2303.11305",
            "DreamBooth (CVPR 2023)": "https://arxiv.org/abs/2208.12242",
            "Textual Inversion (ICLR 2023)": "https://arxiv.org/abs/2208.01618",
            "Custom Diffusion (CVPR 2023)": "https://arxiv.org/abs/2212.04488",
            "OFT (NeurIPS 2023)": "https://arxiv.org/abs/2306.07280",
        },
        published="lipschitz_personalize:2",
        notes=[*NOTES, TUNED[bool(tuned_settings())]],
        references=REFERENCES,
        families={name: method.family for name, method in methods.METHODS.items()},
        fronts=FRONTS,
        curves=curves(largest.rows),
        own="dreambooth+penalty",
    )


def means(rows: list[dict], method: str) -> dict[str, dict[str, float]]:
    """Score -> mean and interval of one method."""
    from eval.report.measures import keys, mean_interval

    own = [row for row in rows if row["method"] == method]
    found = {key: mean_interval(own, key, method) for key in keys(own)}
    return {key: {part: getattr(one, part) for part in ("mean", "low", "high", "n")} for key, one in found.items()}


def curves(rows: list[dict]) -> dict[str, list[str]]:
    """Title -> the points of each curve that has rows, in the order of its knob."""
    found = {curve.title: [method for _, method in curve_of(rows, name)] for name, curve in CURVES.items()}
    return {title: points for title, points in found.items() if len(points) > 1}


def items_of(output: Path, subjects: list[Subject], dataset: Path, rows: list[dict], seed: int) -> list[Item]:
    """Some prompts of some subjects, evenly spread: the subject's own pictures and one of each method."""
    seen = {(row["method"], row["item"], row["seed"]): row.get("seen") for row in rows}
    items = []
    for place, subject in enumerate(subjects):
        own = prompts_of(dataset, subject)
        step = max(1, len(own) // SHOWN_PROMPTS)
        for number in range(place % step, len(own), step)[:SHOWN_PROMPTS]:
            pictures = [Picture("subject", path) for path in subject.paths[:2]]
            for method in METHODS:
                judged = seen.get((method, subject.name, seed))
                if judged:
                    path = picture_path(output, method, subject, seed, number)
                    pictures.append(Picture("sample", path, method, judged[number][0]))
            prompts = f"a photo of a {subject.class_name}", fill_prompt(own[number], "", subject.class_name)
            items.append(Item(f"{subject.name}-{number}", subject.name, *prompts, pictures))
    return items
