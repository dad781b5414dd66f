"""Files that stand whole or not at all: atomic writing, caches of several processes, JSON, result rows.

Nothing heavy is imported here, so a script can refuse a bad file before it pays for torch.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
CACHE_VARIABLE = "STEERING_CACHE"
ROW_KEYS = {"paper", "method", "item", "seed", "metrics", "seconds", "peak_memory_mb"}


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what is wrong, and what would be right."""


class WriteError(InputError):
    """A file cannot be written; `path` is the file."""

    def __init__(self, path: Path, reason: str):
        moved = f" ({CACHE_VARIABLE} moves all caches)" if path.is_relative_to(cache_folder()) else ""
        super().__init__(f"cannot write {path}: {reason}{moved}")
        self.path = path


def one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:300]


@contextlib.contextmanager
def refused_as(failure: str) -> Iterator[None]:
    """Whatever a library raises in the block becomes one sentence, an InputError: "<failure>: <what it says>"."""
    try:
        yield
    except InputError:
        raise
    except Exception as problem:  # a dozen kinds, for a file that is not what its name says
        raise InputError(f"{failure}: {one_line(problem)}") from problem


REASONS = {
    errno.ENOSPC: "the disk is full; make room, or name another folder",
    errno.EDQUOT: "your quota is used up; make room, or name another folder",
    errno.EROFS: "the file system is read-only; name another folder",
    errno.EACCES: "no permission; name another folder",
    errno.EPERM: "no permission; name another folder",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EIO: "the disk reports an error",
    errno.ENOTDIR: "a part of its path is a file; name another folder",
    errno.EEXIST: "a file is there already; name another folder",
}


def write_problem(problem: BaseException) -> str | None:
    """Why a file cannot be written, in words, if that is what an exception of Python, safetensors or torch says."""
    number = getattr(problem, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(problem))):  # of safetensors
        number = int(found[1])
    if number in REASONS:
        return REASONS[number]
    if "PytorchStreamWriter" in str(problem) or "inline_container" in str(problem):
        return "it could not be written to its end, the disk is full or gone"
    return None


# ---------------------------------------------------------------------------------------------------- whole or absent


def locked(path: Path) -> FileLock:
    """A context in which no other process changes this file or folder."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _here() -> str:
    """Eight digits for this machine and, in a container, its processes: only there does a process number mean one."""
    space = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


_swept: set[Path] = set()  # the folders in which this process has looked for leftovers


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (same suffix) for a file or folder; it takes the place of `path` on success.

    Parent folders are made. Nothing is left behind when the block fails; what a killed process left is removed by the
    next that writes into the folder. A folder is exchanged in one step where the system can (Linux). InputError if the
    place cannot be written, WriteError if the disk fills up on the way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{_here()}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise WriteError(path.parent, write_problem(problem) or f"{problem.strerror}; name another folder") from None
    if not os.access(path.parent, os.W_OK):
        raise WriteError(path.parent, REASONS[errno.EACCES])
    _sweep(path.parent)
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise InputError(f"{path} is a folder, and a file is to be written there; name another place")
        if not path.is_dir():
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            aside = path.with_name(f".{path.name}.{_here()}-{os.getpid()}.old")
            os.rename(path, aside)
            os.rename(temporary, path)
            shutil.rmtree(aside, ignore_errors=True)
    except Exception as problem:
        about = getattr(problem, "filename", None)  # a file that is read in the block may be what fails
        if (about is None or Path(about).is_relative_to(temporary)) and (reason := write_problem(problem)):
            raise WriteError(path, reason) from None
        raise
    finally:
        _remove(temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Two paths trade places in one step; False where the system cannot (Linux and its usual file systems can)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(-100, os.fsencode(one.absolute()), -100, os.fsencode(other.absolute()), 2) == 0  # RENAME_EXCHANGE


def _sweep(folder: Path) -> None:
    """Remove what dead processes of this machine left in a folder; an old folder that was set aside comes back."""
    if os.name != "posix" or (folder := folder.resolve()) in _swept:
        return
    _swept.add(folder)
    for path in folder.iterdir():
        found = re.fullmatch(rf"\.(.+)\.{_here()}-(\d+)(\.[^.]*)?", path.name, re.DOTALL)
        if not found or _alive(int(found[2])):
            continue
        if found[3] == ".old" and not (folder / found[1]).exists():
            path.rename(folder / found[1])
        else:
            _remove(path)


def _alive(process: int) -> bool:
    with contextlib.suppress(PermissionError, OverflowError):  # somebody else's
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises InputError unless files can be put into `folder`, made on trial if need be; leaves no trace."""
    absent = []
    try:  # several processes of one run may be at this at once, and take the folder away from each other
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output_dir {folder} is a file; give a folder")
        absent = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), tempfile.TemporaryFile(dir=folder) as trial:
            trial.write(bytes(4096))
    except InputError:
        raise
    except (OSError, ValueError) as problem:  # the latter: a name with NUL
        reason = write_problem(problem) or f"{getattr(problem, 'strerror', problem)}; name another folder"
        raise InputError(f"cannot write to --output_dir {folder}: {reason}") from None
    finally:
        for place in absent:
            with contextlib.suppress(OSError, ValueError):  # gone, or in use
                place.rmdir()


def cache_folder(*names: str) -> Path:
    """Where all goes that is written elsewhere than --output_dir: STEERING_CACHE, or outputs/ of the checkout."""
    root = os.environ.get(CACHE_VARIABLE)
    return (Path(os.path.expanduser(root)) if root else ROOT / "outputs").joinpath(*names)


def write_once(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """`path` of a cache; where it is not there, `write(temporary)` makes it and one rename puts it in place. Processes
    that ask at the same time wait for the one that writes; when that is killed, the next one writes."""
    path = Path(path)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.is_file():
                with atomic_path(path) as temporary:
                    write(temporary)
    except OSError as problem:
        if reason := write_problem(problem):
            raise WriteError(path, reason) from None
        raise
    return path


# ----------------------------------------------------------------------------------------------------- text and JSON


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 atomically. What is no text (a file name in another encoding) is written as an escape."""
    data = text.encode("utf-8", "backslashreplace")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without the mark that some editors put in front; InputError if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from None
    except ValueError as problem:  # also a path with NUL
        raise InputError(f"cannot read {path}: it is not UTF-8 text ({problem})") from None


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars become lists and numbers; paths, dtypes and devices become text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_json(path: str | Path, obj: Any, indent: int | None = 2) -> None:
    """Write `obj` atomically. NaN and infinity stay as Python's json writes them: NaN, Infinity."""
    write_text(path, json.dumps(obj, indent=indent, ensure_ascii=False, default=_plain) + "\n")


def parse_json(text: str) -> Any:
    """What a JSON text says. ValueError for none, and for an object with a key twice: one value would be lost."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(f"the key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} stands in it twice")
        return found

    return json.loads(text, object_pairs_hook=once)


RUN_FILES = {"config.json", "metrics.json", "results.json", "cost.json"}  # of a run: each holds one object


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError if it is missing, is not UTF-8 or is not JSON, or if a run's file is no object."""
    text = read_text(path)
    try:
        found = parse_json(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not a JSON file: {problem}") from None
    return _object(path, found) if Path(path).name in RUN_FILES else found


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; InputError otherwise."""
    return _object(path, read_json(path))


def _object(path: str | Path, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds {type(found).__name__}, and an object {{…}} is needed")
    return found


def check_file_name(name: Any, what: str) -> str:
    """`name`, which will name output files; InputError unless it can, on every usual system."""
    if not isinstance(name, str) or not name.strip() or name in (".", ".."):
        raise InputError(f"{what} is {name!r}; a plain file name is needed")
    if bad := re.search(r'[/\\"|\x00-\x1f\ud800-\udfff]', name):  # the last are of names that are no UTF-8
        raise InputError(f"{what} is {name!r}, and names files: it cannot hold {bad[0]!r}")
    if len(name.encode()) > 150:
        raise InputError(f"{what} has {len(name)} letters ({name[:20]!r}…), and names files: 150 bytes at most")
    return name


# ------------------------------------------------------------------------------------------------------ result rows


def append_row(path: str | Path, row: dict[str, Any]) -> None:
    """Append one measured item, with ROW_KEYS (metrics: name -> float), to a JSON-lines file and force it to disk, one
    process at a time. A torn last line, left by a run that was killed while it wrote, is cut off first."""
    if missing := ROW_KEYS - row.keys():
        raise ValueError(f"a result row needs the keys {sorted(missing)}")
    path = Path(path)
    line = json.dumps(row, ensure_ascii=False, default=_plain).encode("utf-8", "backslashreplace") + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path), open(path, "ab+") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            if file.read(1) not in (b"\n", b""):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise WriteError(path, write_problem(problem) or str(problem.strerror)) from None


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file; a torn last line is left out; a missing file has no rows. InputError names
    a line that is no row."""
    path = Path(path)
    if not path.exists():
        return []
    try:
        whole = path.read_bytes().rpartition(b"\n")[0]
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from None
    rows = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        texts = isinstance(row, dict) and isinstance(row.get("method"), str) and isinstance(row.get("item"), str)
        metrics = row.get("metrics", {}) if texts else None
        numbers = isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
        if not numbers or not isinstance(row.get("seed", 0), int):
            raise InputError(f"{path}, line {number} is not a result row: remove the line and run again")
        rows.append(row)
    return rows


def done_items(path: str | Path, method: str) -> set[str]:
    """The items with a row of `method`."""
    return {row["item"] for row in read_rows(path) if row["method"] == method}
