"""The flags that the scripts share and what they default to. Nothing heavy is imported here."""

import argparse
import hashlib
import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from common.flags import is_picturebook_folder, number
from common.runs import InputError, cache_folder, read_json

OUTPUT_DIR = "outputs/svdiff"  # of the training, where infer looks when it is not told
# keys of subsets.SUBSETS, which needs torch
SUBSET_NAMES = ("UNet", "UNet-CA", "UNet-CA-KV", "UNet-1D", "UNet-2D", "UNet-4D", "Up-Blocks", "Down-Blocks",
                "Mid-Block", "Up-CA", "Down-CA", "Mid-CA")  # fmt: skip
PARAMETER_SPACES = ("svdiff", "full", "lora")

# of AdamW: the author's; those of DreamBooth with a text encoder and of LoRA in diffusers' examples
LEARNING_RATES = {"svdiff": 1e-3, "full": 2e-6, "lora": 1e-4}
PICTUREBOOK_LEARNING_RATES = {"svdiff": 2e-2, "full": 3e-4, "lora": 3e-4}
# of several subjects, by whether they are cut and mixed
PICTUREBOOK_RATES_OF_SEVERAL = {True: {"svdiff": 5e-3, "full": 3e-5, "lora": 3e-4},
                                False: {"svdiff": 5e-3, "full": 3e-4, "lora": 3e-4}}  # fmt: skip
PICTUREBOOK_SUBJECT = "cat"  # of the validation split: trained on where no pictures are given

# What takes the place of the paper's defaults on the picturebook; tuned on its validation split only.
TRAINING_PRESET: dict[str, Any] = {
    "learning_rate_1d": 1e-3,
    "max_train_steps": 100,
    "train_batch_size": 2,
    "num_class_images": 24,
    "sample_batch_size": 8,
    "center_crop": True,
    "checkpointing_steps": 300,
    "unmix_resolution": 8,
}
SAMPLING_PRESET: dict[str, Any] = {"geometry_layers": [(8, "down", 0), (4, "down", 0)]}


@dataclass(frozen=True)
class Concept:
    """One subject: its pictures, their prompt, and the same of its class."""

    instance_data_dir: str
    instance_prompt: str
    class_data_dir: str | None = None
    class_prompt: str | None = None


def read_concepts(path: str, prior: bool) -> list[Concept]:
    """--concepts_list: a JSON list of objects with the fields of Concept. Raises InputError."""
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"--concepts_list {path} has to be a list of objects, one per subject")
    concepts = []
    for place, entry in enumerate(entries, start=1):
        fields = set(Concept.__dataclass_fields__)
        if unknown := sorted(set(entry) - fields):
            raise InputError(f"--concepts_list {path}, entry {place}: there is no {unknown[0]}; known are "
                             f"{', '.join(sorted(fields))}")  # fmt: skip
        wanted = ["instance_data_dir", "instance_prompt", *(["class_prompt"] if prior else [])]
        for name in wanted:
            if not isinstance(entry.get(name), str) or not entry[name].strip():
                raise InputError(f"--concepts_list {path}, entry {place}: {name} is missing")
        if wrong := [name for name, value in entry.items() if not isinstance(value, str | None)]:
            raise InputError(f"--concepts_list {path}, entry {place}: {wrong[0]} has to be text")
        if not Path(entry["instance_data_dir"]).is_dir():
            raise InputError(f"--concepts_list {path}, entry {place}: {entry['instance_data_dir']} is no folder")
        concepts.append(Concept(**entry))
    for one, other in permutations((concept.instance_prompt for concept in concepts), 2):
        if f" {one.strip()} " in f" {other} ":  # in a prompt of both nobody could tell them apart
            raise InputError(f"--concepts_list {path}: the instance_prompt {one!r} is a part of {other!r}; give each "
                             "subject its own token")  # fmt: skip
    return concepts


def class_folder(prompt: str, model: str, resolution: int) -> Path:
    """Where class pictures are kept and found again by later trainings of the same model; models never share a folder,
    nor do prompts that differ in case or in their ends alone."""
    words = "-".join("".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split())
    digest = hashlib.sha256(f"{prompt}\n{model}".encode()).hexdigest()[:8]
    return cache_folder("class_pictures", f"{words[:60]}-{resolution}-{digest}")


def add_svdiff_flags(parser: argparse.ArgumentParser) -> None:
    """What only this method's training has."""
    add = parser.add_argument_group("spectral shifts").add_argument
    add("--parameter_space", choices=PARAMETER_SPACES, default="svdiff", help="svdiff: spectral shifts; full: all "
        "weights (DreamBooth); lora: rank --rank on the UNet's attention; the paper compares with both")  # fmt: skip
    add("--learning_rate_1d", type=number(float, 0), default=1e-6,
        help="of the shifts of norms; that of all others is --learning_rate (the author: 1e-6 and 1e-3)")  # fmt: skip
    add("--parameter_subset", choices=SUBSET_NAMES, default="UNet", help="of the UNet's weights (Table 1)")
    add("--train_text_encoder", action=argparse.BooleanOptionalAction, help="tune the text encoder too, embeddings "
        "included (in the paper's 1.7 MB); the default, but for lora")  # fmt: skip
    add("--rank", type=number(int, 1), default=4, help="of --parameter_space lora")
    add("--basis_dir", help="where singular bases are kept; outputs/spectral_basis of the project by default")
    add = parser.add_argument_group("one picture, many subjects").add_argument
    add("--subject", default=PICTUREBOOK_SUBJECT, help="of the picturebook's validation split, where no pictures are "
        "given")  # fmt: skip
    add("--image_path", help="single-image editing (Sec. 3.4): one picture, --instance_prompt its plain caption")
    add("--concepts_list", help="JSON list of subjects: instance_data_dir, instance_prompt, class_data_dir, "
        "class_prompt")  # fmt: skip
    add("--cut_mix_unmix_prob", type=number(float, 0, 1), default=0.6, help="how often a sample shows two subjects; 0: "
        "never (Sec. 3.3)")  # fmt: skip
    add("--cut_mix_fit", choices=("crop", "resize"), default="crop", help="how a picture comes into its half")
    add("--unmix_weight", type=number(float, 0), default=0.0, help="of the unmix regularisation on cross-attention "
        "(Sec. 3.3, an extension of the method; its weight is not published)")  # fmt: skip
    add("--unmix_resolution", type=number(int, 1), help="of the maps it looks at, in latent pixels; a quarter of the "
        "latent's side by default")  # fmt: skip


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="DDIM steps (not stated in the paper)")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of classifier-free guidance (not stated)")
    add("--eta", type=number(float, 0, 1), default=0.0, help="of DDIM (paper, Sec. 4: 0)")
    add("--negative_prompt", default="", help="what pictures should not show; against stitches after Cut-Mix-Unmix, "
        '"side by side, collage, split, left and right" (Sec. 3.3)')  # fmt: skip
    add("--inversion_timestep", choices=("source", "target"), default="source", help="that DDIM inversion shows the "
        "network: of the latent it comes from, as this paper's public code does, or of the one it goes to")  # fmt: skip


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of editing.Sampling."""
    names = "num_inference_steps", "guidance_scale", "eta", "negative_prompt", "inversion_timestep"
    return {name: getattr(args, name) for name in names}


def show_config(args: argparse.Namespace, **extra: Any) -> None:
    print(json.dumps({**vars(args), **extra}, indent=2))


def resolve_training(args: argparse.Namespace) -> None:
    """Fill in what depends on other flags, and refuse what does not go together. Raises InputError."""
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    if args.parameter_space == "lora" and args.train_text_encoder:
        raise InputError("--parameter_space lora is of the UNet's attention: leave out --train_text_encoder")
    if args.train_text_encoder is None:
        args.train_text_encoder = args.parameter_space != "lora"
    if args.image_path:
        for name in ("concepts_list", "instance_data_dir", "class_data_dir", "class_prompt"):
            if getattr(args, name):
                raise InputError(f"--image_path is a training picture of its own, without prior: leave out --{name}")
        if not Path(args.image_path).is_file():
            raise InputError(f"--image_path {args.image_path} is no file; give a picture")
        if not args.instance_prompt:
            raise InputError("--image_path needs --instance_prompt, the picture's caption")
        args.with_prior_preservation = False  # lambda = 0 (Sec. 3.2)
    for name in Concept.__dataclass_fields__:
        if args.concepts_list and getattr(args, name):
            raise InputError(f"--concepts_list names all subjects: leave out --{name}")
    if args.parameter_space != "svdiff" and args.parameter_subset != "UNet":
        raise InputError(f"--parameter_subset is of spectral shifts: leave it out with {args.parameter_space}")
    if args.unmix_weight and not args.concepts_list:
        raise InputError("--unmix_weight tells subjects apart: give two of them in --concepts_list")
    if args.unmix_weight and not args.cut_mix_unmix_prob:
        raise InputError("--unmix_weight acts on cut-mixed samples: let --cut_mix_unmix_prob be above 0")
    if args.learning_rate is None:
        rates = PICTUREBOOK_LEARNING_RATES if on_picturebook else LEARNING_RATES
        if on_picturebook and args.concepts_list:
            rates = PICTUREBOOK_RATES_OF_SEVERAL[args.cut_mix_unmix_prob > 0]
        args.learning_rate = rates[args.parameter_space]


def concepts_of(args: argparse.Namespace) -> list[Concept]:
    """The subjects to be trained: those of --concepts_list, the one of the flags, or one of the picturebook's."""
    if args.concepts_list:
        concepts = read_concepts(args.concepts_list, args.with_prior_preservation)
        if args.unmix_weight and len(concepts) < 2:
            raise InputError(f"--unmix_weight tells subjects apart: {args.concepts_list} has only one")
        return concepts
    if args.instance_data_dir is None and not args.image_path and not args.print_config:
        from common.data import read_subjects
        from common.picturebook.benchmarks import ensure_subjects

        (subject,) = read_subjects(ensure_subjects("validation"), [args.subject])
        prompts = args.instance_prompt or f"a sks {subject.class_name}", args.class_prompt or f"a {subject.class_name}"
        return [Concept(str(subject.paths[0].parent), prompts[0], args.class_data_dir, prompts[1])]
    return [Concept(args.instance_data_dir, args.instance_prompt, args.class_data_dir, args.class_prompt)]


def default_validation_prompt(args: argparse.Namespace, concepts: list[Concept]) -> str:
    """What grid.png shows: the training's own prompt for one subject; for several all of them, in words other than
    those of the training (Sec. 3.3)."""
    if len(concepts) == 1:
        return concepts[0].instance_prompt
    from svdiff.cut_mix import split_prompt

    phrases = [split_prompt(concept.instance_prompt)[1] for concept in concepts]
    if is_picturebook_folder(args.pretrained_model_name_or_path):
        return " and ".join(phrases) + " in a meadow"
    return phrases[0] + " sitting beside " + " and ".join(phrases[1:])
