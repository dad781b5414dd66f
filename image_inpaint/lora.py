"""Low-rank updates of the nine-channel UNet (Sec. 4.2, Eq. 7): h = W_0 x + B A x, A random and B zero at first.

peft adds them; files are diffusers' pytorch_lora_weights.safetensors with peft's settings in their header, so that
diffusers' own load_lora_adapter (and StableDiffusionInpaintPipeline.load_lora_weights) reads them onto a UNet of nine
channels. The paper gives neither rank nor targets: reproduction/storage.py says what each choice takes.
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from common.lora import SETTINGS, put_on, read_lora, write_lora
from image_inpaint.options import INITS, TARGETS


def add_lora(
    unet: UNet2DConditionModel, rank: int, alpha: float, targets: str, dropout: float = 0.0, seed: int = 0,
    init: str = "uniform",
) -> dict[str, nn.Parameter]:  # fmt: skip
    """Eq. 7: put new updates alpha / rank * B A beside the UNet's frozen weights W_0 (the sum is peft's; alpha = rank
    gives the printed B A); returns them by name. Random in `seed` alone: B is zero, and A gaussian of deviation
    1 / rank, as in LoRA's paper and the authors' code, or uniform (Kaiming), as in LoRA's code."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, target_modules=TARGETS[targets], lora_alpha=alpha, lora_dropout=dropout,
                                    init_lora_weights=INITS[init]))  # fmt: skip
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def save_lora(unet: UNet2DConditionModel, folder: str | Path) -> Path:
    """pytorch_lora_weights.safetensors in `folder`, atomically, as diffusers' save_lora_weights writes it but for the
    header's second entry, "format": two entries come in any order, and a training would not end in the same bytes."""
    from peft.utils import get_peft_model_state_dict

    settings = {f"unet.{name}": sorted(value) if isinstance(value, set | list | tuple) else value
                for name, value in unet.peft_config["default"].to_dict().items()}  # fmt: skip
    about = {SETTINGS: json.dumps(settings, sort_keys=True)}
    return write_lora(Path(folder), "unet", get_peft_model_state_dict(unet), about)


def load_lora(unet: UNet2DConditionModel, file: str | Path) -> None:
    """A LoRA's file merged into the weights (no cost when sampling). InputError if it does not fit them."""
    file = Path(file)
    with put_on(unet, file, read_lora(file)):
        unet.fuse_lora(safe_fusing=True)
