"""The twelve parameter subsets of Table 1, and what each costs in numbers and on disk."""

import io
import re

import torch
from torch import nn

from svdiff.basis import shift_length, tunable
from svdiff.files import as_bytes
from svdiff.options import SUBSETS


def chosen(model: nn.Module, subset: str = "UNet") -> list[str]:
    """The paths of a model's tunable layers in a subset, in the model's order. "UNet" is all of any model."""
    return [path for path, layer in tunable(model).items() if re.search(SUBSETS[subset], f"{path}:{layer.weight.ndim}")]


def cost(model: nn.Module, subset: str) -> dict[str, int]:
    """{"tensors", "values", "torch_bytes", "file_bytes"} of a subset's shifts; the model may live on the meta device.

    torch_bytes: the size of a file of torch.save under the long names of the authors' parametrization, which is what
    Table 1 prints (its KB are 1024 bytes); of that container, 350 to 380 bytes per tensor are names and padding.
    """
    layers, file = tunable(model), io.BytesIO()
    shifts = {path: torch.zeros(shift_length(layers[path])) for path in chosen(model, subset)}
    torch.save({f"{path}.parametrizations.weight.0.eigenvalues_delta": delta for path, delta in shifts.items()}, file)
    return {"tensors": len(shifts), "values": sum(map(len, shifts.values())), "torch_bytes": file.tell(),
            "file_bytes": len(as_bytes(shifts, base="0" * 32, subset=subset))}  # fmt: skip


def stable_diffusion_unet() -> nn.Module:
    """The UNet of Stable Diffusion 1.x on the meta device: 859,520,964 parameters that hold no numbers."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the rest are diffusers' defaults
