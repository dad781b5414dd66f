"""DreamBench's protocol (Ruiz et al., CVPR 2023, section 4): subjects x prompts x pictures, and what a prompt asks for.

Every method samples with the same seeds: that of picture k of prompt p depends on the run's seed, p and k alone.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.data import Subject, fill_prompt, read_subject_prompts
from common.picturebook.classifier import Reading
from common.picturebook.scenes import BACKGROUND_WORDS, COLORS, HELD_OUT, KINDS, MATERIALS, POSES
from lipschitz_personalize.reproduction import scores


@dataclass(frozen=True)
class Sampling:
    """How pictures are made. batch: how many at a time (it decides the last digits of every picture)."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    images_per_prompt: int = 4
    batch: int = 15


def prompts_of(folder: Path, subject: Subject) -> list[str]:
    """The templates "a {0} {1} in the snow" that the subject is drawn in: {0} the token, {1} the class."""
    return read_subject_prompts(folder)[subject.prompt_kind]


# ---------------------------------------------------------------------------------------------------------- sampling


def sample(
    pipe, prompts: Sequence[str], seed: int, how: Sampling, first: int = 0, count: int | None = None
) -> torch.Tensor:  # fmt: skip
    """`count` pictures of every prompt (by default how.images_per_prompt), [prompts, count, 3, H, W] in [0, 1]. first:
    the number of the first prompt, for the seeds. Raises InputError where the model gives NaN."""
    places = [(p, k) for p in range(len(prompts)) for k in range(count or how.images_per_prompt)]
    seeds = [(seed * 1000 + first + p) * 1000 + k for p, k in places]  # no two runs share one
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    asked = [prompts[p] for p, _ in places]
    drawn = scores.sample(pipe, asked, generators, how.batch, how.num_inference_steps, how.guidance_scale)
    return drawn.unflatten(0, (len(prompts), -1))


def sample_subject(pipe, templates: list[str], token: str, class_name: str, seed: int, how: Sampling) -> torch.Tensor:
    """[prompts, images_per_prompt, 3, H, W] of one subject."""
    return sample(pipe, [fill_prompt(template, token, class_name) for template in templates], seed, how)


def held_out(subject: Subject, classes: list[str], on_picturebook: bool) -> list[tuple[str, str]]:
    """(prompt, class) for every class but the subject's own: what personalisation should leave as it was.

    The picturebook's prompts name a colour and a place too, as its captions do.
    """
    others = [name for name in dict.fromkeys(classes) if name != subject.class_name]
    if not on_picturebook:
        return [(f"a photo of a {name}", name) for name in others]
    places, found = list(BACKGROUND_WORDS.values()), []
    for number, name in enumerate(others):
        color = next(c for c in COLORS[3 * number % 10 :] + COLORS if (c, name) not in HELD_OUT)
        found.append((f"a {color} {name} {places[number % len(places)]}", name))
    return found


# ------------------------------------------------------------------------------------- what the picturebook's eye sees


SCENE = ("background", "light", "style")
SAYS = {words: ("background", name) for name, words in BACKGROUND_WORDS.items()} | {
    "at night": ("light", "night"), "pencil sketch": ("style", "sketch"), "{1} with a hat": ("hat", True),
}  # fmt: skip
KINDS_OF_WORDS = {"color": COLORS, "material": MATERIALS, "pose": POSES}
COMPANION = re.compile(rf" and an? ({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b")


def asked(template: str, kind: str) -> dict[str, Any]:
    """What a prompt of the picturebook asks for beside the subject, in the classifier's terms.

    Keys: SCENE; color, material, hat, pose of the subject; companion (colour, kind). A companion of the subject's own
    kind is left out: the classifier names one colour per kind.
    """
    found: dict[str, Any] = {name: value for words, (name, value) in SAYS.items() if words in template}
    before = template.partition("{0}")[0].split()
    found |= {name: word for word in before for name, words in KINDS_OF_WORDS.items() if word in words}
    companion = COMPANION.search(template)
    if companion and companion[2] != kind:
        found["companion"] = companion.groups()
    return found


def things_seen(wanted: dict[str, Any], reading: Reading) -> dict[str, dict]:
    """kind -> what the classifier says of it, for as many most present things as the prompt speaks of."""
    return {thing["kind"]: thing for thing in reading.things[: 2 if "companion" in wanted else 1]}


def context_seen(wanted: dict[str, Any], kind: str, reading: Reading) -> bool:
    """Whether a picture shows all that `asked` found; what is said of the subject counts only if its kind is seen."""
    things, nothing = things_seen(wanted, reading), {}

    def seen(name: str, value: Any) -> bool:
        if name in SCENE:
            return getattr(reading, name) == value
        if name == "companion":
            return things.get(value[1], nothing).get("color") == value[0]
        return things.get(kind, nothing).get(name) == value

    return all(seen(name, value) for name, value in wanted.items())


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
