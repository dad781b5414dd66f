"""What a micro-step of the training sees: pictures of the subjects and, for prior preservation, of their classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.training import picture_batch, picture_indices
from svdiff.cut_mix import Mix, draw_mix, mixed_prompt, paste
from svdiff.options import Concept


@dataclass(frozen=True, eq=False)
class Batch:
    """pictures [n,3,S,S] in [0,1] with a prompt each: those of the subjects, then as many of classes or none.
    mixes: per picture of the subjects how it was cut-mixed, or None."""

    pictures: Tensor
    prompts: list[str]
    mixes: list[Mix | None]


@dataclass(frozen=True)
class Source:
    """Where batches come from. instances, classes: per concept its pictures (common.training.load_pictures); classes
    are empty without prior preservation."""

    concepts: list[Concept]
    instances: list[list[Tensor]]
    classes: list[list[Tensor]]
    resolution: int
    cut_mix_prob: float = 0.6
    cut_mix_fit: str = "crop"
    center_crop: bool = False
    random_flip: bool = False

    def picture(self, pictures: list[Tensor], place: int, generator: torch.Generator) -> Tensor:
        """One picture [3,S,S]; `place` counts what this training has seen so far."""
        index = [place % len(pictures)]
        return picture_batch(pictures, index, self.resolution, generator, self.center_crop, self.random_flip)[0]


def draw_batch(
    source: Source, size: int, generator: torch.Generator, seed: int, step: int, micro: int = 0, micros: int = 1,
    process: int = 0, processes: int = 1,
) -> Batch:  # fmt: skip
    """`size` samples of the subjects, each cut-mixed with probability source.cut_mix_prob (Sec. 3.3), otherwise of one
    concept drawn at random; and, made in the same way, as many of the classes."""
    concepts, mixes = source.concepts, []
    pictures: list[list[Tensor]] = [[], []]
    prompts: list[list[str]] = [[], []]
    kinds = [(source.instances, [concept.instance_prompt for concept in concepts])]
    if source.classes:
        kinds.append((source.classes, [concept.class_prompt for concept in concepts]))
    for item in range(size):
        mixed = torch.rand((), generator=generator) < source.cut_mix_prob and len(concepts) > 1
        mix = draw_mix(len(concepts), generator) if mixed else None
        concept = int(torch.randint(len(concepts), (), generator=generator))
        mixes.append(mix)
        for kind, (stock, texts) in enumerate(kinds):

            def pick(which: int, stock=stock, item=item) -> Tensor:
                own = seed + which  # an order for each concept: mixed pictures of two meet in all combinations
                order = picture_indices(len(stock[which]), size, own, step, micro, micros, process, processes)
                return source.picture(stock[which], order[item], generator)

            if mix:
                one, two = (pick(which) for which in mix.pair)
                pictures[kind].append(paste(one, two, mix.stacked, source.cut_mix_fit))
                prompts[kind].append(mixed_prompt(mix, texts))
            else:
                pictures[kind].append(pick(concept))
                prompts[kind].append(texts[concept])
    return Batch(torch.stack(pictures[0] + pictures[1]), prompts[0] + prompts[1], mixes)
