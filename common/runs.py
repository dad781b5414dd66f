"""A run and its folder: command line, config.json, result rows, checkpoints, measurement, intervals.

Nothing heavy is imported at module level, so a script can refuse a bad flag before it pays for torch.
"""

import argparse
import contextlib
import difflib
import functools
import importlib.metadata
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ROW_KEYS = {"paper", "method", "item", "seed", "metrics", "seconds", "peak_memory_mb"}
COSTS = ("inversion_seconds", "seconds", "peak_memory_mb")  # of a row, not of its metrics: they vary from run to run


class InputError(ValueError):
    """Something the user gave is wrong. The message is one sentence: what is wrong, and what would be right."""


# ---------------------------------------------------------------------------------------------------------- scripts


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            near = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
            self.error(f"unknown argument {wrong}" + (f"; did you mean {near[0]}?" if near else ""))
        return namespace

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists every flag)\n")


def make_parser(description: str, **kwargs: Any) -> argparse.ArgumentParser:
    """A parser without abbreviations whose help shows defaults; an unknown flag exits 2 and names the nearest one."""
    kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
    return _Parser(description=description, allow_abbrev=False, **kwargs)


def script(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Decorator of every `main(argv=None)`: an InputError becomes one line on stderr and exit code 2, Ctrl-C 130."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int | None:
        try:
            code = main(argv)
        except InputError as problem:
            print(f"error: {' '.join(str(problem).split())}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        if code:
            raise SystemExit(code)
        return code

    return wrapper


# ------------------------------------------------------------------------------------------------------------ files


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (same suffix) for a file or folder; it takes the place of `path` on success.

    Parent folders are made. Nothing is left behind when the block fails. InputError if the place cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to {path.parent}: {problem.strerror}; name a folder that can be made") from None
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write to {path.parent}: no permission; name another folder")
    try:
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise InputError(f"{path} is a folder, and a file is to be written there; name another place")
            shutil.rmtree(path)  # a folder is only ever replaced whole
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars become lists and numbers; paths, dtypes and devices become text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_json(path: str | Path, obj: Any, indent: int | None = 2) -> None:
    """Write `obj` atomically. NaN and infinity stay as Python's json writes them: NaN, Infinity."""
    text = json.dumps(obj, indent=indent, ensure_ascii=False, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; InputError if it is missing, is not UTF-8 or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"cannot read {path}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path} is not a JSON file: {problem}") from None


def provenance() -> dict[str, Any]:
    """What decides a result besides flags: code revision, versions, platform, threads, GPU."""
    import torch

    def git(*words: str) -> str | None:
        if not (ROOT / ".git").exists() or not shutil.which("git"):
            return None
        answer = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    changes = git("status", "--porcelain")
    packages = ("torch", "diffusers", "transformers", "numpy")
    return {
        "git_revision": git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_config(output_dir: str | Path, args: argparse.Namespace | dict[str, Any], **extra: Any) -> None:
    """Write config.json: every flag, then `extra` (what the flags resolved to), then provenance."""
    flags = vars(args) if isinstance(args, argparse.Namespace) else args
    write_json(Path(output_dir) / "config.json", {**flags, **extra, "provenance": provenance()})


# ------------------------------------------------------------------------------------------------------ result rows


def append_row(path: str | Path, row: dict[str, Any]) -> None:
    """Append one measured item to a JSON-lines file and force it to disk.

    Keys that every row has (ROW_KEYS): paper, method, item, seed, metrics (name -> float), seconds, peak_memory_mb.
    A torn last line, left by a run that was killed while it wrote, is cut off first.
    """
    if missing := ROW_KEYS - row.keys():
        raise ValueError(f"a result row needs the keys {sorted(missing)}")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file; a torn last line is left out; a missing file has no rows."""
    path = Path(path)
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise InputError(f"{path}, line {number} is not a result row: remove the line and run again") from None
    return rows


def done_items(path: str | Path, method: str) -> set[str]:
    """The items that `method` already has a row for."""
    return {row["item"] for row in read_rows(path) if row["method"] == method}


# ------------------------------------------------------------------------------------------------------ checkpoints


def save_checkpoint(output_dir: str | Path, step: int, state: dict[str, Any], total_limit: int | None = None) -> Path:
    """Write `checkpoint-<step>` atomically, and keep the newest `total_limit` of them.

    `state` holds tensors, numbers, text and containers of these (state_dicts of models, optimisers, schedules; the
    get_state() of every torch.Generator in use). The global RNG states of python, numpy and torch are added.
    """
    import torch

    numpy_state = np.random.get_state()
    rng = {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    path = Path(output_dir) / f"checkpoint-{step}"
    with atomic_path(path) as folder:
        folder.mkdir()
        torch.save({"step": step, "state": state, "rng": rng}, folder / "state.pt")
    stale = [old for old in _checkpoints(output_dir)[:-total_limit] if old != path] if total_limit else []
    for old in [*stale, *Path(output_dir).glob(".checkpoint-*")]:  # the hidden ones are of saves that were killed
        shutil.rmtree(old)
    return path


def _checkpoints(output_dir: str | Path) -> list[Path]:
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    return [found[step] for step in sorted(found)]


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None."""
    return next(reversed(_checkpoints(output_dir)), None)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved in a checkpoint folder, with its `step`; restores the global RNG states.

    Tensors come back on the CPU. InputError if the folder holds no whole checkpoint.
    """
    import torch

    file = Path(path) / "state.pt"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        step, state, rng = saved["step"], saved["state"], saved["rng"]
    except Exception as problem:  # torch raises half a dozen kinds for a damaged file
        reason = "there is no such file" if not file.exists() else f"it cannot be read ({type(problem).__name__})"
        raise InputError(f"{file} is not a checkpoint of this project: {reason}") from None
    random.setstate(rng["python"])
    np.random.set_state(rng["numpy"])
    torch.set_rng_state(rng["torch"])
    if torch.cuda.is_available() and len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(rng["cuda"])
    return {"step": step, **state}


# ------------------------------------------------------------------------------------------- measurement, intervals


@dataclass
class Cost:
    """What a measured block took; NaN until it ends."""

    seconds: float = math.nan
    peak_memory_mb: float = math.nan


@contextlib.contextmanager
def measure() -> Iterator[Cost]:
    """`with measure() as cost:` fills in cost.seconds and cost.peak_memory_mb (MiB) when the block ends.

    Memory is the most that the GPU allocator held, once CUDA is in use; otherwise how far the process's resident
    memory rose above its size at entry. Do not nest: an inner block resets the peak that the outer one reads.
    """
    torch = sys.modules.get("torch")
    cuda = torch.cuda if torch and torch.cuda.is_initialized() else None
    if cuda:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # Linux: forget the peak of everything before this block
        Path("/proc/self/clear_refs").write_text("5")
    cost, resident, start = Cost(), _peak_resident_mb(), time.perf_counter()
    try:
        yield cost
    finally:
        if cuda:
            cuda.synchronize()
        cost.seconds = time.perf_counter() - start
        cost.peak_memory_mb = cuda.max_memory_allocated() / 2**20 if cuda else _peak_resident_mb() - resident


def _peak_resident_mb() -> float:
    """VmHWM, which clear_refs resets; getrusage's peak also remembers the program that started this one."""
    with contextlib.suppress(OSError):
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def bootstrap_interval(
    values: Iterable[float], seed: int = 0, n: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean, low, high): mean over the values that are not NaN, with its percentile bootstrap interval."""
    kept = np.asarray(list(values), dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return math.nan, math.nan, math.nan
    picks = np.random.default_rng(seed).integers(len(kept), size=(n, len(kept)))
    low, high = np.quantile(kept[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(kept.mean()), float(low), float(high)


def paired_bootstrap(
    a: Iterable[float], b: Iterable[float], seed: int = 0, n: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean of a - b, low, high) over the pairs in which neither is NaN. ValueError if the lengths differ."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return bootstrap_interval(differences, seed, n, level)
