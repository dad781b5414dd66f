"""What a training changed, read back and written into a pipeline's weights: spectral shifts, full weights or LoRA."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.runs import InputError, read_json
from svdiff import combine, files
from svdiff.basis import base_hash, find_bases, tunable
from svdiff.lora_file import read_lora
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


def combined(kind: str, rule, changes: list[Change], *args) -> Change:
    """rule(…, *args), e.g. combine.add, part by part. Raises InputError for changes of different kinds."""
    if any(change.kind != kind for change in changes):
        raise InputError("spectral shifts and full weights cannot be combined with each other: give one kind")
    names = dict.fromkeys(part for change in changes for part in change.parts)
    return Change(kind, {part: rule([change.of(part) for change in changes], *args) for part in names})


def add(changes: list[Change], weights: list[float] | None = None) -> Change:
    """Eq. 4, weighted."""
    return combined(changes[0].kind, combine.add, changes, weights)


def interpolate(one: Change, two: Change, alpha: float) -> Change:
    """Eq. 5."""
    return combined(one.kind, lambda pair: combine.interpolate(*pair, alpha), [one, two])


def style_mix(pipe, appearance: Change, geometry: Change, first: tuple, last: tuple) -> Change:
    """Geometry's UNet changes between two blocks in P+ notation, everything else from appearance."""
    paths = combine.span(pipe.unet, first, last)

    def mix(pair: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return combine.style_mix(*pair, combine.inside({**pair[0], **pair[1]}, paths))

    return combined(appearance.kind, mix, [appearance, geometry])


# ---------------------------------------------------------------------------------------------------------- reading


def load(pipe, path: str | Path) -> Change:
    """What a training's folder or file holds, checked against the (plain, float32) pipeline. Raises InputError."""
    path = Path(path).expanduser()
    if path.is_dir() and (path / "unet" / "config.json").is_file():
        return full_weights(pipe, path)
    lora = path / LORA_FILE if path.is_dir() else path
    if lora.name == LORA_FILE and lora.is_file():
        return lora_weights(pipe, lora)
    parts = {}
    for part, file in files.find_files(path).items():
        model = getattr(pipe, part, None)
        if model is None:
            raise InputError(f"{file} belongs to a {part}, which this model does not have")
        parts[part] = files.fit(model, *files.read_shifts(file), base_hash(model), file)
    return Change("shifts", parts)


def full_weights(pipe, folder: Path) -> Change:
    """W' - W of every parameter of the models that a full fine-tuning saved in a folder."""
    from common.model_files import MODELS, load_model, one_line

    parts = {}
    for part in files.PARTS:
        if not (folder / part / "config.json").is_file():
            continue
        try:
            tuned = dict(load_model(MODELS[part], folder / part, torch.float32).named_parameters())
        except InputError:
            raise
        except Exception as problem:  # whatever the libraries make of a file that is missing or cut short
            raise InputError(f"{folder / part} cannot be read as a model: {one_line(problem)}") from None
        base = dict(getattr(pipe, part).named_parameters())
        if {n: p.shape for n, p in tuned.items()} != {n: p.shape for n, p in base.items()}:
            raise InputError(f"{folder / part} was made for another architecture than this model's {part}")
        parts[part] = {name: (tuned[name] - base[name].cpu()).detach() for name in base}
    check_base(pipe, folder, parts)
    return Change("weights", parts)


def check_base(pipe, folder: Path, parts: Iterable[str]) -> None:
    """Raises InputError if the config.json of a training, where there is one, names another base model."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    theirs = config.get("base") or {} if isinstance(config, dict) else None
    if not isinstance(theirs, dict):
        raise InputError(f"{file} does not name the base model as svdiff.train does: write it anew, or take it away")
    if any(part in theirs and theirs[part] != base_hash(getattr(pipe, part)) for part in parts):
        raise InputError(f"{folder} was trained on another base model: give that to --pretrained_model_name_or_path")


def lora_weights(pipe, file: Path) -> Change:
    """Raises InputError for a LoRA of layers that the pipeline lacks, or of another base."""
    parts = read_lora(file)
    for part, deltas in parts.items():
        model = getattr(pipe, part, None) if part in files.PARTS else None
        shapes = {name: p.shape for name, p in model.named_parameters()} if model is not None else {}
        if wrong := [name for name, delta in deltas.items() if shapes.get(name) != delta.shape]:
            raise InputError(f"{file} changes {wrong[0]}, which this model does not have in that shape")
    check_base(pipe, file.parent, parts)
    return Change("weights", parts)


# ---------------------------------------------------------------------------------------------------------- writing


def new_weights(
    model, change: Mapping[str, Tensor], kind: str, scale: float, folder: str | Path | None
) -> Iterator[tuple]:
    """(parameter, its new value) of everything that a change touches."""
    if kind == "weights":
        parameters = dict(model.named_parameters())
        for name, delta in change.items():
            yield parameters[name], parameters[name] + scale * delta.to(parameters[name])
        return
    layers, bases = tunable(model), find_bases(model, change, folder)
    for path, delta in change.items():
        yield layers[path].weight, rebuilt(layers[path], bases.get(path), delta, scale)


@torch.no_grad()
def write_into(
    pipe, change: Change, scale: float = 1.0, basis_folder: str | Path | None = None,
    before: list[tuple[Tensor, Tensor]] | None = None,
) -> None:  # fmt: skip
    """Merge a change into the pipeline's weights (Eq. 2 at `scale`): an ordinary model then, exactly as fast as the
    base. before: gets (parameter, old value on the CPU) of all that is touched."""
    for part, of_part in change.parts.items():
        for parameter, value in new_weights(getattr(pipe, part), of_part, change.kind, scale, basis_folder):
            if before is not None:
                before.append((parameter, parameter.detach().to("cpu", copy=True)))
            parameter.copy_(value)


@contextmanager
def applied(pipe, change: Change | None, scale: float = 1.0, basis_folder: str | Path | None = None) -> Iterator[None]:
    """Within this context the pipeline is the changed model; afterwards it is the base again, bit for bit."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        if change:
            write_into(pipe, change, scale, basis_folder, before)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
