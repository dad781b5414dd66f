"""The flags that every training script has, named as in diffusers' own examples. Nothing heavy is imported here."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.flags import is_picturebook_folder, number, say_preset, say_unheeded
from common.runs import InputError, find_checkpoint

LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
TRACKERS = ("none", "tensorboard", "wandb")
ONLY_WITH = {  # see say_unheeded
    **dict.fromkeys(("class_data_dir", "num_class_images", "prior_loss_weight", "sample_batch_size"),
                    ("with_prior_preservation", True)),
    "lr_warmup_steps": ("lr_scheduler", [name for name in LR_SCHEDULERS if name != "constant"]),
}  # fmt: skip
SOURCES = ("instance_data_dir", "concepts_list", "image_path")  # of training pictures; the last two are svdiff's own


def add_training_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Flags of any training; `defaults` are the folder's own (the paper's), by flag name."""
    add = parser.add_argument_group("training").add_argument
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder in diffusers layout"
        ", or a hub id")  # fmt: skip
    add("--output_dir", help="folder for weights, checkpoints, config.json, metrics.json, grid.png")
    add("--resolution", type=number(int, 16), help="side of the square training pictures; the model's own by default")
    add("--train_batch_size", type=number(int, 1), default=1, help="pictures per process and micro-step")
    add("--gradient_accumulation_steps", type=number(int, 1), default=1, help="micro-steps per optimiser step")
    add("--gradient_checkpointing", action="store_true", help="compute activations twice to save memory")
    add("--max_train_steps", type=number(int, 1), help="optimiser steps")
    add("--learning_rate", type=number(float, 0), help="of AdamW")
    add("--scale_lr", action=argparse.BooleanOptionalAction, default=False,
        help="multiply --learning_rate by accumulation, batch size and number of processes")  # fmt: skip
    add("--lr_scheduler", choices=LR_SCHEDULERS, default="constant", help="course of the learning rate")
    add("--lr_warmup_steps", type=number(int, 0), default=0, help="optimiser steps of warm-up")
    add("--adam_beta1", type=number(float, 0, 0.999999), default=0.9, help="of AdamW")
    add("--adam_beta2", type=number(float, 0, 0.999999), default=0.999, help="of AdamW")
    add("--adam_weight_decay", type=number(float, 0), default=1e-2, help="of AdamW; at 0 it is Adam")
    add("--adam_epsilon", type=number(float, 0), default=1e-8, help="of AdamW")
    add("--max_grad_norm", type=number(float, 0), default=1.0, help="gradients are clipped to it; 0: never")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="of the networks; fp16 needs a GPU")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of everything random")
    add("--checkpointing_steps", type=number(int, 1), default=500, help="write checkpoint-<step> every so many steps")
    add("--checkpoints_total_limit", type=number(int, 1), help="keep so many of the newest; all by default")
    add("--resume_from_checkpoint", metavar="latest|PATH", help="go on from a checkpoint of the same training")
    add("--validation_prompt", help="draw this every --validation_steps, and at the end into grid.png")
    add("--validation_steps", type=number(int, 1), default=100, help="see --validation_prompt")
    add("--num_validation_images", type=number(int, 1), default=4, help="see --validation_prompt")
    add("--report_to", choices=TRACKERS, default="none", help="tracker that gets the losses")
    add("--device", choices=("cpu", "cuda"), help="a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    set_defaults(parser, defaults)


def add_subject_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Flags of a subject's pictures, and of the class pictures of prior preservation."""
    add = parser.add_argument_group("pictures").add_argument
    add("--instance_data_dir", help="folder of the subject's pictures; by default a subject of the picturebook")
    add("--instance_prompt", help='prompt of these pictures, "a photo of a sks dog"')
    add("--class_data_dir", help="folder of class pictures; what is missing there is drawn with --class_prompt")
    add("--class_prompt", help='prompt of the class pictures, "a photo of a dog"')
    add("--with_prior_preservation", action=argparse.BooleanOptionalAction, default=False,
        help="train on class pictures too")  # fmt: skip
    add("--prior_loss_weight", type=number(float, 0), default=1.0, help="of the loss on class pictures")
    add("--num_class_images", type=number(int, 1), default=100, help="class pictures, at least")
    add("--sample_batch_size", type=number(int, 1), default=4, help="class pictures drawn at once")
    add("--center_crop", action=argparse.BooleanOptionalAction, default=False,
        help="cut the centre out of pictures that are no square; otherwise a random part")  # fmt: skip
    add("--random_flip", action=argparse.BooleanOptionalAction, default=False, help="mirror every other picture")
    set_defaults(parser, defaults)


def set_defaults(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Other defaults for flags that exist."""
    if unknown := defaults.keys() - {action.dest for action in parser._actions}:
        raise ValueError(f"there are no flags {sorted(unknown)}")
    parser.set_defaults(**defaults)


def parse_training(
    parser: argparse.ArgumentParser, argv: list[str] | None, picturebook_preset: dict[str, Any],
    only_with: Mapping[str, tuple[str, Any]] = {},
) -> argparse.Namespace:  # fmt: skip
    """Parse, and check what needs no model. On a picturebook its preset takes the place of defaults, and is printed.
    only_with: the script's own flags that count with others alone.

    Raises InputError.
    """
    args = parser.parse_args(argv)
    if is_picturebook_folder(args.pretrained_model_name_or_path):
        if picturebook_preset:
            set_defaults(parser, picturebook_preset)
            args = parser.parse_args(argv)
            say_preset(picturebook_preset)
    elif "instance_data_dir" in args and not any(map(vars(args).get, SOURCES)) and not args.print_config:
        raise InputError("give --instance_data_dir, a folder of pictures; only the picturebook brings its own")
    if folder := getattr(args, "instance_data_dir", None):
        if not Path(folder).is_dir():
            raise InputError(f"--instance_data_dir {folder} is no folder; give a folder of pictures")
        if "instance_prompt" in args and not (args.instance_prompt or "").strip():
            raise InputError("--instance_data_dir needs --instance_prompt, which says what its pictures show")
        classes = getattr(args, "class_data_dir", None)
        if classes and os.path.realpath(classes) == os.path.realpath(folder):
            raise InputError(f"--class_data_dir {classes} is --instance_data_dir too: give class pictures a folder of "
                             "their own")  # fmt: skip
        if getattr(args, "with_prior_preservation", False) and not (args.class_prompt or "").strip():
            raise InputError("--with_prior_preservation needs --class_prompt, such as 'a photo of a dog'")
    if args.report_to != "none" and importlib.util.find_spec(args.report_to) is None:
        raise InputError(f"--report_to {args.report_to} is not installed; install it, or leave the flag out")
    if not args.print_config:
        check_checkpoints(args)
        say_unheeded(parser, args, {**ONLY_WITH, **only_with})
    return args


def check_checkpoints(args: argparse.Namespace) -> None:
    """Raises InputError for a checkpoint that is not there, and for those of an earlier run that would be mixed up. A
    line where there is no latest one."""
    wanted, folder = args.resume_from_checkpoint, Path(args.output_dir)
    if wanted is None and (old := sorted(folder.glob("checkpoint-*"))):
        raise InputError(f"{folder} holds {old[0].name} of an earlier run; add --resume_from_checkpoint latest to go on"
                         " with it, or take another --output_dir")  # fmt: skip
    if find_checkpoint(folder, wanted) is None and wanted:
        print(f"{folder} holds no checkpoint yet: the training begins at its start", file=sys.stderr)
