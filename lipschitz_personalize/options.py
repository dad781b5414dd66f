"""The trainer's flags, and the published settings that stand behind their defaults. Nothing heavy is imported here."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from common.files import check_file_name, read_object
from common.flags import is_picturebook_folder, local_folder, number
from common.runs import InputError, make_parser
from common.training_flags import add_subject_flags, add_training_flags, parse_training, set_defaults

CONVENTIONS = ("mean_sum", "sum", "lora_factors", "function")
SPACES = ("full", "custom_diffusion", "lora")
BACKBONES = ("sd", "sdxl", "sd3")
TOKEN, NEW_WORD = "sks", "<new1>"  # what a subject is called; the second is Custom Diffusion's
QKVO = ["to_q", "to_k", "to_v", "to_out.0"]
SD3_TARGETS = [f"attn.{name}" for name in (*QKVO, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")]

# The released scripts' settings ("ours", without prior preservation), by backbone and parameter space. README.md says
# what the paper leaves open. SDXL and SD3 were published without full fine-tuning: there SD's settings stand in.
FULL = {
    "l2_reg_weight": 500.0, "learning_rate": 2e-6, "adam_weight_decay": 0.0, "max_grad_norm": 0.0,
    "max_train_steps": 1000, "cache_latents": True, "squash": True,
}  # fmt: skip
CUSTOM = {"scale_lr": True, "train_batch_size": 2, "max_train_steps": 250, "squash": True, "random_flip": True}
LORA = {"l2_convention": "lora_factors", "max_train_steps": 500, "seed": 0}
PUBLISHED: dict[tuple[str, str], dict[str, Any]] = {
    ("sd", "full"): FULL,
    ("sd", "custom_diffusion"): CUSTOM | {"l2_reg_weight": 175.0, "learning_rate": 3e-5},
    ("sd", "lora"): LORA | {
        "l2_reg_weight": 1e-7, "learning_rate": 1e-4, "adam_weight_decay": 0.0, "train_batch_size": 4, "lora_rank": 16,
        "lora_alpha": 27.0, "lora_targets": ["to_q", "to_v"], "lora_init": "kaiming",
    },
    ("sdxl", "full"): FULL,
    ("sdxl", "custom_diffusion"): CUSTOM | {
        "l2_reg_weight": 50.0, "learning_rate": 5e-5, "resolution": 512, "mask_loss": "mean",
    },
    ("sdxl", "lora"): LORA | {
        "l2_reg_weight": 1e-6, "learning_rate": 5e-4, "adam_weight_decay": 1e-4, "gradient_accumulation_steps": 4,
        "mixed_precision": "fp16",
    },
    ("sd3", "full"): FULL | {"resolution": 512},
    ("sd3", "custom_diffusion"): {
        "l2_reg_weight": 10.1, "learning_rate": 1e-4, "gradient_accumulation_steps": 4, "max_train_steps": 500,
        "adam_weight_decay": 1e-4, "mixed_precision": "fp16", "resolution": 512, "seed": 0, "augment": False,
        "mask_loss": "mean",
    },
    # The released script computes 15.0 times its penalty, logs it, and never adds it to the loss: in effect 0.
    ("sd3", "lora"): LORA | {
        "l2_reg_weight": 0.0, "learning_rate": 4e-4, "adam_weight_decay": 1e-4, "gradient_accumulation_steps": 4,
        "lora_targets": SD3_TARGETS, "mixed_precision": "fp16", "resolution": 512,
    },
}  # fmt: skip

# What infer.py reads in a training's config.json.
TRAINED = {"parameter_space": str, "backbone": str, "instance_prompt": str, "class_prompt": str | None,
           "resolution": int, "pretrained_model_name_or_path": str}  # fmt: skip

ONLY_WITH = {  # flags that count with others alone
    **dict.fromkeys(("lora_rank", "lora_alpha", "lora_targets", "lora_init"), ("parameter_space", ["lora"])),
    **dict.fromkeys(("modifier_token", "initializer_token", "augment", "mask_loss"),
                    ("parameter_space", ["custom_diffusion"])),
    **dict.fromkeys(("l2_convention", "l2_layer_weights", "l2_lipschitz", "l2_base_dtype", "l2_base_device"),
                    ("l2_reg_weight", True)),
    "validation_steps": ("validation_prompt", True),
}  # fmt: skip
# Steps and guidance of the released sampling scripts, where they are not 50 and 7.5.
SAMPLING = {("sdxl", "custom_diffusion"): (50, 5.0)} | {("sd3", space): (28, 5.0) for space in SPACES}

# What takes their place on the picturebook, tuned on its validation split (eval.tuning.personalization): a network
# of six million weights and pictures of 64 pixels wants other rates; mean_sum's lambda depends on the tensors' sizes.
SMALL = {"train_batch_size": 4, "adam_weight_decay": 0.0, "max_train_steps": 100, "scale_lr": False, "seed": 0,
         "mixed_precision": "no", "num_class_images": 20}  # fmt: skip
PICTUREBOOK_PRESET: dict[str, dict[str, Any]] = {
    "full": SMALL | {"learning_rate": 1e-4, "l2_reg_weight": 5.0, "cache_latents": True, "squash": True},
    "custom_diffusion": SMALL | {"learning_rate": 1e-3, "l2_reg_weight": 0.5, "initializer_token": None},
    "lora": SMALL | {"learning_rate": 1e-3, "l2_reg_weight": 1e-6, "lora_rank": 8, "lora_alpha": 8.0},
}


def training_parser() -> argparse.ArgumentParser:
    parser = make_parser("Personalise a text-to-image model on a few pictures, and keep its weights near the base's.")
    add = parser.add_argument_group("method").add_argument
    switch = partial(add, action=argparse.BooleanOptionalAction)
    add("--parameter_space", choices=SPACES, default="full", help="what is trained: the whole network (DreamBooth), "
        "keys and values of cross-attention with a new word, or LoRA")  # fmt: skip
    add("--l2_reg_weight", "--l2_weight", type=number(float, 0), default=500.0,
        help="lambda; 0: the plain trainer. Published: 500 full, 175 Custom Diffusion, 1e-7 LoRA (SD 1.5)")  # fmt: skip
    add("--l2_convention", choices=CONVENTIONS, default="mean_sum", help="squared differences, by tensor their mean "
        "(released) or sum (paper); LoRA's factors squared (released), or its change of the weights")  # fmt: skip
    add("--l2_layer_weights", nargs="+", type=layer_weight, default=[], metavar="REGEX=FACTOR",
        help="beyond the paper: multiply lambda for the tensors whose names match, such as attn2=0.1")  # fmt: skip
    switch("--l2_lipschitz", default=False, help="beyond the paper: lambda per tensor, as the output moves with it")
    add("--l2_base_dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="of the frozen copy; 16 bits halve its memory, and are exact where the model was stored so")  # fmt: skip
    add("--l2_base_device", choices=("same", "cpu"), default="same", help="where the frozen copy lies")
    add("--backbone", choices=BACKBONES, help="whose published settings are the defaults; by default that of the model")
    switch("--squash", default=False, help="resize to a square whatever the proportions (released but for LoRA)")
    switch("--cache_latents", default=False, help="encode every picture once, at the start (released full fine-tuning)")
    switch("--precondition_outputs", default=True, help="SD3: take the error in the clean latents, as diffusers' does")
    add("--modifier_token", default=NEW_WORD, help="Custom Diffusion: the new word, to be in --instance_prompt")
    add("--initializer_token", default="ktn",
        help="the word begins as this one (released: a rare one; the picturebook: the prompt's last)")  # fmt: skip
    switch("--augment", default=True, help="Custom Diffusion: shrink and zoom the pictures, and say so in the prompt")
    add("--mask_loss", choices=("sum", "mean"), default="sum",
        help="Custom Diffusion: errors of the channels are summed (its code), or averaged as elsewhere")  # fmt: skip
    add("--lora_rank", "--rank", type=number(int, 1, 1024), default=4, help="LoRA: r (released: 16 of SD 1.5, else 4)")
    add("--lora_alpha", type=number(float, 0), help="LoRA: additions are scaled by alpha / rank; default: the rank")
    add("--lora_targets", nargs="+", default=QKVO, help="LoRA: ends of the layers' names")
    add("--lora_init", choices=("gaussian", "kaiming"), default="gaussian",
        help="LoRA: how A begins, of deviation 1 / rank, or Kaiming's uniform (released for SD 1.5)")  # fmt: skip
    add_sampling_flags(parser, 50, 7.5)
    add_training_flags(parser, output_dir="outputs/lipschitz_personalize/train", max_train_steps=1000, seed=2025)
    add_subject_flags(parser, num_class_images=200)
    return parser


def parse_plain(
    parser: argparse.ArgumentParser, argv: list[str] | None, picturebook_preset: dict[str, Any], **defaults: Any
) -> argparse.Namespace:
    """The flags of another method, and what train.train needs beside them: penalty, augmentation and caches are off."""
    add_sampling_flags(parser, 50, 7.5)
    off = {"l2_reg_weight": 0.0, "squash": False, "cache_latents": False, "precondition_outputs": True,
           "augment": False, "mask_loss": "mean"}  # fmt: skip
    parser.set_defaults(**off | defaults)
    args = parse_training(parser, argv, picturebook_preset)
    args.backbone = guess_backbone(args.pretrained_model_name_or_path)
    return args


def add_sampling_flags(parser: argparse.ArgumentParser, steps: int | None = None, guidance: float | None = None):
    """Of class and validation pictures; without defaults of pictures of a finished training, see `sampling_of`."""
    add = parser.add_argument_group("sampling").add_argument
    add(
        "--num_inference_steps", type=number(int, 1, 1000), default=steps, help="as released: 50; SD3, once trained, 28"
    )
    add("--guidance_scale", type=number(float, 0), default=guidance,
        help="as released: 7.5; SD3 and SDXL's Custom Diffusion, once trained, 5")  # fmt: skip


def sampling_of(trained: dict[str, Any], args: argparse.Namespace) -> tuple[int, float]:
    """(steps, guidance) of the flags, by default those that were published for the training. trained: its config."""
    steps, guidance = SAMPLING.get((trained["backbone"], trained["parameter_space"]), (50, 7.5))
    return args.num_inference_steps or steps, guidance if args.guidance_scale is None else args.guidance_scale


def layer_weight(text: str) -> tuple[str, float]:
    """An argparse type: REGEX=FACTOR."""
    pattern, equals, factor = text.rpartition("=")
    if not pattern or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not REGEX=FACTOR, such as attn2=0.1")
    return pattern, number(float, 0)(factor)


def guess_backbone(name: str) -> str:
    """ "sd", "sdxl" or "sd3", by model_index.json of a local folder, or by a hub id."""
    index = local_folder(name) / "model_index.json"
    if index.is_file():
        name = str(read_object(index).get("_class_name"))
    name = name.lower().replace("-", "").replace("_", "")
    if "stablediffusion3" in name:
        return "sd3"
    return "sdxl" if "xl" in name else "sd"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags, with the published settings of backbone and parameter space as defaults (on a picturebook: its
    preset)."""
    parser = training_parser()
    args = parser.parse_args(argv)
    backbone = args.backbone or guess_backbone(args.pretrained_model_name_or_path)
    if not is_picturebook_folder(args.pretrained_model_name_or_path):
        set_defaults(parser, PUBLISHED[backbone, args.parameter_space])
    elif args.parameter_space == "lora":
        set_defaults(parser, LORA)
    args = parse_training(parser, argv, PICTUREBOOK_PRESET[args.parameter_space], ONLY_WITH)
    args.backbone = backbone
    args.lora_alpha = float(args.lora_rank) if args.lora_alpha is None else args.lora_alpha
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Raises InputError for flags that do not go together."""
    lora, convention = args.parameter_space == "lora", args.l2_convention
    if convention not in (fitting := CONVENTIONS[2:] if lora else CONVENTIONS[:2]):
        raise InputError(f"--l2_convention {convention} does not go with --parameter_space {args.parameter_space}; "
                         f"take one of {', '.join(fitting)}")  # fmt: skip
    if lora and (args.l2_lipschitz or args.l2_layer_weights):
        raise InputError("--l2_lipschitz and --l2_layer_weights weigh a network's own tensors: leave them out of LoRA")
    word = args.modifier_token
    if args.parameter_space == "custom_diffusion" and args.backbone != "sd3":
        if " " in check_file_name(word, "--modifier_token"):
            raise InputError(f"--modifier_token {word!r} is more than one word; leave the spaces out")
        if args.instance_prompt and word not in args.instance_prompt:
            raise InputError(f"--instance_prompt has to hold --modifier_token {word}, the word that is trained")
    if args.cache_latents and (args.random_flip or not (args.squash or args.center_crop)):
        print("--cache_latents: every picture keeps the part and the side that it is first seen with", file=sys.stderr)


def subject_pictures(args: argparse.Namespace) -> list[Path]:
    """The subject's pictures; without --instance_data_dir the first subject of the picturebook's validation split,
    whose prompts are filled in where none were given."""
    from common.data import read_subjects
    from common.images import list_pictures
    from common.picturebook.benchmarks import ensure_subjects

    if args.instance_data_dir:
        return list_pictures(args.instance_data_dir)
    subject = read_subjects(ensure_subjects("validation"))[0]
    token = args.modifier_token if args.parameter_space == "custom_diffusion" else TOKEN
    args.instance_data_dir = str(subject.paths[0].parent)
    args.instance_prompt = args.instance_prompt or f"a {token} {subject.class_name}"
    args.class_prompt = args.class_prompt or f"a {subject.class_name}"
    args.validation_prompt = args.validation_prompt or f"a {token} {subject.class_name} in the snow"
    return list(subject.paths)
