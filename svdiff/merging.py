"""What a training changed, read back and written into a pipeline's weights: spectral shifts, full weights or LoRA."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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


def load(pipe, path: str | Path, bases: Bases | None = None) -> Change:
    """What a training's folder or file holds, checked against the (plain, float32) pipeline; files are told apart by
    the names of their tensors. bases: the pipeline's, to be asked once for several trainings. Raises InputError."""
    path, bases = Path(path).expanduser(), bases or Bases(pipe)
    if path.is_dir() and (path / "unet" / "config.json").is_file():
        return full_weights(pipe, path, bases)
    lora = path / LORA_FILE if path.is_dir() else path
    if lora.is_file() and is_lora(lora):
        parts = read_lora(pipe, lora)
        check_base(lora.parent, parts, bases)
        return Change("weights", parts)
    parts = {}
    for part, file in files.find_files(path).items():
        model = getattr(pipe, part, None)
        if model is None:
            raise InputError(f"{file} belongs to a {part}, which this model does not have")
        parts[part] = files.fit(model, *files.read_shifts(file), bases.base(part), file)
    return Change("shifts", parts)


def full_weights(pipe, folder: Path, bases: Bases) -> Change:
    """W' - W of every parameter of the models that a full fine-tuning saved in a folder."""
    from common.model_files import MODELS, check_weights, load_model, one_line

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
        check_weights(folder / part, tuned)
        base = dict(getattr(pipe, part).named_parameters())
        if {n: p.shape for n, p in tuned.items()} != {n: p.shape for n, p in base.items()}:
            raise InputError(f"{folder / part} was made for another architecture than this model's {part}")
        parts[part] = {name: (tuned[name] - base[name].cpu()).detach() for name in base}
    check_base(folder, parts, bases)
    return Change("weights", parts)


def check_base(folder: Path, parts: Iterable[str], bases: Bases) -> None:
    """Raises InputError if the config.json of a training, where there is one, names another base model."""
    file = folder / "config.json"
    theirs = (read_object(file).get("base") or {}) if file.is_file() else {}
    if not isinstance(theirs, dict):
        raise InputError(f"{file} does not name the base model as svdiff.train does: write it anew, or take it away")
    if any(part in theirs and theirs[part] != bases.base(part) for part in parts):
        raise InputError(f"{folder} was trained on another base model: give that to --pretrained_model_name_or_path")


# ---------------------------------------------------------------------------------------------------------- writing


def new_weights(pipe, part: str, change: Change, scale: float, bases: Bases) -> Iterator[tuple]:
    """(parameter, its new value) of everything that a change touches in a part."""
    model, deltas = getattr(pipe, part), change.of(part)
    if change.kind == "weights":
        parameters = dict(model.named_parameters())
        for name, delta in deltas.items():
            yield parameters[name], parameters[name] + scale * delta.to(parameters[name])
        return
    layers, found = tunable(model), bases.find(part, deltas, keep=True)
    for path, delta in deltas.items():
        yield layers[path].weight, rebuilt(layers[path], found.get(path), delta, scale)


@torch.no_grad()
def write_into(
    pipe, change: Change, scale: float = 1.0, bases: Bases | None = None,
    before: list[tuple[Tensor, Tensor]] | None = None,
) -> None:  # fmt: skip
    """Merge a change into the pipeline's weights (Eq. 2 at `scale`): an ordinary model then, exactly as fast as the
    base. bases: the pipeline's own, which are kept in memory for the next change. before: gets (parameter, old value on
    the CPU) of all that is touched."""
    bases = bases or Bases(pipe)
    for part in change.parts:
        for parameter, value in new_weights(pipe, part, change, scale, bases):
            if before is not None:
                before.append((parameter, parameter.detach().to("cpu", copy=True)))
            parameter.copy_(value)


@contextmanager
def applied(pipe, change: Change | None, scale: float = 1.0, bases: Bases | None = None) -> Iterator[None]:
    """Within this context the pipeline is the changed model; afterwards it is the base again, bit for bit."""
    before: list[tuple[Tensor, Tensor]] = []
    try:
        if change:
            write_into(pipe, change, scale, bases, before)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in before:
                parameter.copy_(value)
