"""DreamBench's protocol (Ruiz et al., CVPR 2023, section 4): subjects x prompts x pictures, and what a prompt asks for.

Every method samples with the same seeds: that of picture k of prompt p depends on the run's seed, p and k alone.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from common.data import Subject, fill_prompt, read_subject_prompts, read_subjects
from common.picturebook.classifier import Reading
from common.picturebook.scenes import BACKGROUND_WORDS, COLORS, HELD_OUT, KINDS, MATERIALS, POSES
from common.runs import InputError

PICTUREBOOK = "picturebook"


@dataclass(frozen=True)
class Sampling:
    """How pictures are made. batch: how many at a time (it decides the last digits of every picture)."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    images_per_prompt: int = 4
    batch: int = 15


def find_subjects(dataset: str, split: str, names: list[str] | None, limit: int | None) -> tuple[Path, list[Subject]]:
    """The dataset's folder ("picturebook": that of the split, drawn if need be) and the subjects wanted of it."""
    if dataset == PICTUREBOOK:
        from common.picturebook.benchmarks import ensure_subjects

        folder = ensure_subjects(split)
    else:
        folder = Path(dataset)
        if not (folder / "prompts_and_classes.txt").is_file():
            raise InputError(f"--dataset {dataset} holds no prompts_and_classes.txt; give a DreamBooth-dataset folder")
    return folder, read_subjects(folder, names)[:limit]


def prompts_of(folder: Path, subject: Subject) -> list[str]:
    """The templates "a {0} {1} in the snow" that the subject is drawn in: {0} the token, {1} the class."""
    return read_subject_prompts(folder)["live" if subject.live else "object"]


# ---------------------------------------------------------------------------------------------------------- sampling


def picture_seed(seed: int, prompt: int, number: int) -> int:
    """One number for each picture of a run; no two runs share one."""
    return (seed * 1000 + prompt) * 1000 + number


@torch.no_grad()
def sample(pipe: DiffusionPipeline, prompts: list[str], seeds: list[int], how: Sampling) -> torch.Tensor:
    """One picture per prompt and seed, [n, 3, H, W] float32 on the CPU in [0, 1], rounded to 8 bits as a file would be.

    Raises InputError where the model gives NaN, which a diverged training does.
    """
    pipe.set_progress_bar_config(disable=True)
    made = []
    for start in range(0, len(prompts), how.batch):
        chunk = slice(start, start + how.batch)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chunk]]
        made.append(
            pipe(
                prompts[chunk], num_inference_steps=how.num_inference_steps, guidance_scale=how.guidance_scale,
                generator=generators, output_type="pt",
            ).images.float().cpu()
        )  # fmt: skip
    pictures = torch.cat(made)
    if pictures.isnan().any():
        raise InputError("the personalised model gives NaN: its training diverged; lower the learning rate")
    return (pictures.clamp(0, 1) * 255).round() / 255


def sample_subject(
    pipe: DiffusionPipeline, templates: list[str], token: str, class_name: str, seed: int, how: Sampling
) -> torch.Tensor:
    """[prompts, images_per_prompt, 3, H, W] of one subject."""
    prompts, seeds = [], []
    for number, template in enumerate(templates):
        for k in range(how.images_per_prompt):
            prompts.append(fill_prompt(template, token, class_name))
            seeds.append(picture_seed(seed, number, k))
    return sample(pipe, prompts, seeds, how).unflatten(0, (len(templates), how.images_per_prompt))


def held_out(subject: Subject, classes: list[str], on_picturebook: bool) -> list[tuple[str, str]]:
    """(prompt, class) for every class but the subject's own: what personalisation should leave as it was.

    The picturebook's prompts name a colour and a place too, as its captions do.
    """
    others = [name for name in dict.fromkeys(classes) if name != subject.class_name]
    if not on_picturebook:
        return [(f"a photo of a {name}", name) for name in others]
    places = list(BACKGROUND_WORDS.values())
    found = []
    for number, name in enumerate(others):
        color = next(c for c in COLORS[3 * number % 10 :] + COLORS if (c, name) not in HELD_OUT)
        found.append((f"a {color} {name} {places[number % len(places)]}", name))
    return found


# ------------------------------------------------------------------------------------- what the picturebook's eye sees


def asked(template: str, kind: str) -> dict[str, Any]:
    """What a prompt of the picturebook asks for beside the subject, in the classifier's terms.

    Keys: background, light, style of the scene; color, material, hat, pose of the subject; companion (colour, kind).
    A companion of the subject's own kind is left out: the classifier names one colour per kind.
    """
    found: dict[str, Any] = {}
    for background, words in BACKGROUND_WORDS.items():
        if words in template:
            found["background"] = background
    if "at night" in template:
        found["light"] = "night"
    if "pencil sketch" in template:
        found["style"] = "sketch"
    if "{1} with a hat" in template:
        found["hat"] = True
    for word in template.partition("{0}")[0].split():
        if word in COLORS:
            found["color"] = word
        elif word in MATERIALS:
            found["material"] = word
        elif word in POSES:
            found["pose"] = word
    companion = re.search(rf" and an? ({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b", template)
    if companion and companion[2] != kind:
        found["companion"] = (companion[1], companion[2])
    return found


def things_seen(wanted: dict[str, Any], reading: Reading) -> dict[str, dict]:
    """kind -> what the classifier says of it, for as many most present things as the prompt speaks of."""
    return {thing["kind"]: thing for thing in reading.things[: 2 if "companion" in wanted else 1]}


def context_seen(wanted: dict[str, Any], kind: str, reading: Reading) -> bool:
    """Whether a picture shows all that `asked` found; what is said of the subject counts only if its kind is seen."""
    things = things_seen(wanted, reading)
    for name, value in wanted.items():
        if name in ("background", "light", "style"):
            seen = getattr(reading, name) == value
        elif name == "companion":
            seen = value[1] in things and things[value[1]]["color"] == value[0]
        else:
            seen = kind in things and things[kind][name] == value
        if not seen:
            return False
    return True


def usual_color(kind: str, readings: list[Reading]) -> str:
    """The colour that the classifier most often sees in a subject's own pictures (an individual's marking can outweigh
    the colour that it was drawn in)."""
    return Counter(reading.thing(kind)["color"] for reading in readings).most_common(1)[0][0]


def subject_seen(wanted: dict[str, Any], kind: str, color: str, reading: Reading) -> bool | None:
    """Whether the subject's kind is there in its usual colour; None where the prompt changes the colour or leaves none
    (a sketch). Its marking has no name, and is the business of DINO and CLIP-I."""
    if "color" in wanted or "style" in wanted:
        return None
    things = things_seen(wanted, reading)
    return kind in things and things[kind]["color"] == color
