"""What a micro-step of the training sees: pictures of the subjects and, for prior preservation, of their classes."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from common.images import list_pictures
from common.pipelines import Conditioning, encode_prompt, posterior, scaled_latents
from common.training import generate_class_pictures, load_pictures, picture_batch, picture_indices
from svdiff.cut_mix import Mix, check_length, draw_mix, mixed_prompt, paste
from svdiff.options import Concept, class_folder


@dataclass(frozen=True, eq=False)
class Batch:
    """pictures [n,3,S,S] in [0,1] with a prompt each: those of the subjects, then as many of classes or none.
    mixes: per picture of the subjects how it was cut-mixed, or None. keys: per picture a name, where it is the same
    whenever it comes, or None."""

    pictures: Tensor
    prompts: list[str]
    mixes: list[Mix | None]
    keys: list[tuple | None]


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
    seed: int = 0

    def is_fixed(self, picture: Tensor) -> bool:
        """Whether a picture is cut the same way every time."""
        square = picture.shape[1] == picture.shape[2] == self.resolution
        return not self.random_flip and (self.center_crop or square)

    def cut(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """A picture as a square [3,S,S] in [0,1]."""
        return picture_batch([picture], [0], self.resolution, generator, self.center_crop, self.random_flip)[0]


def read_source(args, pipe, concepts: list[Concept], resolution: int, accelerator, base: str):
    """(Source, paths of all pictures); class pictures that are missing are drawn first, by the untuned model. base: the
    UNet's base_hash. Raises InputError for prompts that cannot be put together."""
    if args.cut_mix_unmix_prob:
        check_length(pipe.tokenizer, [concept.instance_prompt for concept in concepts])
    given = [[Path(args.image_path)] if args.image_path else list_pictures(one.instance_data_dir) for one in concepts]
    instances = [load_pictures(paths, resolution) for paths in given]
    drawn: list[list[Path]] = []
    for concept in concepts if args.with_prior_preservation else []:
        model = f"{pipe.name_or_path} {base}"
        folder = Path(concept.class_data_dir or class_folder(concept.class_prompt, model, resolution))
        generate_class_pictures(
            pipe, concept.class_prompt, folder, args.num_class_images, resolution, args.sample_batch_size,
            process=accelerator.process_index, processes=accelerator.num_processes,
        )  # fmt: skip
        accelerator.wait_for_everyone()
        drawn.append(list_pictures(folder)[: args.num_class_images])
    classes = [load_pictures(paths, resolution) for paths in drawn]
    source = Source(concepts, instances, classes, resolution, args.cut_mix_unmix_prob, args.cut_mix_fit,
                    args.center_crop, args.random_flip, args.seed)  # fmt: skip
    return source, [path for paths in [*given, *drawn] for path in paths]


def draw_batch(source: Source, size: int, generator: torch.Generator, turn: int) -> Batch:
    """`size` samples of the subjects, each cut-mixed with probability source.cut_mix_prob (Sec. 3.3), otherwise of one
    concept drawn at random; and, made in the same way, as many of the classes. turn: see Run.turn. Each concept has an
    order of its own, so that mixed pictures of two meet in all combinations."""
    kinds = {"subject": (source.instances, [concept.instance_prompt for concept in source.concepts])}
    if source.classes:
        kinds["class"] = source.classes, [concept.class_prompt for concept in source.concepts]
    samples: dict[str, list[tuple]] = {kind: [] for kind in kinds}
    mixes = []
    for item in range(size):
        mixed = torch.rand((), generator=generator) < source.cut_mix_prob and len(source.concepts) > 1
        mixes.append(mix := draw_mix(len(source.concepts), generator) if mixed else None)
        concept = int(torch.randint(len(source.concepts), (), generator=generator))
        for kind, (stock, texts) in kinds.items():
            chosen = {which: picture_indices(len(stock[which]), size, source.seed + which, turn)[item]
                      for which in (mix.pair if mix else (concept,))}  # fmt: skip
            pictures = [source.cut(stock[which][index], generator) for which, index in chosen.items()]
            if mix:
                sample = paste(*pictures, mix.stacked, source.cut_mix_fit), mixed_prompt(mix, texts), None
            else:
                fixed = source.is_fixed(stock[concept][chosen[concept]])
                sample = *pictures, texts[concept], (kind, concept, chosen[concept]) if fixed else None
            samples[kind].append(sample)
    pictures, prompts, keys = zip(*(sample for of_kind in samples.values() for sample in of_kind), strict=True)
    return Batch(torch.stack(pictures), list(prompts), mixes, list(keys))


@dataclass(eq=False)
class Encoder:
    """Latents and conditioning of a batch; what comes again unchanged is encoded once. frozen: the text encoder is."""

    pipe: object
    resolution: int
    frozen: bool
    posteriors: dict[tuple, Tensor] = field(default_factory=dict)  # mean and variance of a fixed picture, [8,h,w]
    texts: dict[str, Conditioning] = field(default_factory=dict)

    @torch.no_grad()
    def latents(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """z = E(x), a sample of the VAE's posterior, scaled: float32 [n,4,h,w]."""
        new = [place for place, key in enumerate(batch.keys) if key not in self.posteriors]
        made = dict(zip(new, posterior(self.pipe, batch.pictures[new]).parameters, strict=True)) if new else {}
        self.posteriors |= {batch.keys[place]: found for place, found in made.items() if batch.keys[place] is not None}
        found = [made[place] if place in made else self.posteriors[key] for place, key in enumerate(batch.keys)]
        return scaled_latents(self.pipe, DiagonalGaussianDistribution(torch.stack(found)).sample(generator)).float()

    def conditioning(self, prompts: list[str]) -> Conditioning:
        """c: each distinct prompt is encoded once; once in the whole training while the text encoder is frozen."""
        distinct, size = list(dict.fromkeys(prompts)), (self.resolution, self.resolution)
        if self.frozen:
            self.texts |= {text: encode_prompt(self.pipe, [text], size) for text in distinct if text not in self.texts}
            return Conditioning.cat(*(self.texts[prompt] for prompt in prompts))
        return encode_prompt(self.pipe, distinct, size)[[distinct.index(prompt) for prompt in prompts]]
