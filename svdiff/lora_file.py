"""LoRA files as svdiff.train and diffusers' scripts write them: what they add to a model's weights."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.runs import InputError
from svdiff.files import read_tensors

SETTINGS = "lora_adapter_metadata"  # where diffusers keeps peft's LoraConfig, in the metadata of a LoRA's file
# Of LoraConfig: what `scale_of` reads, and what leaves an update as it is, or says nothing about it.
SCALE = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
# A layer's path, whole or its end. peft takes any regular expression, but a stranger's could run for ever.
PATTERN = re.compile(r"\^?[\w.]+(\.\*[\w.]+){0,2}")
NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "peft_version", "revision", "target_modules", "task_type",
}  # fmt: skip


def read_lora(file: Path) -> dict[str, dict[str, Tensor]]:
    """{part: {parameter: B A times its scale}} of a file as svdiff.train and diffusers' scripts write it. Raises
    InputError for any other: a file with a tensor that is not understood would draw something else than its maker saw.
    """
    tensors, metadata = read_tensors(file, "a LoRA")
    settings = read_settings(file, metadata)
    parts, left = {}, set(tensors)
    for key, up in tensors.items():
        for mine, other in ((".lora_B.weight", ".lora_A.weight"), (".lora.up.weight", ".lora.down.weight")):
            partner = key.removesuffix(mine) + other
            if key.endswith(mine) and partner in tensors:
                part, _, path = key.removesuffix(mine).partition(".")
                down = tensors[partner]
                if not (up.ndim == down.ndim == 2 and up.shape[1] == len(down)):
                    raise InputError(f"{file} holds {key} and {partner} in shapes that do not fit each other")
                scale = scale_of(file, settings, part, path, len(down))
                parts.setdefault(part, {})[f"{path}.weight"] = scale * (up.float() @ down.float())
                left -= {key, partner}
    if left or not parts:
        raise InputError(f"{file} holds {min(left, default='nothing')}, which is no part of a LoRA by svdiff.train")
    return parts


def read_settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """peft's LoraConfig as diffusers keeps it in a file's metadata, {"unet.r": 4, ...}; None where there is none.
    Raises InputError for a setting that is not understood."""
    if not metadata.get(SETTINGS):
        return None
    try:
        settings = json.loads(metadata[SETTINGS])
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f"{file} has a {SETTINGS} that is no JSON object, so its alpha is not known")
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    for name, value in settings.items():
        setting = name.partition(".")[2]
        known = setting in SCALE | NO_MATTER or (setting, value) == ("init_lora_weights", "gaussian")
        if value and value != usual.get(setting) and not known:  # other starts than at random change the base as well
            raise InputError(f"{file} is a LoRA with {name} = {value}, which is not understood here")
    return settings


def scale_of(file: Path, settings: Mapping[str, Any] | None, part: str, layer: str, rank: int) -> float:
    """What peft multiplies a layer's B A with: alpha / rank, or alpha / sqrt(rank) if rank-stabilised. A file without
    settings has alpha = rank, as diffusers takes it. Raises InputError."""
    if settings is None:
        return 1.0

    def of_layer(name: str, patterns: str) -> Any:
        """A pattern is of all layers whose path ends in it; the first one counts."""
        own = settings.get(f"{part}.{patterns}") or {}
        if not isinstance(own, dict) or not all(PATTERN.fullmatch(pattern) for pattern in own):
            raise InputError(f"{file} has a {patterns} that cannot be read: it should name layers by their paths, with "
                             "two gaps .* at most")  # fmt: skip
        found = (value for pattern, value in own.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        return next(found, settings.get(f"{part}.{name}"))

    r, alpha = of_layer("r", "rank_pattern"), of_layer("lora_alpha", "alpha_pattern")
    if not (r == rank > 0 and isinstance(alpha, int | float) and math.isfinite(alpha)):
        raise InputError(f"{file} gives {part}.{layer} rank {r} and alpha {alpha}, and weights of rank {rank}")
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)
