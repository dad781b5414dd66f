"""A run: command line, config.json, checkpoints, measurement, intervals. (Its files: common/files.py.)

Nothing heavy is imported at module level, so a script can refuse a bad flag before it pays for torch.
"""

import argparse
import contextlib
import difflib
import errno
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from common.files import (  # noqa: F401  (a run's files, under one roof with the run)
    CACHE_VARIABLE,
    ROOT,
    ROW_KEYS,
    InputError,
    WriteError,
    append_row,
    atomic_path,
    cache_folder,
    check_file_name,
    done_items,
    read_json,
    read_object,
    read_rows,
    read_text,
    write_json,
    write_once,
    write_problem,
    write_text,
)
from common.flags import check_arguments
from common.joining import joined_config, resolved  # noqa: F401
from common.shards import run_rows  # noqa: F401

try:
    import resource
except ImportError:  # Windows
    resource = None

COSTS = ("inversion_seconds", "seconds", "peak_memory_mb")  # of a row, not of its metrics: they vary from run to run


# ---------------------------------------------------------------------------------------------------------- scripts


_new_folders: list[Path] = []  # --output_dir of the scripts at work, where there was none
BEGUN = ("config.json", "*.json.lock", "*.jsonl.lock")  # all that a run may have written before it is refused


def _leave_nothing(folders: list[Path]) -> None:
    """Remove the new folders of runs that were refused before they had made anything: where there is any other file,
    this run's or somebody else's, the folder stays."""
    for folder in folders:
        files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
        if all(any(path.match(name) for name in BEGUN) for path in files):
            shutil.rmtree(folder, ignore_errors=True)


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args=None, namespace=None):
        words = [str(word).partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        self.given = {self._option_string_actions[word].dest for word in words if word in self._option_string_actions}
        namespace, unknown = self.parse_known_args(args, namespace)
        for name, value in vars(namespace).items():  # the shell leaves the ~ of --flag=~/x alone
            setattr(namespace, name, _home(value))
        if unknown:
            wrong = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            near = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
            self.error(f"unknown argument {wrong}" + (f"; did you mean {near[0]}?" if near else ""))
        check_arguments(namespace)
        folder, shard = (getattr(namespace, name, None) for name in ("output_dir", "shard"))
        if isinstance(folder, str) and not os.path.exists(folder) and (shard is None or shard.count == 1):
            _new_folders.append(Path(folder))
        return namespace

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists every flag)\n")


def _home(value: Any) -> Any:
    if isinstance(value, list):
        return [_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser without abbreviations whose help shows defaults; an unknown flag exits 2 and names the nearest one."""
    return _Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def script(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Decorator of every `main(argv=None)`: bad input, a full disk and too little memory become one line on stderr and
    exit code 2, Ctrl-C 130. A run that is refused before it has made anything leaves no folder behind."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int | None:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by whoever started this
                setattr(sys, name, open(os.devnull, "w"))
            if hasattr(stream := getattr(sys, name), "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # names of files may be no text
        before, code, why = len(_new_folders), None, None
        try:
            code = main(argv)
            sys.stdout.flush()  # now, where a reader that went away is no fault
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:  # such as "| head"
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141
        except SystemExit as stop:  # of the parser, or of a script that this one runs
            code = stop.code
            raise
        except Exception as problem:
            if not (said := _in_words(problem)):
                raise
            print(f"error: {' '.join(said.split())}", file=sys.stderr)
            code, why = 2, problem
        finally:
            if code == 2:
                _leave_nothing(_new_folders[before:])
            del _new_folders[before:]
        if code:
            raise SystemExit(code) from why
        return code

    return wrapper


def _in_words(problem: Exception) -> str | None:
    """The sentence that a user reads instead of a traceback; None for a fault of the program."""
    if isinstance(problem, WriteError):
        kept = latest_checkpoint(problem.path.parent) or latest_checkpoint(problem.path.parent.parent)
        return f"{problem}" + (f"; {kept} is whole, go on with --resume_from_checkpoint latest" if kept else "")
    if isinstance(problem, InputError):
        return str(problem)
    if isinstance(problem, MemoryError) or "out of memory" in str(problem) or "can't allocate memory" in str(problem):
        return "there is not enough memory: lower --resolution or the batch size, or close other programs"
    about = getattr(problem, "filename", None)
    if isinstance(problem, OSError) and about and Path(about).is_relative_to(cache_folder()):
        reason = write_problem(problem) or problem.strerror
        return f"cannot use {str(about)[:200]}: {reason} ({CACHE_VARIABLE} moves all caches)"
    if reason := write_problem(problem):
        name = str(getattr(problem, "filename", None) or "a file")
        read = getattr(problem, "errno", None) in (errno.EACCES, errno.EPERM, errno.EIO)  # or written, who knows
        return f"cannot {'look for' if len(name) > 200 else 'use' if read else 'write'} {name[:200]}: {reason}"
    return None


def progress(things: Iterable, what: str, shown: bool = True) -> Iterator:
    """tqdm over `things` on a terminal; elsewhere a plain line at most once a minute."""
    from tqdm import tqdm

    plain = {} if sys.stderr.isatty() else {
        "mininterval": 60, "bar_format": "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} to go\n",
    }  # fmt: skip
    yield from tqdm(things, what, disable=not shown, **plain)


# ------------------------------------------------------------------------------------------------------- provenance


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
    """Write config.json: every flag but --shard (parts of a run share it), then `extra` (what the flags resolved to),
    then provenance."""
    flags = vars(args) if isinstance(args, argparse.Namespace) else args
    flags = {name: value for name, value in flags.items() if name != "shard"}
    write_json(Path(output_dir) / "config.json", {**flags, **extra, "provenance": provenance()})


def remove_stale(folder: Path, stale: Iterable[Path]) -> None:
    """Remove files that an earlier run left in its output folder; in a folder without a run's config.json they are
    somebody's own."""
    if (folder / "config.json").is_file():
        for path in stale:
            path.unlink(missing_ok=True)


def digest_of(told: Any) -> str:
    """Twelve digits of what JSON makes of a thing, such as a training's identity ("training" in config.json)."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------ checkpoints


def save_checkpoint(output_dir: str | Path, step: int, state: dict[str, Any], total_limit: int | None = None) -> Path:
    """Write `checkpoint-<step>` atomically, and keep the newest `total_limit` of them.

    `state` holds tensors, numbers, text and containers of these (state_dicts of models, optimisers, schedules). Of no
    generator: what is random in a step follows from the step's number (common/training.py).
    """
    import torch

    path = Path(output_dir) / f"checkpoint-{step}"
    with atomic_path(path) as folder:
        folder.mkdir()
        torch.save({"step": step, "state": state}, folder / "state.pt")
    for old in _checkpoints(output_dir)[:-total_limit] if total_limit else []:
        if old != path:
            shutil.rmtree(old)
    return path


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """By step."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint of the highest step in a run's folder, or None."""
    return next(reversed(_checkpoints(output_dir)), None)


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """What --resume_from_checkpoint names: a checkpoint of the run's own folder, or the path of one; None for none, and
    where there is no latest one yet. Raises InputError."""
    if wanted in (None, "latest"):
        return wanted and latest_checkpoint(output_dir)
    for place in (Path(output_dir) / wanted, Path(wanted)):
        if (place / "state.pt").is_file():
            return place
    raise InputError(f"--resume_from_checkpoint {wanted} is no checkpoint; give latest, or such a folder")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved in a checkpoint folder, on the CPU, with its `step`; InputError if it holds no whole one."""
    import torch

    file = Path(path) / "state.pt"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        return {"step": saved["step"], **saved["state"]}
    except Exception as problem:  # torch raises half a dozen kinds for a damaged file
        reason = "there is no such file" if not file.exists() else f"it cannot be read ({type(problem).__name__})"
        raise InputError(f"{file} is not a checkpoint of this project: {reason}") from None


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
    if resource is None:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def bootstrap_quantiles(n: int, level: float = 0.95) -> tuple[float, float]:
    """Which quantiles of resampled means of n independent values are the ends of an interval: further out than those
    of the level, or eight values would be covered 89 times of 100 in place of 95 (Hesterberg 2015, "expanded")."""
    from scipy import stats

    few = max(n, 2)
    tail = float(stats.norm.cdf(-math.sqrt(few / (few - 1)) * stats.t.ppf((1 + level) / 2, few - 1)))
    return tail, 1 - tail


def bootstrap_interval(
    values: Iterable[float], seed: int = 0, n: int = 2000, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean, low, high): mean over the values that are not NaN, with its bootstrap interval."""
    kept = np.asarray(list(values), dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    if len(kept) == 0:
        return math.nan, math.nan, math.nan
    picks = np.random.default_rng(seed).integers(len(kept), size=(n, len(kept)))
    low, high = np.quantile(kept[picks].mean(axis=1), bootstrap_quantiles(len(kept), level))
    return float(kept.mean()), float(low), float(high)
