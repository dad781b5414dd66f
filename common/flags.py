"""What a script asks of its flags before it imports anything heavy: numbers, folders, picturebooks."""

import argparse
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import InputError, check_writable, read_object

PICTUREBOOK = "picturebook"
PICTUREBOOK_FOLDER = Path(__file__).parent / "picturebook" / "models"
MARKER = "picturebook.json"  # the file by which a folder is known as a picturebook

PICTURES = ("image_path", "mask_path", "exemplar_path", "reference_path")  # flags that name one or several
MAPS = ("edit_map_path", "source_mask", "target_mask", "reference_image_path")  # checked by the scripts that have them
FOLDERS = ("instance_data_dir", "class_data_dir", "scenes")
TREES = ("train_data_dir", "subjects_dir", "subjects")  # of which folders inside are read too; the last may be names
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
MOST = {int: 10**9, float: 10**6}  # of flags without a bound of their own


def number(kind: type, low: float, high: float | None = None) -> Callable[[str], Any]:
    """An argparse type: a number of `kind` from low to high (MOST by default); NaN and infinity are refused."""
    high = MOST[kind] if high is None else high

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or abs(value) == float("inf"):  # NaN compares false
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}"
                                             f" from {low} to {high}")  # fmt: skip
        return value

    return parse


def check_arguments(args: argparse.Namespace) -> None:
    """What holds for a flag in every script that has it: the output folder can be written, the device is there,
    pictures are files, a model or encoders that are named as a folder are one. Raises InputError."""
    if not getattr(args, "print_config", False):
        if isinstance(folder := getattr(args, "output_dir", None), str):
            if not folder.strip():
                raise InputError("--output_dir is empty (a variable that is not set?); name a folder")
            check_writable(Path(folder))
            check_apart(args, Path(os.path.realpath(folder)))
        if isinstance(device := getattr(args, "device", None), str):
            check_device(device)
    for name in PICTURES:
        paths = getattr(args, name, None) or []
        for path in [paths] if isinstance(paths, str) else paths:
            if not Path(path).is_file():
                raise InputError(f"--{name} {path} is no file; give a picture")
    for name, value in vars(args).items():
        if name.endswith("model_name_or_path") and isinstance(value, str):
            if value[:1] in ("", ".", "/", "~", "-") and not Path(value).exists():
                raise InputError(f"No folder {value} for --{name}; give a folder in diffusers layout, or a hub id")
        if any(part in name for part in ("prompt", "words", "token")):
            for text in value if isinstance(value, list) else [value]:
                check_prompt(text, f"--{name}")
    encoders = getattr(args, "metric_encoders", None)
    if isinstance(encoders, str) and "/" in encoders and not Path(encoders).is_dir():
        raise InputError(f"--metric_encoders {encoders} is no folder; give one, or a name that --help lists")


def check_apart(args: argparse.Namespace, output: Path) -> None:
    """Raises InputError where what is read lies in --output_dir, whose pictures are replaced, and where a script that
    trains nothing would put its config.json in the place of a training's."""
    for name in (*PICTURES, *MAPS, *FOLDERS, *TREES):
        paths = getattr(args, name, None) or []
        for path in [paths] if isinstance(paths, str) else [] if name in TREES else paths:
            place = Path(os.path.realpath(path))  # resolve() stops at links in a circle
            read = place.parent if name in (*PICTURES, *MAPS) else place
            there = place.exists() or name in FOLDERS  # class pictures may be still to be drawn
            if there and (read == output or name in TREES and read in output.parents):
                raise InputError(f"--output_dir {args.output_dir} is where --{name} {path} lies, and this run writes "
                                 "pictures of its own there; take another --output_dir")  # fmt: skip
    if "resume_from_checkpoint" not in args and (output / "config.json").is_file():
        try:
            trained = "training" in read_object(output / "config.json")
        except InputError:  # damaged: whoever goes on with it says so
            return
        if trained:
            raise InputError(f"--output_dir {args.output_dir} holds a training, whose config.json this run would "
                             "replace; take another --output_dir")  # fmt: skip


# What an evaluation says itself to the trainings that it runs.
OF_EVALUATIONS = {"pretrained_model_name_or_path", "instance_data_dir", "instance_prompt", "class_prompt", "seed",
                  "output_dir", "resume_from_checkpoint", "device", "print_config", "stage", "tuning"}  # fmt: skip


def check_handed_on(flag: str, words: Sequence[str]) -> None:
    """Raises InputError for a flag, handed on by `flag` to every training, that would replace the evaluation's own."""
    for word in words:
        name = word.split("=")[0].strip("-").removeprefix("no-")
        if word.startswith("--") and name in OF_EVALUATIONS:
            raise InputError(f"{flag}: --{name} is said to each training by the evaluation itself; leave it out")


def check_prompt(text: Any, what: str) -> Any:
    """`text` itself. InputError for bytes that are no character and halves of one, which no tokenizer takes."""
    if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
        raise InputError(f"{what} holds {text!a}, which is not all text: save it, or type it, as UTF-8")
    return text


def check_device(name: Any) -> None:
    """Raises InputError for a device that torch does not find here; nothing is imported for None and cpu."""
    if name is None or str(name) == "cpu":
        return
    import torch

    try:
        torch.empty(1, device=name).item()  # of the device "meta" there are no values
    except (RuntimeError, AssertionError):  # torch was built without it, or there is no such thing
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise InputError(f"There is no device {str(name)!r} here ({gpus} GPUs); leave it out, or take cpu") from None


def chosen_device(name: Any = None) -> Any:
    """The device asked for, or a GPU if there is one. Raises InputError for one that is not here."""
    import torch

    check_device(name)
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def local_folder(name: str) -> Path:
    """Where the model of this name lies, if it is here: the picturebook's own folder, or the folder named."""
    return PICTUREBOOK_FOLDER if name == PICTUREBOOK else Path(os.path.expanduser(name))


def is_picturebook_folder(name: str) -> bool:
    """Whether the model is a picturebook, known by its marker file, before anything is loaded."""
    return (local_folder(name) / MARKER).is_file()


def weights_of(name: str, *beside: str) -> str | None:
    """Twelve digits of a hash of a local model, whose weights may be replaced under its name, so that rows of others
    are not mixed in; of a picturebook its UNet's, which all else was made for. None of a hub id. beside: files or
    folders of what is put on it."""
    folder, pattern = local_folder(name), "[!.]*/[!.]*"
    if is_picturebook_folder(name):
        pattern = "unet/diffusion_pytorch_model.safetensors"
    found = [*folder.glob(pattern)] if (folder / "model_index.json").is_file() else []
    found += [path for place in map(Path, beside) for path in ([place] if place.is_file() else place.glob("[!.]*"))]
    files = sorted(path for path in filter(Path.is_file, found) if path.suffix in WEIGHTS)
    digests = [_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    if len(digests) > 1:
        digests = [hashlib.sha256("".join(digests).encode()).hexdigest()]
    return digests[0][:12] if digests else None


@functools.cache
def _digest(path: Path, size: int, changed: int) -> str:
    """The same while a file is: four gigabytes take some seconds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_flags(given: Mapping[str, Any]) -> list[str]:
    """The command line that says `given`; what is None is left out."""
    words: list[str] = []
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        elif value is not None:  # what begins with a dash would be taken for a flag
            words += [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
    return words


def say_unheeded(parser: Any, args: argparse.Namespace, table: Mapping[str, tuple[str, Any]]) -> None:
    """A line for each flag that was given and that this call does not heed. table: flag -> another, and its values with
    which the flag counts, True for any but none. parser: of common.runs.make_parser."""
    for flag, (other, values) in table.items():
        if flag in parser.given and other in args:
            value = getattr(args, other)
            if not (value if values is True else value in values):
                why = f"without --{other}" if values is True else f"with --{other} {value}"
                print(f"--{flag} does nothing {why}: it is left out", file=sys.stderr)


def say_preset(preset: dict[str, Any]) -> None:
    """One line where settings tuned on the picturebook take the place of the paper's defaults."""
    if preset:
        print(f"picturebook preset: {len(preset)} settings of its own; --print_config shows them", file=sys.stderr)


def show_config(args: argparse.Namespace, **resolved: Any) -> bool:
    """Whether --print_config asks for no more than what every flag resolves to, which is printed then."""
    if args.print_config:
        print(json.dumps({**vars(args), **resolved}, indent=2))
    return args.print_config
