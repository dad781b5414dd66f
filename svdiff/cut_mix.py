"""Cut-Mix-Unmix (paper, Sec. 3.3, Fig. 3): pictures of two subjects side by side, with prompts that name both.

With probability 0.6 a training sample shows two of the subjects, drawn without replacement, each in its half of the
frame; the prompt names both, with their places or without. Prior-preservation samples are put together in the same way
from class pictures. The paper leaves open how a picture comes into its half, where the seam lies and the list of
prompts; here the seam is in the middle, upright or level.
"""

import re
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.runs import InputError

PREFIX = re.compile(
    r"^((?:an? )?(?:photo|picture|painting|drawing|sketch|rendering|image) of )?(.+)$", re.IGNORECASE | re.DOTALL
)
PLACES = {False: ("on the left", "on the right"), True: ("at the top", "at the bottom")}


@dataclass(frozen=True)
class Mix:
    """One drawing of lots. pair: which two concepts, as they lie in the picture (left or top first). stacked: one above
    the other. places: whether the prompt says where each is; without, `swapped` names the second one first."""

    pair: tuple[int, int]
    stacked: bool
    places: bool
    swapped: bool


def draw_mix(concepts: int, generator: torch.Generator) -> Mix:
    """Two of the concepts without replacement, in random order, with arrangement and wording by even chances."""
    first, second = torch.randperm(concepts, generator=generator)[:2].tolist()
    stacked, places, swapped = (torch.rand(3, generator=generator) < 0.5).tolist()
    return Mix((first, second), stacked, places, swapped)


def split_prompt(prompt: str) -> tuple[str, str]:
    """("photo of ", "a sks dog") of "photo of a sks dog"; the first may be empty."""
    prefix, phrase = PREFIX.match(prompt.strip()).groups()
    return prefix or "", phrase


def mixed_prompt(mix: Mix, prompts: list[str]) -> str:
    """One prompt from those of all concepts: "photo of a sks dog on the left and a qwe cup on the right", or "photo of
    a qwe cup and a sks dog"."""
    (prefix, one), (_, two) = (split_prompt(prompts[concept]) for concept in mix.pair)
    if mix.places:
        first, second = PLACES[mix.stacked]
        return f"{prefix}{one} {first} and {two} {second}"
    return f"{prefix}{two} and {one}" if mix.swapped else f"{prefix}{one} and {two}"


def check_length(tokenizer, prompts: list[str]) -> None:
    """Raises InputError if a prompt of two subjects is longer than the tokenizer takes: the second would be cut off."""
    for pair in permutations(range(len(prompts)), 2):
        for stacked in (False, True):
            prompt = mixed_prompt(Mix(pair, stacked, places=True, swapped=False), prompts)
            if len(tokenizer(prompt).input_ids) > tokenizer.model_max_length:
                raise InputError(f"the prompt {prompt!r} is longer than this model's {tokenizer.model_max_length} "
                                 "tokens; shorten the subjects' instance prompts")  # fmt: skip


def paste(one: Tensor, two: Tensor, stacked: bool, fit: str = "crop") -> Tensor:
    """Two pictures [3, S, S] as one of the same size, half and half. fit: "crop" takes the middle half of each (its
    subject's true proportions), "resize" squeezes the whole of each."""
    axis, side = (1, one.shape[1]) if stacked else (2, one.shape[2])
    lengths = side // 2, side - side // 2
    halves = []
    for picture, length in zip((one, two), lengths, strict=True):
        if fit == "crop":
            halves.append(picture.narrow(axis, (side - length) // 2, length))
        else:
            size = (length, picture.shape[2]) if stacked else (picture.shape[1], length)
            halves.append(F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1))
    return torch.cat(halves, axis)


def half_masks(stacked: bool, size: int) -> Tensor:
    """float32 [2, size, size]: 1 in the first subject's half, and in the second's."""
    first = torch.zeros(size, size)
    (first if stacked else first.T)[: size // 2] = 1
    return torch.stack([first, 1 - first])


def identifier(instance_prompt: str, class_prompt: str | None) -> str:
    """The words of the instance's phrase that the class's lacks ("sks"); the whole phrase where that leaves none."""
    phrase = split_prompt(instance_prompt)[1]
    known = split_prompt(class_prompt)[1].split() if class_prompt else []
    own = [word for word in phrase.split() if word not in known and word not in ("a", "an", "the")]
    return " ".join(own) if own else phrase
