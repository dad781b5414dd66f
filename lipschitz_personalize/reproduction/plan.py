"""The trainings behind each table and figure: a name each, and the flags of lipschitz_personalize.train.

A name is the method's, and after @ what departs from its own settings: dreambooth+penalty@l2_reg_weight=1000.
"""

import argparse
from typing import Any

from common.flags import is_picturebook_folder
from common.runs import InputError
from common.tables import published_table
from lipschitz_personalize import options

SPACE_NAMES = {"full": "dreambooth", "custom_diffusion": "custom_diffusion", "lora": "lora"}
OWN = {"full": "dreambooth+penalty", "custom_diffusion": "custom_diffusion+penalty", "lora": "lora+penalty"}

# Baselines' own recipes on real models (README.md, "Baselines"); on the picturebook they share the preset of ours.
RECIPES: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 5e-6, "adam_weight_decay": 1e-2, "max_grad_norm": 1.0, "max_train_steps": 800,
             "squash": False, "cache_latents": False},
    "custom_diffusion": {"learning_rate": 2e-5, "max_train_steps": 500, "mask_loss": "sum"},  # times batch 2: 4e-5
    "lora": {"learning_rate": 1e-4, "adam_weight_decay": 1e-2, "lora_rank": 4, "lora_alpha": 4, "train_batch_size": 1,
             "lora_init": "gaussian"},
}  # fmt: skip
LAMBDA_FACTORS = (0, 1, 2, 4, 10, 20)  # Fig. 2: 0, 0.5k, 1k, 2k, 5k, 10k; multiples of the full space's own lambda


def recipe(space: str, model: str) -> dict[str, Any]:
    """The settings of a baseline, over the trainer's defaults, which are those of the penalty."""
    if is_picturebook_folder(model):
        return {}
    sd_lora = space == "lora" and options.guess_backbone(model) == "sd"  # the penalty's is of queries and values alone
    return RECIPES[space] | ({"lora_targets": options.QKVO} if sd_lora else {})


def methods() -> dict[str, list[str]]:
    """name -> flags, for every parameter space: plain, with prior preservation, with the penalty."""
    found = {}
    for space, name in SPACE_NAMES.items():
        plain = ["--parameter_space", space, "--l2_reg_weight", "0"]
        found[name] = plain
        found[f"{name}+prior"] = [*plain, "--with_prior_preservation"]
        found[OWN[space]] = ["--parameter_space", space]
    return found


def flags_of(name: str, model: str) -> list[str]:
    """The flags that a name stands for, with the baselines' recipes on real models. Raises InputError for no method."""
    method, _, changes = name.partition("@")
    known = methods()
    if method not in known:
        raise InputError(f"there is no method {method!r}; take one of {', '.join(known)}")
    flags = list(known[method])
    if method not in OWN.values():
        space = next(space for space, plain in SPACE_NAMES.items() if plain == method.removesuffix("+prior"))
        flags += options.as_flags(recipe(space, model))
    for change in filter(None, changes.split(",")):
        key, equals, value = change.partition("=")
        flags += [f"--{key}", value] if equals else [f"--{key}"]
    return flags


def lambda_sweep(model: str) -> list[str]:
    """The trainings of Figs. 2, 4 and 5: full fine-tuning over lambda; at 0 it is plain DreamBooth."""
    own = options.parse(["--pretrained_model_name_or_path", model, "--print_config"]).l2_reg_weight
    return [f"dreambooth+penalty@l2_reg_weight={own * factor:g}" for factor in LAMBDA_FACTORS]


def wanted(args: argparse.Namespace) -> list[str]:
    """The methods that the flags of lipschitz_personalize.eval ask for."""
    if args.methods:
        return args.methods
    names: list[str] = []
    backbone = args.backbone or options.guess_backbone(args.pretrained_model_name_or_path)
    if args.table:
        names += [
            row["method"]
            for row in published_table("lipschitz_personalize", args.table)["rows"]
            if row.get("backbone") == backbone
        ]
    if set(args.figure) & {2, 4, 5}:
        names += lambda_sweep(args.pretrained_model_name_or_path)
    if 3 in args.figure or not names and 1 not in args.figure:
        names += ["dreambooth", "dreambooth+prior", "dreambooth+penalty"]
    return list(dict.fromkeys(names))
