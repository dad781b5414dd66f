"""Files of spectral shifts, in the form that the community uses: float32 safetensors with keys `<layer>.delta`.

`spectral_shifts.safetensors` is the UNet's, `spectral_shifts_te.safetensors` the text encoder's. Ours also name the
base model they belong to (a hash of its weights, in the metadata), and are refused on another. The community's have no
such hash, one number per norm layer instead of a vector, and the `text_model.` level that text encoders used to have.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from common.model_files import read_weights
from common.runs import InputError, atomic_path
from svdiff.basis import shift_length, tunable

log = logging.getLogger(__name__)

NAME = "spectral_shifts"
# part of a pipeline -> what its file is called after NAME
PARTS = {"unet": "", "text_encoder": "_te", "text_encoder_2": "_te_2"}
OLD_LEVEL = "text_model."


def file_name(part: str) -> str:
    return f"{NAME}{PARTS[part]}.safetensors"


def as_bytes(shifts: Mapping[str, Tensor], base: str, part: str = "unet", **about: str) -> bytes:
    """A file of the shifts of one part; `about` joins the metadata."""
    level = OLD_LEVEL if part != "unet" else ""  # under the names that the community's loaders look for
    tensors = {f"{level}{path.removeprefix(level)}.delta": delta.float().contiguous() for path, delta in shifts.items()}
    return save(tensors, {"format": "svdiff", "base": base, "part": part, **about})


def write_shifts(file: Path, shifts: Mapping[str, Tensor], base: str, part: str = "unet", **about: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_bytes(as_bytes(shifts, base, part, **about))


def read_shifts(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """({layer's path: delta}, metadata) of a file of ours or of the community's. Raises InputError for any other."""
    tensors, metadata = read_weights(file)
    if not tensors or not all(key.endswith(".delta") and value.ndim == 1 for key, value in tensors.items()):
        raise InputError(f"{file} holds no spectral shifts: their keys end in .delta and each is a vector")
    if (part := metadata.get("part", "unet")) not in PARTS:
        raise InputError(f"{file} says that it is of the part {part}; shifts are of {', '.join(PARTS)}")
    return {key.removesuffix(".delta"): value.float() for key, value in tensors.items()}, metadata


def find_files(path: Path) -> dict[str, Path]:
    """part -> file, of a training's folder or of a file. Beside the UNet's file those of the text encoders count, whose
    names end in _te and _te_2; a file of ours says itself which part it is of."""
    if path.is_dir():
        found = {part: path / file_name(part) for part in PARTS if (path / file_name(part)).is_file()}
        if not found:
            raise InputError(f"{path} holds no {NAME}.safetensors; train one with python -m svdiff.train")
        return found
    if not path.is_file():
        raise InputError(f"{path} is missing; train one with python -m svdiff.train")
    named = next((part for part in reversed(PARTS) if PARTS[part] and path.stem.endswith(PARTS[part])), "unet")
    part = read_shifts(path)[1].get("part", named)
    if part != "unet":
        return {part: path}
    beside = {part: path.with_stem(f"{path.stem}{ending}") for part, ending in PARTS.items()}
    return {part: file for part, file in beside.items() if file.is_file()}


def fit(model: nn.Module, shifts: Mapping[str, Tensor], metadata: Mapping[str, str], base: str, file: Path) -> dict:
    """The shifts under the names of `model`'s layers and in the lengths that they have, if they belong to it. base: the
    model's basis.base_hash. Raises InputError."""
    theirs = metadata.get("base")
    if theirs not in (None, base):
        raise InputError(
            f"{file} was trained on another base model, {metadata.get('model', 'unnamed')} with weights {theirs[:12]} "
            f"(here {base[:12]}): give that one to --pretrained_model_name_or_path"
        )
    if theirs is None:
        log.warning("%s does not say which base model it belongs to; it is taken to be this one", file)
    layers, fitted = tunable(model), {}
    for key, delta in shifts.items():
        names = key, key.removeprefix(OLD_LEVEL), OLD_LEVEL + key
        if (path := next((name for name in names if name in layers), None)) is None:
            raise InputError(f"{file} shifts {key}, which this model lacks: it was made for another architecture")
        length = shift_length(layers[path])
        if layers[path].weight.ndim == 1 and len(delta) == 1 < length:
            # the community's, of a norm's only singular value |w| (its weight as a 1 x C matrix), as one of the vector
            weight = layers[path].weight.detach().float().cpu()
            delta = weight * (torch.relu(weight.norm() + delta) / weight.norm() - 1)
        if len(delta) != length:
            raise InputError(f"{file} has {len(delta)} values for {key}, and this model needs {length}")
        fitted[path] = delta
    return fitted
