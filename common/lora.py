"""LoRA files, of trainings here, of diffusers' scripts and of kohya's: what they change in a model's weights.

Read by diffusers' own loader; what it would leave out in silence, or take from a stranger unchecked, is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from common.files import InputError, atomic_path, refused_as
from common.model_files import quietly, read_weights

LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
ADAPTER = "read"  # what a file is called while it lies on a model
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
# One of the two factors of a layer: peft's name; diffusers' first ones and kohya's
FACTOR = re.compile(r"(.*lora.*?[._])(A|B|down|up)\.weight")
SETTINGS = "lora_adapter_metadata"  # where diffusers keeps peft's LoraConfig, in the metadata of a file
# Of LoraConfig, besides ranks and alphas: what scales an update, names its layers, or leaves it as it is
KNOWN = {
    "use_rslora", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "peft_version", "revision", "target_modules", "task_type",
}  # fmt: skip
# A layer's path, or its end, with two gaps .* at most: peft takes any regular expression, but some would run for ever.
PATTERN = re.compile(r"\^?[\w.]+(\.\*[\w.]+){0,2}")


def write_lora(
    folder: Path, part: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """A training's tensors, by peft's names inside of a part of the pipeline, as LORA_FILE in a folder; atomically."""
    content = {f"{part}.{name}": value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(folder / LORA_FILE) as temporary:
        save_file(content, temporary, metadata)
    return folder / LORA_FILE


def read_lora(file: Path) -> dict[str, Tensor]:
    """The tensors of a file of plain LoRA. Raises InputError for one that is damaged or holds anything else, and for
    settings that are not understood."""
    tensors, metadata = read_weights(file)
    if odd := [name for name in tensors if not FACTOR.fullmatch(name) and not name.endswith(".alpha")]:
        raise InputError(f"{file} holds {odd[0]}, which is no part of a LoRA")
    check_settings(file, metadata)
    return tensors


@contextmanager
def put_on(model: DiffusionPipeline | nn.Module, file: Path, tensors: Mapping[str, Tensor]) -> Iterator[dict]:
    """A LoRA's layers of peft by their paths, as long as it lies on a pipeline ("unet.mid_block…") or a network
    ("mid_block…"). What is fused within the block stays; the rest is taken off again.

    tensors: those of the file. Raises InputError for a file that does not fit the model, or of which a tensor would be
    left out: it would draw something else than its maker saw.
    """
    from peft.tuners.lora import LoraLayer

    whole = isinstance(model, DiffusionPipeline)
    nets = {f"{part}.": getattr(model, part, None) for part in PARTS} if whole else {"": model}
    count = count_pairs(file, tensors)
    try:
        with refused_as(f"{file} is no LoRA of this model"), quietly():  # names, shapes or settings that do not fit
            if whole:
                model.load_lora_weights(
                    prefixed(tensors) or str(file.parent), weight_name=file.name, adapter_name=ADAPTER,
                    local_files_only=True,
                )  # fmt: skip
            else:
                prefix = "unet" if isinstance(model, UNet2DConditionModel) else "transformer"
                model.load_lora_adapter(str(file.parent), prefix, weight_name=file.name, adapter_name=ADAPTER,
                                        local_files_only=True, low_cpu_mem_usage=True)  # fmt: skip
        layers = {f"{part}{path}": layer for part, net in nets.items() if net is not None
                  for path, layer in net.named_modules() if isinstance(layer, LoraLayer)}  # fmt: skip
        if len(layers) != count:
            raise InputError(f"{file} is no LoRA of this model, which has {len(layers)} of its {count} layers")
        yield layers
    finally:
        model.unload_lora_weights() if whole else model.unload_lora()


def lora_deltas(model: DiffusionPipeline | nn.Module, file: Path) -> dict[str, Tensor]:
    """{parameter: B A times its scale} of a LoRA's file, float32; the model stays as it is. Raises InputError as
    `read_lora` and `put_on` do, and for changes that are not finite."""
    with put_on(model, file, read_lora(file)) as layers:
        change = {f"{path}.weight": layer.get_delta_weight(ADAPTER).detach().float() for path, layer in layers.items()}
    if not all(delta.isfinite().all() for delta in change.values()):
        raise InputError(f"{file} gives changes that are not finite: its rank or alpha is wrong")
    return change


def count_pairs(file: Path, tensors: Mapping[str, Tensor]) -> int:
    """How many layers a file is of. Raises InputError for a factor without its other half, which would be drawn at
    random, and for none at all."""
    pairs: dict[str, set[str]] = {}
    for found in filter(None, map(FACTOR.fullmatch, tensors)):
        pairs.setdefault(found[1], set()).add(found[2])
    if lone := [name for name, halves in pairs.items() if len(halves) == 1]:
        raise InputError(f"{file} lacks the other half of a pair, {lone[0]}")
    if not pairs:
        raise InputError(f"{file} holds no update at all")
    return len(pairs)


def prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors of a file by diffusers' first example scripts, which left out that they are the UNet's."""
    first = all(".processor." in name and not name.startswith(("unet.", "text_encoder")) for name in tensors)
    return {f"unet.{name}": value for name, value in tensors.items()} if first else None


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
