"""The flags that the scripts share, and what they mean. Nothing heavy is imported here."""

import argparse
import math
from pathlib import Path
from typing import Any

from common.flags import is_picturebook_folder, local_folder, number, weights_of
from common.runs import InputError, make_parser
from common.training_flags import add_training_flags, parse_training

STAGES, TUNINGS, PRIORS = ("subject", "pretrain"), ("lora", "full"), ("text_to_image", "inpainting", "none")
# What of every transformer block low-rank updates are put on, as peft's target_modules; how A starts, by peft's names.
QKVO = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS: dict[str, list[str] | str] = {
    "attention": QKVO, "qv": ["to_q", "to_v"], "cross_kv": r".*\.attn2\.to_(k|v)",
    "attention+geglu": [*QKVO, "ff.net.0.proj"], "attention+ff": [*QKVO, "ff.net.0.proj", "ff.net.2"],
    "attention+conv_in": [*QKVO, "conv_in"],
}  # fmt: skip
INITS = {"gaussian": "gaussian", "uniform": True}
AUGMENTATIONS = ("none", "flip", "rotation", "blur", "elastic")  # augment.NAMES, or nothing
BOX_WAYS = ("auto", "file", "scene", "detr", "whole")
DETECTOR = "facebook/detr-resnet-50"  # Sec. 5.1
DETECTOR_THRESHOLD = 0.7
LABELS = ("bed", "couch", "chair", "dining table")  # of COCO
FEATHER = 8  # pixels in a picture of 512 on its shorter side
CONTEXT = 2.0  # side of the window over the longer side of the hole, where the picture is larger than the model's
PUBLISHED = "Fantasy-Studio/Paint-by-Example"
LEARNING_RATES = {"subject": 3e-5, "pretrain": 1e-6}  # Sec. 5.1

# What takes the place of the paper's defaults on the picturebook; tuned on its validation split only.
PICTUREBOOK_PRESET: dict[str, dict[str, Any]] = {
    "subject": {"train_batch_size": 8, "rank": 8, "augment_source": ["flip"],
                "cache_views": 24, "random_crop": False},
    "pretrain": {"train_batch_size": 16, "max_train_steps": 100, "learning_rate": 2e-4, "augment_source": ["flip"],
                 "random_crop": False},
}  # fmt: skip
PICTUREBOOK_TUNING: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 2e-3, "max_train_steps": 400, "lr_scheduler": "cosine"},
    "full": {"learning_rate": 4e-4, "max_train_steps": 200, "lr_scheduler": "cosine"},
}
PICTUREBOOK_LORA = {"lora_targets": "attention", "lora_init": "uniform"}
ONLY_WITH = {  # flags of the training that count with others alone
    **dict.fromkeys(("rank", "lora_alpha", "lora_targets", "lora_init"), ("tuning", ["lora"])),
    **dict.fromkeys(("detector", "detector_threshold", "labels"), ("boxes", ["auto", "detr"])),
}
GUIDANCE = 5.0  # Paint-by-Example's
PICTUREBOOK_GUIDANCE = {"untuned": 7.5, "lora": 3.0, "full": 3.0}  # tuned: a model that knows the subject wants less
TEXT_GUIDANCE, PICTUREBOOK_TEXT_GUIDANCE = 7.5, 3.0  # of the baseline that is told a caption: diffusers'; tuned


def add_model_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="picturebook", help="an image-guided inpainting model: picturebook, "
        f"a folder written by --stage pretrain, or a folder or hub id such as {PUBLISHED}")  # fmt: skip
    add("--output_dir", default=output_dir, help="folder for results")
    add("--device", help="cpu, cuda, cuda:1, ... (trainings: cpu or cuda); a GPU if there is one by default")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="number format of the networks")
    add("--seed", type=number(int, 0, 2**63 - 1), default=42, help="of every random number (Paint-by-Example: 42)")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The paper gives no sampler; defaults are those of Paint-by-Example's commands."""
    add = parser.add_argument_group("sampling").add_argument
    add("--scheduler", choices=("plms", "ddim"), default="plms", help="Paint-by-Example: plms")
    add("--num_inference_steps", type=number(int, 2, 999), default=50, help="Paint-by-Example: 50")
    add("--guidance_scale", type=number(float, 0), help=f"1: none; by default {GUIDANCE:g} (Paint-by-Example), on the "
        f"picturebook {PICTUREBOOK_GUIDANCE['untuned']:g}, tuned {PICTUREBOOK_GUIDANCE['lora']:g}")  # fmt: skip
    add("--mask_resize", choices=("bilinear", "nearest"), default="bilinear",
        help="of the mask to the latent grid: Paint-by-Example's code, and diffusers' port")  # fmt: skip
    add("--composite", action=argparse.BooleanOptionalAction, default=True, help="keep the source's own pixels "
        "outside of the hole (Sec. 4), and not what was painted there (Paint-by-Example)")  # fmt: skip
    add("--feather", type=number(int, 0, 1000), help="of --composite: pixels over which the rim fades in; by default "
        f"{FEATHER} where the picture's shorter side has 512, in proportion elsewhere, at least 1")  # fmt: skip
    add("--context", type=number(float, 1, 1000), default=CONTEXT,
        help="of large pictures: side of the window that is painted, over the hole's longer side")  # fmt: skip


def add_box_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("where the subject is").add_argument
    add("--boxes", choices=BOX_WAYS, default="auto", help="file: boxes.json, {file name: [left, top, right, bottom]}; "
        "scene: of the picturebook; detr: a detector; whole: all; auto: the first of file, scene, detr")  # fmt: skip
    add("--detector", default=DETECTOR, help="hub id or folder of the detector (Sec. 5.1)")
    add("--detector_threshold", type=number(float, 0, 1), default=DETECTOR_THRESHOLD,
        help="the least score of a box that counts (not given in the paper)")  # fmt: skip
    add("--labels", nargs="+", default=list(LABELS), help="of COCO, that the detector looks for")


def add_pretrain_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("stage pretrain").add_argument
    add("--train_data_dir", help="a folder of pictures, or an LSUN LMDB; on the picturebook its own scenes")
    add("--num_pictures", type=number(int, 1), default=300_000, help="a random sample of them (Sec. 5.1)")
    add("--prior", choices=PRIORS, default="text_to_image",
        help="start from such a model (Sec. 5.4), or from nothing (the ablation of Sec. 5.4)")  # fmt: skip
    add("--clip_model_name_or_path", help="CLIP whose picture tower reads references, for a start that has none "
        "(Paint-by-Example: openai/clip-vit-large-patch14)")  # fmt: skip
    parser.set_defaults(tuning="full", cache_views=0, repeats=1)


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("stage subject (Sec. 4.2)").add_argument
    add("--instance_data_dir", help="folder of the subject's photographs; by default a subject of the picturebook")
    add("--tuning", choices=TUNINGS, default="lora", help="low-rank updates, or everything but CLIP and VAE")
    add("--rank", type=number(int, 1, 1024), default=4,
        help="of the updates, as in the authors' demo (2 to 40 MB are ranks of some 3 to 50 on attention)")  # fmt: skip
    add("--lora_alpha", type=number(float, 0), help="the updates count alpha / rank times; the rank by default")
    add("--lora_targets", choices=TARGETS, default="attention+geglu", help="layers, as in the authors' demo")
    add("--lora_init", choices=INITS, default="gaussian",
        help="how A starts: as in LoRA's paper and the authors' code, or as in LoRA's code")  # fmt: skip
    add("--repeats", type=number(int, 1), default=200, help="how often a photograph counts per epoch, as in the "
        "authors' code: 40 epochs of 4 photographs at batch 16 would be 40 steps, and are 2000")  # fmt: skip
    add("--cache_views", type=number(int, 0), default=0,
        help="keep so many augmented views per photograph, as latents; 0: new ones in every step")  # fmt: skip


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Augmentation (Sec. 4.3) and dropout (Sec. 5.1)."""
    add = parser.add_argument_group("augmentation and dropout").add_argument
    add("--condition_dropout", type=number(float, 0, 1), default=0.2, help="how often the learned vector stands in for "
        "the reference: the paper's dropout of 0.2, read as Paint-by-Example's")  # fmt: skip
    add("--condition_dropout_per", choices=("batch", "sample"), default="batch", help="one draw each (released: batch)")
    add("--layer_dropout", type=number(float, 0, 0.99), default=0.0,
        help="the other reading of the paper's 0.2: of activations, in the updates or in the UNet")  # fmt: skip
    add("--augment_source", nargs="+", choices=AUGMENTATIONS, default=["flip", "rotation"],
        help="Sec. 4.3 names flip, rotation and blur; a blurred target would teach blur")  # fmt: skip
    add("--augment_reference", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS[1:]),
        help="of the reference crop, as in Paint-by-Example")  # fmt: skip
    add("--mask_augmentation", action=argparse.BooleanOptionalAction, default=True,
        help="enlarge and reshape the hole (Sec. 4.3); without it the hole is the subject's box")  # fmt: skip
    add("--random_crop", action=argparse.BooleanOptionalAction, default=True,
        help="random squares around the box, as in Paint-by-Example; otherwise pictures are squashed")  # fmt: skip


def new_training_parser(stage: str) -> argparse.ArgumentParser:
    """All flags of a stage."""
    parser = make_parser("Train an image-guided inpainting model: on a domain, or on the photographs of a subject.")
    parser.add_argument("--stage", choices=STAGES, default="subject", help="pretrain: on a domain (Sec. 5.1: 300,000 "
        "LSUN bedrooms); subject: on two to four photographs (--help lists the flags of one stage)")  # fmt: skip
    (add_pretrain_flags if stage == "pretrain" else add_subject_flags)(parser)
    add_method_flags(parser)
    add_box_flags(parser)
    parser.add_argument("--boxes_file", help="of --boxes file and auto: this JSON file, in place of boxes.json")
    add_training_flags(parser, output_dir="outputs/image_inpaint", train_batch_size=16, validation_steps=None, seed=42)
    parser.add_argument("--num_train_epochs", type=number(int, 1), default=40, help="Sec. 5.1; --max_train_steps wins")
    return parser


def parse_train(argv: list[str] | None) -> argparse.Namespace:
    """Parse train.py's flags, with the picturebook's preset of the stage where it applies."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--stage", default="subject")
    chooser.add_argument("--tuning", default="lora")
    early = chooser.parse_known_args(argv)[0]
    preset = PICTUREBOOK_PRESET.get(early.stage, {})
    if early.stage == "subject":
        preset = preset | PICTUREBOOK_TUNING.get(early.tuning, {})
        preset |= PICTUREBOOK_LORA if early.tuning == "lora" else {}
    args = parse_training(new_training_parser(early.stage), argv, preset, ONLY_WITH)
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATES[args.stage]
    if args.stage == "subject" and args.lora_alpha is None:
        args.lora_alpha = float(args.rank)
    for name in ("augment_source", "augment_reference"):
        names = getattr(args, name)
        if "none" in names and len(names) > 1:
            raise InputError(f"--{name} none goes with no other name; leave out none, or the others")
        setattr(args, name, [name for name in names if name != "none"])
    if args.validation_prompt:
        raise InputError("--validation_prompt: there are no prompts here; leave it out")
    if args.boxes_file and not Path(args.boxes_file).is_file():
        raise InputError(f"--boxes_file {args.boxes_file} is no file; give a JSON file of boxes")
    if args.boxes_file and args.boxes not in ("auto", "file"):
        raise InputError(f"--boxes_file goes with --boxes file, not with {args.boxes}; leave out one of the two")
    if args.stage == "pretrain" and not args.print_config:
        if args.train_data_dir and not Path(args.train_data_dir).is_dir():
            raise InputError(f"--train_data_dir {args.train_data_dir} is no folder; give one of pictures, or an LMDB")
        if not args.train_data_dir and not is_picturebook_folder(args.pretrained_model_name_or_path):
            raise InputError("give --train_data_dir, a folder of pictures or an LSUN LMDB; only the picturebook has "
                             "its own")  # fmt: skip
    return args


def training_steps(args: argparse.Namespace, pictures: int, processes: int = 1) -> int:
    """--max_train_steps, or what --num_train_epochs of so many pictures come to."""
    if args.max_train_steps:
        return args.max_train_steps
    batch = args.train_batch_size * args.gradient_accumulation_steps * processes
    return args.num_train_epochs * math.ceil(pictures * args.repeats / batch)


def weights_of_all(name: str) -> str | None:
    """common.flags.weights_of; of a picturebook with its inpainting model's."""
    return weights_of(name, *(str(local_folder(name) / part) for part in ("inpaint_unet", "inpaint_image_encoder")))


def check_sampling(args: argparse.Namespace) -> None:
    """Raises InputError for a feather without an edge."""
    if args.feather is not None and not args.composite:
        raise InputError("--feather is of --composite, and --no-composite was given: leave out one of the two")


def sampling_of(args: argparse.Namespace, kind: str = "untuned") -> dict[str, Any]:
    """Keyword arguments of sampling.Sampling. kind: of the weights, a key of PICTUREBOOK_GUIDANCE."""
    guidance = args.guidance_scale
    if guidance is None:
        on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
        guidance = PICTUREBOOK_GUIDANCE[kind] if on_picturebook else GUIDANCE
    return {"scheduler": args.scheduler, "num_inference_steps": args.num_inference_steps, "guidance_scale": guidance,
            "mask_resize": args.mask_resize}  # fmt: skip
