"""Low-rank updates of the nine-channel UNet (Sec. 4.2, Eq. 7): h = W_0 x + B A x, A random and B zero at first.

peft adds them; files are diffusers' pytorch_lora_weights.safetensors with peft's settings in their header, so that
diffusers' own load_lora_adapter (and StableDiffusionInpaintPipeline.load_lora_weights) reads them onto a UNet of nine
channels. The paper gives neither rank nor targets: reproduction/storage.py says what each choice takes.
"""

import json
import re
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from common.files import refused_as
from common.model_files import check_weights
from common.runs import InputError, atomic_path

LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name

# What of every transformer block is updated, as peft's target_modules.
TARGETS: dict[str, list[str] | str] = {
    "attention": ["to_q", "to_k", "to_v", "to_out.0"],
    "qv": ["to_q", "to_v"],
    "cross_kv": r".*\.attn2\.to_(k|v)",
    "attention+ff": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
    "attention+conv_in": ["to_q", "to_k", "to_v", "to_out.0", "conv_in"],
}


def add_lora(
    unet: UNet2DConditionModel, rank: int, alpha: float, targets: str, dropout: float = 0.0, seed: int = 0
) -> dict[str, nn.Parameter]:
    """Eq. 7: put new updates alpha / rank * B A beside the UNet's frozen weights W_0 (the sum is peft's; alpha = rank
    gives the printed B A); returns them by name. Random in `seed` alone, initialised as in LoRA's released code: A
    uniform (Kaiming), B zero."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, target_modules=TARGETS[targets], lora_alpha=alpha, lora_dropout=dropout))
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def save_lora(unet: UNet2DConditionModel, folder: str | Path) -> Path:
    """pytorch_lora_weights.safetensors in `folder`, atomically, as diffusers' save_lora_weights writes it but for the
    header's second entry, "format": two entries come in any order, and a training would not end in the same bytes."""
    from peft.utils import get_peft_model_state_dict

    path = Path(folder) / LORA_FILE
    weights = {f"unet.{name}": p.float().cpu().contiguous() for name, p in get_peft_model_state_dict(unet).items()}
    settings = {
        f"unet.{name}": sorted(value) if isinstance(value, set | list | tuple) else value
        for name, value in unet.peft_config["default"].to_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(weights, temporary, metadata={"lora_adapter_metadata": json.dumps(settings, sort_keys=True)})
    return path


def check_lora(unet: UNet2DConditionModel, file: Path) -> None:
    """Raises InputError unless the file holds pairs A and B, each of a layer of this UNet and of its width."""
    with refused_as(f"{file} is damaged or no LoRA file; train again"):
        tensors = load_file(file)
    check_weights(file, tensors)
    layers, pairs = dict(unet.named_modules()), {}
    for name, tensor in tensors.items():
        if not (match := re.fullmatch(r"unet\.(.+)\.lora_([AB])\.weight", name)):
            raise InputError(f"{file} holds {name}, which is no LoRA of a UNet in diffusers' format")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    if not pairs:
        raise InputError(f"{file} holds no update at all")
    for layer, pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise InputError(f"{file} lacks the other half of a pair, {layer}")
        weight, a, b = getattr(layers.get(layer), "weight", None), pair["A"], pair["B"]
        if weight is None or not weight.ndim == a.ndim == b.ndim or (
            (b.shape[0], b.shape[1], a.shape[1]) != (weight.shape[0], a.shape[0], weight.shape[1])
        ):  # fmt: skip
            raise InputError(f"{file} was trained on another model: {layer} is missing here, or of another width")


def load_lora(unet: UNet2DConditionModel, file: str | Path) -> None:
    """Diffusers' own loader, after a check, with the updates merged into the weights (no cost when sampling)."""
    file = Path(file)
    check_lora(unet, file)
    with refused_as(f"{file} is no LoRA of this model"):
        unet.load_lora_adapter(str(file.parent), prefix="unet", weight_name=file.name)
    unet.fuse_lora()
    unet.unload_lora()
