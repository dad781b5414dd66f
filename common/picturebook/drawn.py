"""Folders drawn once: whole or not there, whoever draws them and however many do so at a time."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

LIST = ".whole.json"  # sizes of a folder's files, the last thing written


def cache_folder() -> Path:
    """Where drawn data lie: under STEERING_CACHE, or outputs/ of the checkout."""
    root = os.environ.get("STEERING_CACHE")
    return (Path(os.path.expanduser(root)) if root else Path(__file__).parents[2] / "outputs") / "picturebook"


def is_whole(folder: Path) -> bool:
    """Whether every file that was written is there, as large as it was."""
    try:
        sizes = json.loads((folder / LIST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`; where it is not there whole, `write(temporary)` fills an empty one that takes its place by one rename.

    Processes that ask at the same time wait for the one that draws; when that is killed, the next one draws.
    """
    if is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not is_whole(folder):
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
                (new := Path(place, "new")).mkdir()
                write(new)
                files = [path for path in new.rglob("*") if path.is_file()]
                sizes = {path.relative_to(new).as_posix(): path.stat().st_size for path in files}
                (new / LIST).write_text(json.dumps(sizes))
                if folder.exists():  # damaged
                    folder.rename(Path(place, "old"))
                new.rename(folder)
    return folder
