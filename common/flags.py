"""What a script asks of its flags before it imports anything heavy: numbers, folders, picturebooks."""

import argparse
import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.runs import InputError

PICTUREBOOK = Path(__file__).parent / "picturebook" / "models"


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    """An argparse type: a number of `kind` from low to high; NaN and infinity are refused."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf"):  # NaN compares false
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}"
                                             f" from {low} to {high}")  # fmt: skip
        return value

    return parse


class Shard(NamedTuple):
    """The `index`-th, from 1, of `count` parts of a run, each for a process of its own."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, things: Sequence) -> list:
        """This part of them: every count-th."""
        return list(things[self.index - 1 :: self.count])


def shard(text: str) -> Shard:
    """An argparse type: I/N, I from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/4")
    return Shard(int(found[1]), int(found[2]))


def check_writable(folder: Path) -> None:
    """Raises InputError unless files can be put into `folder`, made on trial if need be; leaves no trace."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give a folder")
    absent = [place for place in (folder, *folder.parents) if not place.exists()]
    try:  # several processes of one run may be at this at once, and take the folder away from each other
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise InputError(f"cannot write to --output_dir {folder}: {problem.strerror}; give another folder") from None
    finally:
        for place in absent:
            with contextlib.suppress(OSError):  # gone, or in use
                place.rmdir()


def is_picturebook_folder(name: str) -> bool:
    """Whether the model is a picturebook, known by its marker file, before anything is loaded."""
    return name == "picturebook" or (Path(name).expanduser() / "picturebook.json").is_file()


def weights_of(name: str) -> str | None:
    """Twelve digits of a hash of a picturebook's UNet, which may be replaced under its name, so that rows of other
    weights are not mixed in; None for other models."""
    if not is_picturebook_folder(name):
        return None
    folder = PICTUREBOOK if name == "picturebook" else Path(name).expanduser()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else None
