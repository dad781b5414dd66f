"""The trainings behind each table and figure: a name each, and the flags of lipschitz_personalize.train.

A name is the method's, and after @ what departs from its own settings: dreambooth+penalty@l2_reg_weight=1000.
"""

import argparse
from typing import Any

from common.flags import as_flags, check_handed_on, is_picturebook_folder
from common.runs import InputError
from common.tables import published_table
from lipschitz_personalize import options

NEVER = 10**9  # steps to a checkpoint: a training that is interrupted is begun anew, so that its time is of one piece

# Every parameter space: plain, with prior preservation, with the penalty. By name the flags that make the method.
SPACE_NAMES = {"full": "dreambooth", "custom_diffusion": "custom_diffusion", "lora": "lora"}
KINDS = {"": {"l2_reg_weight": 0}, "+prior": {"l2_reg_weight": 0, "with_prior_preservation": True}, "+penalty": {}}
METHODS: dict[str, dict[str, Any]] = {
    name + kind: {"parameter_space": space, **flags}
    for space, name in SPACE_NAMES.items() for kind, flags in KINDS.items()
}  # fmt: skip

# Baselines' own recipes on real models (DEPARTURES.md, "baselines"); on the picturebook they share the preset of ours.
RECIPES: dict[str, dict[str, Any]] = {
    "full": {"learning_rate": 5e-6, "adam_weight_decay": 1e-2, "max_grad_norm": 1.0, "max_train_steps": 800,
             "squash": False, "cache_latents": False},
    "custom_diffusion": {"learning_rate": 1e-5, "max_train_steps": 500, "mask_loss": "sum"},
    "lora": {"learning_rate": 1e-4, "adam_weight_decay": 1e-2, "lora_rank": 4, "lora_alpha": 4, "train_batch_size": 1,
             "lora_init": "gaussian"},
}  # fmt: skip
LAMBDA_FACTORS = (0, 1, 2, 4, 10, 20)  # Fig. 2: 0, 0.5k, 1k, 2k, 5k, 10k; multiples of the full space's own lambda


def with_recipe(flags: dict[str, Any], model: str) -> dict[str, Any]:
    """A method's flags; of a baseline with its recipe, over the trainer's defaults, which are those of the penalty."""
    if flags.get("l2_reg_weight") != 0 or is_picturebook_folder(model):
        return flags
    other = {  # the penalty's LoRA is of queries and values alone; SD3's Custom Diffusion has no masks
        ("sd", "lora"): {"lora_targets": options.QKVO},
        ("sd3", "custom_diffusion"): {"mask_loss": "mean", "learning_rate": 2e-5},
        ("sdxl", "lora"): {"adam_weight_decay": 1e-4},
        ("sd3", "lora"): {"adam_weight_decay": 1e-4, "learning_rate": 4e-4},
    }  # fmt: skip
    space = flags["parameter_space"]
    return flags | RECIPES[space] | other.get((options.guess_backbone(model), space), {})


def settings_of(name: str, model: str) -> dict[str, Any]:
    """The flags that a name stands for. Raises InputError for no method."""
    method, _, changes = name.partition("@")
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; take one of {', '.join(METHODS)}")
    check_handed_on(f"--methods {name}", [f"--{change}" for change in changes.split(",")])
    changed = (change.partition("=") for change in filter(None, changes.split(",")))
    return with_recipe(METHODS[method], model) | {key: value if equals else True for key, equals, value in changed}


def start_of(model: str, token: str = "") -> str:
    """How a training's prompts begin, Custom Diffusion's as in its scripts; no caption of the picturebook says
    "photo"."""
    usual = "photo of a" if token == options.NEW_WORD else "a photo of a"
    return "a" if is_picturebook_folder(model) else usual


def backbone_of(args: argparse.Namespace) -> str:
    return args.backbone or options.guess_backbone(args.pretrained_model_name_or_path)


def token_of(args: argparse.Namespace, name: str) -> str:
    """The word for the subject: Custom Diffusion's new one (of SD3 none is trained), else the rare "sks"."""
    return options.NEW_WORD if "custom_diffusion" in name and backbone_of(args) != "sd3" else options.TOKEN


def subject_flags(subject, model: str, token: str, folder, names_class: bool = True) -> dict[str, Any]:
    """What a training is told of its subject. names_class: whether the class word stays beside the token."""
    called = f"{token} {subject.class_name}" if names_class else token
    return {
        "instance_data_dir": subject.paths[0].parent,
        "instance_prompt": f"{start_of(model, token)} {called}",
        "class_prompt": f"{start_of(model)} {subject.class_name}",
        "checkpointing_steps": NEVER,
        "output_dir": folder,
    }


def training_flags(args: argparse.Namespace, name: str, subject=None, seed: int = 0, output_dir=None) -> list[str]:
    """The flags of one training of lipschitz_personalize.eval: the method's, the subject's, then --train_args."""
    model = args.pretrained_model_name_or_path
    given = {"pretrained_model_name_or_path": model, **settings_of(name, model), "seed": seed,
             "backbone": args.backbone, "device": args.device}  # fmt: skip
    if subject is not None:
        # one folder of class pictures for all methods, subjects and seeds of a class would save time, and then the
        # price of prior preservation could not be measured: every training draws its own
        given |= subject_flags(subject, model, token_of(args, name), output_dir)
    return [*as_flags(given), *args.train_args]


def lambda_sweep(model: str) -> list[str]:
    """The trainings of Figs. 2, 4 and 5: full fine-tuning over lambda; at 0 it is plain DreamBooth."""
    own = options.parse(["--pretrained_model_name_or_path", model, "--print_config"]).l2_reg_weight
    return [f"dreambooth+penalty@l2_reg_weight={own * factor:g}" for factor in LAMBDA_FACTORS]


def wanted(args: argparse.Namespace) -> list[str]:
    """The methods that the flags of lipschitz_personalize.eval ask for."""
    if args.methods:
        return list(dict.fromkeys(args.methods))
    names: list[str] = []
    if args.table:
        rows = published_table("lipschitz_personalize", args.table)["rows"]
        names += [row["method"] for row in rows if row.get("backbone") == backbone_of(args)]
    if set(args.figure) & {2, 4, 5}:
        names += lambda_sweep(args.pretrained_model_name_or_path)
    if 3 in args.figure or not names and 1 not in args.figure:
        names += ["dreambooth", "dreambooth+prior", "dreambooth+penalty"]
    return list(dict.fromkeys(names))
