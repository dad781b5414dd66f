"""What a training changed, read back and written into a pipeline's weights: spectral shifts, full weights or LoRA."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from common.runs import InputError, read_object
from svdiff import combine, files
from svdiff.basis import Bases, tunable
from svdiff.lora_file import is_lora, read_lora
from svdiff.spectral import rebuilt

LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Change:
    """kind "shifts": per part of the pipeline {layer: delta}; "weights": {layer's or parameter's name: W' - W}.

    Changes of one kind can be added and interpolated (svdiff.combine).
    """

    kind: str
    parts: dict[str, dict[str, Tensor]]

    def of(self, part: str) -> dict[str, Tensor]:
        return self.parts.get(part, {})


def combined(rule: Callable[..., dict[str, Tensor]], *changes: Change) -> Change:
    """rule(…), e.g. combine.add, part by part. Raises InputError for changes of different kinds."""
    if len(kinds := {change.kind for change in changes}) > 1:
        raise InputError("spectral shifts and full weights cannot be combined with each other: give one kind")
    parts = dict.fromkeys(part for change in changes for part in change.parts)
    return Change(kinds.pop(), {part: rule(*(change.of(part) for change in changes)) for part in parts})


def add(changes: Sequence[Change], weights: Sequence[float] | None = None) -> Change:
    """Eq. 4, weighted."""
    return combined(lambda *tensors: combine.add(tensors, weights), *changes)


def interpolate(one: Change, two: Change, alpha: float) -> Change:
    """Eq. 5."""
    return combined(partial(combine.interpolate, alpha=alpha), one, two)


def style_mix(pipe, appearance: Change, geometry: Change, first: tuple, last: tuple) -> Change:
    """Geometry's UNet changes between two blocks in P+ notation, everything else from appearance."""
    paths = combine.span(pipe.unet, first, last)
    return combined(lambda one, two: combine.style_mix(one, two, combine.inside({**one, **two}, paths)), appearance,
                    geometry)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- reading


def load(pipe, path: str | Path, bases: Bases | None = None) -> Change:
    """What a training's folder or file holds, checked against the (plain, float32) pipeline; files are told apart by
    the names of their tensors. bases: the pipeline's, to be asked once for several trainings. Raises InputError."""
    path, bases = Path(path).expanduser(), bases or Bases(pipe)
    lora = path / LORA_FILE if path.is_dir() else path
    if (path / "unet" / "config.json").is_file():
        parts = full_weights(pipe, path)
        check_base(path, parts, bases)
    elif lora.is_file() and is_lora(lora):
        parts = read_lora(pipe, lora)
        check_base(lora.parent, parts, bases)
    else:
        return Change("shifts", read_shifts(pipe, path, bases))
    return Change("weights", parts)


def read_shifts(pipe, path: Path, bases: Bases) -> dict[str, dict[str, Tensor]]:
    """{part: {layer: delta}} of all files that belong to a folder or file of shifts."""
    parts = {}
    for part, file in files.find_files(path).items():
        if (model := getattr(pipe, part, None)) is None:
            raise InputError(f"{file} belongs to a {part}, which this model does not have")
        parts[part] = files.fit(model, *files.read_shifts(file), bases.base(part), file)
    return parts


def full_weights(pipe, folder: Path) -> dict[str, dict[str, Tensor]]:
    """{part: {parameter: W' - W}} of the models that a full fine-tuning saved in a folder."""
    from common.model_files import MODELS, check_weights, load_model, one_line

    parts = {}
    for part in (part for part in files.PARTS if (folder / part / "config.json").is_file()):
        try:
            tuned = dict(load_model(MODELS[part], folder / part, torch.float32).named_parameters())
        except InputError:
            raise
        except Exception as problem:  # whatever the libraries make of a file that is missing or cut short
            raise InputError(f"{folder / part} cannot be read as a model: {one_line(problem)}") from None
        check_weights(folder / part, tuned)
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
    """(parameter, its new value) of everything that a change touches."""
    for part, deltas in change.parts.items():
        model = getattr(pipe, part)
        if change.kind == "weights":
            for name, delta in deltas.items():
                parameter = model.get_parameter(name)
                yield parameter, parameter + scale * delta.to(parameter)
        else:
            layers, found = tunable(model), bases.find(part, deltas, keep=True)
            for path, delta in deltas.items():
                yield layers[path].weight, rebuilt(layers[path], found.get(path), delta, scale)


@torch.no_grad()
def write_into(pipe, change: Change, scale: float = 1.0, bases: Bases | None = None) -> None:
    """Merge a change into the pipeline's weights (Eq. 2 at `scale`): an ordinary model then, exactly as fast as the
    base. bases: the pipeline's own, which are kept in memory for the next change."""
    for parameter, value in new_weights(pipe, change, scale, bases or Bases(pipe)):
        parameter.copy_(value)


@contextmanager
def applied(pipe, change: Change | None, scale: float = 1.0, bases: Bases | None = None) -> Iterator[None]:
    """Within this context the pipeline is the changed model; afterwards it is the base again, bit for bit."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for parameter, value in new_weights(pipe, change, scale, bases or Bases(pipe)) if change else ():
                before.append((parameter, parameter.detach().to("cpu", copy=True)))
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
