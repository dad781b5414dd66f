"""LoRA files of svdiff.train, of diffusers' scripts and of kohya's: what they add to a model's weights.

Read by diffusers' own loader; what it would leave out in silence, or take from a stranger unchecked, is refused.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.files import refused_as
from common.runs import InputError
from svdiff.files import PARTS, read_tensors

SETTINGS = "lora_adapter_metadata"  # where diffusers keeps peft's LoraConfig, in the metadata of a LoRA's file
# Of LoraConfig, besides ranks and alphas: what scales an update, names its layers, or leaves it as it is
KNOWN = {
    "use_rslora", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "peft_version", "revision", "target_modules", "task_type",
}  # fmt: skip
# A layer's path, or its end, with two gaps .* at most: peft takes any regular expression, but some would run for ever.
PATTERN = re.compile(r"\^?[\w.]+(\.\*[\w.]+){0,2}")


def is_lora(file: Path) -> bool:
    """Whether a file's tensors are named as those of a LoRA. Raises InputError for what is no safetensors file."""
    return any("lora" in key for key in read_tensors(file, "a training")[0])


def read_lora(pipe, file: Path) -> dict[str, dict[str, Tensor]]:
    """{part: {parameter: B A times its scale}} of a LoRA's file, by putting it on the pipeline and taking it off again.

    Raises InputError for a file that does not fit the pipeline, or of which a tensor would be left out: it would draw
    something else than its maker saw.
    """
    from peft.tuners.lora import LoraLayer

    tensors, metadata = read_tensors(file, "a LoRA")
    check_settings(file, metadata)
    if odd := [key for key in tensors if not re.search(r"lora|\.alpha$", key) or "dora" in key]:
        raise InputError(f"{file} holds {odd[0]}, which is no part of a LoRA")
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with refused_as(f"{file} is no LoRA of this model"):  # shapes, names or settings that do not fit
            pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="read", local_files_only=True)
            for part in (part for part in PARTS if getattr(pipe, part, None) is not None):
                for path, layer in getattr(pipe, part).named_modules():
                    if isinstance(layer, LoraLayer) and "read" in layer.lora_A:
                        parts.setdefault(part, {})[f"{path}.weight"] = layer.get_delta_weight("read").detach().float()
    finally:
        pipe.unload_lora_weights()
    found = [delta for of_part in parts.values() for delta in of_part.values()]
    if not found or 2 * len(found) != sum("alpha" not in key for key in tensors):
        raise InputError(f"{file} is of layers that this model does not have")
    if not all(delta.isfinite().all() for delta in found):
        raise InputError(f"{file} gives changes that are not finite: its rank or alpha is wrong")
    return parts


def check_settings(file: Path, metadata: Mapping[str, str]) -> None:
    """Raises InputError for a setting of peft's LoraConfig, as diffusers keeps it in a file, that is not understood."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    try:
        settings = json.loads(metadata.get(SETTINGS) or "{}").items()
    except (ValueError, RecursionError, AttributeError):
        raise InputError(f"{file} has a {SETTINGS} that is no JSON object, so its alpha is not known") from None
    for name, value in settings:
        setting = name.partition(".")[2]
        if setting in ("r", "lora_alpha"):
            understood = isinstance(value, int | float) and value > 0
        elif setting in ("rank_pattern", "alpha_pattern"):
            understood = not value or isinstance(value, dict) and all(map(PATTERN.fullmatch, value))
        else:  # other starts than at random change the base as well
            random = (setting, value) == ("init_lora_weights", "gaussian")
            understood = not value or value == usual.get(setting) or setting in KNOWN or random
        if not understood:
            raise InputError(f"{file} is a LoRA with {name} = {value}, which is not understood here")
