"""What a training changed, read back and written into a pipeline's weights: spectral shifts, full weights or LoRA.

A Change is a plain dictionary: "unet.conv_in.delta" is the shift of a layer of the UNet, "unet.conv_in.weight" the
difference W' - W of a parameter. So svdiff.combine adds and interpolates what was trained apart, one kind or both.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from common.files import refused_as
from common.lora import LORA_FILE, lora_deltas
from common.model_files import MODELS, load_model, read_weights
from common.runs import InputError, read_object
from svdiff import combine, files
from svdiff.basis import Bases, tunable
from svdiff.spectral import rebuilt

Change = dict[str, Tensor]


def of_part(change: Change, part: str = "unet") -> Change:
    """What changes in a part of the pipeline, under the names that it has there."""
    return {name.removeprefix(f"{part}."): value for name, value in change.items() if name.startswith(f"{part}.")}


def style_mix(pipe, appearance: Change, geometry: Change, first: combine.Block, last: combine.Block) -> Change:
    """Geometry's UNet changes between two blocks in P+ notation, everything else from appearance."""
    paths = [f"unet.{path}" for path in combine.span(pipe.unet, first, last)]
    return combine.style_mix(appearance, geometry, combine.inside({**appearance, **geometry}, paths))


# ---------------------------------------------------------------------------------------------------------- reading


def load(pipe, path: str | Path, bases: Bases | None = None) -> Change:
    """What a training's folder or file holds, checked against the (plain, float32) pipeline; files are told apart by
    the names of their tensors. bases: the pipeline's, to be asked once for several trainings. Raises InputError."""
    path, bases = Path(os.path.expanduser(path)), bases or Bases(pipe)
    lora = path / LORA_FILE if path.is_dir() else path
    if (path / "unet" / "config.json").is_file():
        parts = full_weights(pipe, path)
        check_base(path, parts, bases)
    elif lora.is_file() and any("lora" in name for name in read_weights(lora)[0]):
        change = lora_deltas(pipe, lora)
        check_base(lora.parent, {name.partition(".")[0] for name in change}, bases)
        return change
    else:
        parts = read_shifts(pipe, path, bases)
    return {f"{part}.{name}": value for part, changes in parts.items() for name, value in changes.items()}


def read_shifts(pipe, path: Path, bases: Bases) -> dict[str, dict[str, Tensor]]:
    """{part: {"<layer>.delta": delta}} of all files that belong to a folder or file of shifts."""
    parts = {}
    for part, file in files.find_files(path).items():
        if (model := getattr(pipe, part, None)) is None:
            raise InputError(f"{file} belongs to a {part}, which this model does not have")
        shifts = files.fit(model, *files.read_shifts(file), bases.base(part), file)
        parts[part] = {f"{layer}.delta": delta for layer, delta in shifts.items()}
    return parts


def full_weights(pipe, folder: Path) -> dict[str, dict[str, Tensor]]:
    """{part: {parameter: W' - W}} of the models that a full fine-tuning saved in a folder."""
    parts = {}
    for part in (part for part in files.PARTS if (folder / part / "config.json").is_file()):
        with refused_as(f"{folder / part} cannot be read as a model"):  # missing, or cut short
            tuned = dict(load_model(MODELS[part], folder / part, torch.float32).named_parameters())
        base = dict(getattr(pipe, part).named_parameters())
        if {n: p.shape for n, p in tuned.items()} != {n: p.shape for n, p in base.items()}:
            raise InputError(f"{folder / part} was made for another architecture than this model's {part}")
        parts[part] = {name: (tuned[name] - base[name].cpu()).detach() for name in base}
    return parts


def check_base(folder: Path, parts: Iterable[str], bases: Bases) -> None:
    """Raises InputError if the config.json of a training, where there is one, names another base model."""
    file = folder / "config.json"
    theirs = (read_object(file).get("base") or {}) if file.is_file() else {}
    if not isinstance(theirs, dict):
        raise InputError(f"{file} does not name the base model as svdiff.train does: write it anew, or take it away")
    if any(part in theirs and theirs[part] != bases.base(part) for part in parts):
        raise InputError(f"{folder} was trained on another base model: give that to --pretrained_model_name_or_path")


# ---------------------------------------------------------------------------------------------------------- writing


def new_weights(pipe, change: Change, scale: float, bases: Bases) -> Iterator[tuple[Tensor, Tensor]]:
    """(parameter, its new value) of everything that a change touches, to be written before the next is asked for."""
    for part in dict.fromkeys(name.partition(".")[0] for name in change):
        model, own = getattr(pipe, part), of_part(change, part)
        layers, paths = tunable(model), [name.removesuffix(".delta") for name in own if name.endswith(".delta")]
        found = bases.find(part, paths, keep=True)
        for path in paths:
            yield layers[path].weight, rebuilt(layers[path], found.get(path), own.pop(f"{path}.delta"), scale)
        for name, difference in own.items():
            parameter = model.get_parameter(name)
            yield parameter, parameter + scale * difference.to(parameter)


@torch.no_grad()
def write_into(pipe, change: Change, scale: float = 1.0, bases: Bases | None = None) -> None:
    """Merge a change into the pipeline's weights (Eq. 2 at `scale`): an ordinary model then, exactly as fast as the
    base. bases: the pipeline's own, which are kept in memory for the next change."""
    for parameter, value in new_weights(pipe, change, scale, bases or Bases(pipe)):
        parameter.copy_(value)


@contextmanager
def applied(pipe, change: Change, scale: float = 1.0, bases: Bases | None = None) -> Iterator[None]:
    """Within this context the pipeline is the changed model; afterwards it is the base again, bit for bit."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, value in new_weights(pipe, change, scale, bases or Bases(pipe)):
                before.append((parameter, parameter.detach().to("cpu", copy=True)))
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in reversed(before):
                parameter.copy_(value)
