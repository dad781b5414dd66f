"""The flags that the scripts share and what they default to. Nothing heavy is imported here."""

import argparse
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from common.flags import check_apart, check_prompt, is_picturebook_folder, number
from common.runs import InputError, cache_folder, read_json

OUTPUT_DIR = "outputs/svdiff"  # of the training, where infer looks when it is not told
# Table 1: name -> a pattern of the UNet's layers, written path:dimensions of the weight. Cross-attention is attn2:
# queries, keys, values and the output's projection; its norm (norm2) is not part of it.
SUBSETS = {
    "UNet": "", "UNet-CA": r"\.attn2\.", "UNet-CA-KV": r"\.attn2\.to_[kv]:", "UNet-1D": ":1", "UNet-2D": ":2",
    "UNet-4D": ":4", "Up-Blocks": r"^up_blocks\.", "Down-Blocks": r"^down_blocks\.", "Mid-Block": r"^mid_block\.",
    "Up-CA": r"^up_blocks\b.*\.attn2\.", "Down-CA": r"^down_blocks\b.*\.attn2\.", "Mid-CA": r"^mid_block\b.*\.attn2\.",
}  # fmt: skip
PARAMETER_SPACES = ("svdiff", "full", "lora", "key_value")

# of AdamW: the author's; those of DreamBooth with a text encoder and of LoRA in diffusers' examples; Custom
# Diffusion's, 1e-5 for a picture, with its batch of 2
LEARNING_RATES = {"svdiff": 1e-3, "full": 2e-6, "lora": 1e-4, "key_value": 2e-5}
# of one picture
PICTUREBOOK_RATES_OF_EDITS = {"svdiff": 2e-2, "full": 3e-4, "lora": 3e-4, "key_value": 1e-3}
# of several subjects, by whether they are cut and mixed
PICTUREBOOK_RATES_OF_SEVERAL = {True: {"svdiff": 5e-3, "full": 3e-5, "lora": 3e-4, "key_value": 1e-3},
                                False: {"svdiff": 5e-3, "full": 3e-4, "lora": 3e-4, "key_value": 1e-3}}  # fmt: skip
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
# of one subject, by svdiff.tuning: the same grid for all, on three validation subjects
PICTUREBOOK_TUNED: dict[str, dict[str, Any]] = {
    "svdiff": {"learning_rate": 2e-2, "lr_scheduler": "constant", "max_train_steps": 200},
    "full": {"learning_rate": 3e-4, "lr_scheduler": "constant", "max_train_steps": 200},
    "lora": {"learning_rate": 1e-2, "lr_scheduler": "cosine", "max_train_steps": 200},
    "key_value": {"learning_rate": 3e-3, "lr_scheduler": "constant", "max_train_steps": 100},
}
SAMPLING_PRESET: dict[str, Any] = {"geometry_layers": [(8, "down", 0), (4, "down", 0)]}
ONLY_WITH = {  # flags of the training that count with others alone
    "rank": ("parameter_space", ["lora"]),
    **dict.fromkeys(("learning_rate_1d", "basis_dir"), ("parameter_space", ["svdiff"])),
    **dict.fromkeys(("cut_mix_unmix_prob", "cut_mix_fit"), ("concepts_list", True)),
    "unmix_resolution": ("unmix_weight", True),
    "validation_steps": ("validation_prompt", True),
}
GEOMETRY_LAYERS = [(16, "down", 1), (8, "down", 0)]  # of style mixing (Sec. 4.4)


@dataclass(frozen=True)
class Concept:
    """One subject: its pictures, their prompt, and the same of its class."""

    instance_data_dir: str
    instance_prompt: str
    class_data_dir: str | None = None
    class_prompt: str | None = None


def read_concepts(path: str, prior: bool) -> list[Concept]:
    """--concepts_list: a JSON list of objects with the fields of Concept. Raises InputError."""
    entries, known = read_json(path), sorted(Concept.__dataclass_fields__)
    wanted = ["instance_data_dir", "instance_prompt", *(["class_prompt"] if prior else [])]
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"--concepts_list {path} has to be a list of objects, one per subject")
    for place, entry in enumerate(entries, start=1):
        where = f"--concepts_list {path}, entry {place}"
        if unknown := sorted(set(entry) - set(known)):
            raise InputError(f"{where}: there is no {unknown[0]}; known are {', '.join(known)}")
        if wrong := [name for name, value in entry.items() if not isinstance(value, str | None)]:
            raise InputError(f"{where}: {wrong[0]} has to be text")
        for name in ("instance_prompt", "class_prompt"):
            check_prompt(entry.get(name), f"{where}: {name}")
        if missing := [name for name in wanted if not (entry.get(name) or "").strip()]:
            raise InputError(f"{where}: {missing[0]} is missing")
        if not Path(entry["instance_data_dir"]).is_dir():
            raise InputError(f"{where}: {entry['instance_data_dir']} is no folder")
    concepts = [Concept(**entry) for entry in entries]
    shown = {os.path.realpath(concept.instance_data_dir) for concept in concepts}
    for folder in filter(None, (concept.class_data_dir for concept in concepts)):
        if os.path.realpath(folder) in shown:
            raise InputError(f"--concepts_list {path}: the class_data_dir {folder} is an instance_data_dir too; give "
                             "class pictures a folder of their own")  # fmt: skip
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
        "weights (DreamBooth); lora: rank --rank on the UNet's attention; key_value: the keys and values of its "
        "cross-attention, as Custom Diffusion, without a new token; the paper compares with all of them")  # fmt: skip
    add("--learning_rate_1d", type=number(float, 0), default=1e-6,
        help="of the shifts of norms; that of all others is --learning_rate (the author: 1e-6 and 1e-3)")  # fmt: skip
    add("--parameter_subset", choices=SUBSETS, default="UNet", help="of the UNet's weights (Table 1)")
    add("--train_text_encoder", action=argparse.BooleanOptionalAction, help="tune the text encoder too, embeddings "
        "included (in the paper's 1.7 MB); the default for svdiff and full")  # fmt: skip
    add("--rank", type=number(int, 1, 1024), default=4, help="of --parameter_space lora")
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


def block(text: str) -> tuple[int, str, int]:
    """An argparse type: a cross-attention block in P+ notation, "16,down,1"."""
    if not (found := re.fullmatch(r"\(?(\d+), ?'?(down|up)'?, ?(\d+)\)?", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no layer; 16,down,1 is one (resolution, direction, number)")
    return int(found[1]), found[2], int(found[3])


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("sampling").add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="DDIM steps (not stated in the paper)")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of classifier-free guidance (not stated)")
    add("--eta", type=number(float, 0, 1), default=0.0, help="of DDIM (paper, Sec. 4: 0)")
    add("--negative_prompt", default="", help="what pictures should not show; against stitches after Cut-Mix-Unmix, "
        '"side by side, collage, split, left and right" (Sec. 3.3)')  # fmt: skip
    add("--inversion_timestep", choices=("public", "source", "target"), help="that DDIM inversion shows the network: "
        "as this paper's public code (the default): of the latent it comes from, all noise levels one timestep lower "
        "than the sampler's; of the latent it comes from; or of the one it goes to")  # fmt: skip
    add("--geometry_layers", nargs=2, type=block, metavar=("FIRST", "LAST"), help="of style mixing, in P+ notation; by "
        "default 16,down,1 8,down,0 (Sec. 4.4), on the picturebook 8,down,0 4,down,0")  # fmt: skip
    add("--basis_dir", help="where singular bases are kept; outputs/spectral_basis of the project by default")


def resolve_sampling(args: argparse.Namespace) -> None:
    """Defaults that depend on the model, and those of flags that only some calls may give."""
    preset = SAMPLING_PRESET if is_picturebook_folder(args.pretrained_model_name_or_path) else {}
    args.geometry_layers = args.geometry_layers or preset.get("geometry_layers", GEOMETRY_LAYERS)
    args.inversion_timestep = args.inversion_timestep or "public"


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of editing.Sampling."""
    names = "num_inference_steps", "guidance_scale", "eta", "negative_prompt", "inversion_timestep"
    return {name: getattr(args, name) for name in names}


def preset_of(args: argparse.Namespace) -> dict[str, Any]:
    """What takes the place of defaults on the picturebook; of one subject also what the space was tuned to."""
    one = not args.image_path and not args.concepts_list
    return TRAINING_PRESET | (PICTUREBOOK_TUNED[args.parameter_space] if one else {})


def learning_rate(args: argparse.Namespace) -> float:
    """Of the parameter space, where no preset says it: on the picturebook of one picture, or of several subjects by
    whether they are cut and mixed."""
    if not is_picturebook_folder(args.pretrained_model_name_or_path):
        return LEARNING_RATES[args.parameter_space]
    several = PICTUREBOOK_RATES_OF_SEVERAL[args.cut_mix_unmix_prob > 0]
    return (several if args.concepts_list else PICTUREBOOK_RATES_OF_EDITS)[args.parameter_space]


def leave_out(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    for name in filter(vars(args).get, names):
        raise InputError(f"{why}: leave out --{name}")


def resolve_training(args: argparse.Namespace) -> None:
    """Fill in what depends on other flags, and refuse what does not go together. Raises InputError."""
    space = args.parameter_space
    if args.image_path:
        leave_out(args, ("concepts_list", "instance_data_dir", "class_data_dir", "class_prompt"),
                  "--image_path is a training picture of its own, without prior")  # fmt: skip
        if not args.instance_prompt:
            raise InputError("--image_path needs --instance_prompt, the picture's caption")
        args.with_prior_preservation = False  # lambda = 0 (Sec. 3.2)
    if args.concepts_list:
        leave_out(args, Concept.__dataclass_fields__, "--concepts_list names all subjects")
    if space in ("lora", "key_value"):
        leave_out(args, ["train_text_encoder"], f"--parameter_space {space} is of the UNet's attention")
    if space != "svdiff" and args.parameter_subset != "UNet":
        raise InputError(f"--parameter_subset is of spectral shifts: leave it out with {space}")
    if args.unmix_weight and not args.concepts_list:
        raise InputError("--unmix_weight tells subjects apart: give two of them in --concepts_list")
    if args.unmix_weight and not args.cut_mix_unmix_prob:
        raise InputError("--unmix_weight acts on cut-mixed samples: let --cut_mix_unmix_prob be above 0")
    if args.train_text_encoder is None:
        args.train_text_encoder = space in ("svdiff", "full")
    if args.learning_rate is None:
        args.learning_rate = learning_rate(args)


def concepts_of(args: argparse.Namespace) -> list[Concept]:
    """The subjects to be trained: those of --concepts_list, the one of the flags, or one of the picturebook's."""
    if args.concepts_list:
        concepts = read_concepts(args.concepts_list, args.with_prior_preservation)
        if args.unmix_weight and len(concepts) < 2:
            raise InputError(f"--unmix_weight tells subjects apart: {args.concepts_list} has only one")
        for concept in concepts if not args.print_config else ():
            own = argparse.Namespace(**{**vars(args), **vars(concept)})
            check_apart(own, Path(os.path.realpath(args.output_dir)))
        return concepts
    if args.instance_data_dir or args.image_path or args.print_config:
        return [Concept(args.instance_data_dir, args.instance_prompt, args.class_data_dir, args.class_prompt)]
    from common.data import read_subjects
    from common.picturebook.benchmarks import ensure_subjects

    (subject,) = read_subjects(ensure_subjects("validation"), [args.subject])
    prompts = args.instance_prompt or f"a sks {subject.class_name}", args.class_prompt or f"a {subject.class_name}"
    return [Concept(str(subject.paths[0].parent), prompts[0], args.class_data_dir, prompts[1])]


def inference_prompts(model: str, phrases: list[str]) -> list[str]:
    """Prompts of several subjects in other words than the training's (Sec. 3.3). phrases: "a sks dog", one for each."""
    first, rest = phrases[0], " and ".join(phrases[1:])
    if is_picturebook_folder(model):
        places = "in a meadow", "in the snow", "in a room", "on a beach"
        return [f"{first} and {rest} {place}" for place in places]
    return [f"{first} sitting beside {rest}", f"a painting of {first} with {rest}", f"{first} in front of {rest}"]


def shown_prompt(args: argparse.Namespace, concepts: list[Concept]) -> str:
    """What grid.png shows: --validation_prompt, or the training's own for one subject; for several all of them."""
    if args.validation_prompt or len(concepts) == 1:
        return args.validation_prompt or concepts[0].instance_prompt
    from svdiff.cut_mix import split_prompt

    phrases = [split_prompt(concept.instance_prompt)[1] for concept in concepts]
    return inference_prompts(args.pretrained_model_name_or_path, phrases)[0]
