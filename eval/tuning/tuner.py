"""One tuner for all tracks: as many settings for every method, each on the same validation items, the best mean taken;
and where that lies at the edge of its grid, what lies beyond it is tried too."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from common.flags import number
from common.runs import InputError, WriteError, append_row, make_parser, run_rows, write_text

Setting = dict[str, Any]


def grid(**values: tuple) -> list[Setting]:
    """Every combination: grid(a=(1, 2), b=(3,)) is [{"a": 1, "b": 3}, {"a": 2, "b": 3}]."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


def label(method: str, setting: Setting) -> str:
    """The name of a method with a setting in result rows."""
    return f"{method} " + " ".join(f"{name}={value}" for name, value in setting.items())


def make_tuning_parser(doc: str, grids: Iterable[str], output_dir: str) -> argparse.ArgumentParser:
    """The flags that all tunings share."""
    parser = make_parser(doc.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=grids, default=list(grids), help="methods to tune")
    add("--follow", type=number(int, 0, 100), default=2, help="how often a winner at the edge of its grid is followed "
        "beyond it")  # fmt: skip
    add("--output_dir", default=output_dir, help="folder for rows")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    return parser


def tune(
    grids: Mapping[str, list[Setting]], rows_of: Callable[[str, Setting], list[dict]], score: Callable[[dict], float],
    follow: int = 2,
) -> dict[str, tuple[Setting, float]]:  # fmt: skip
    """Per method the setting of the highest mean score, the first of equals, and that mean; every one is printed.

    rows_of(method, setting): a row per item. score: of a row, more is better; NaN is left out. follow: how often a
    winner at an edge is followed. InputError where no setting stands out.
    """
    found = {}
    for method, left in grids.items():
        tried: list[tuple[Setting, float]] = []
        for _ in range(follow + 1):
            for setting in left:
                scores = [score(row) for row in rows_of(method, setting)]
                tried.append((setting, fmean([value for value in scores if not math.isnan(value)] or [-math.inf])))
                print(f"{label(method, setting)}: {tried[-1][1]:.4f}", flush=True)
            found[method] = max(tried, key=lambda one: one[1])
            left = beyond([setting for setting, _ in tried], found[method][0])
        if len({mean for _, mean in tried}) == 1 < len(tried):
            raise InputError(f"all settings of {method} score the same: widen its grid")
    return found


def beyond(settings: list[Setting], best: Setting) -> list[Setting]:
    """The best setting with one number moved past the edge of the grid at which it lies, by the ratio of the last two;
    none where it lies inside."""
    found = []
    for name, value in best.items():
        numbers = sorted({one[name] for one in settings if isinstance(one[name], int | float)})
        if value in numbers[:1] + numbers[-1:] and len(numbers) > 1:
            near = numbers[1] if value == numbers[0] else numbers[-2]
            further = type(value)(float(f"{value * value / near:.3g}")) if near else value
            if further != value:
                found.append(best | {name: further})
    return found


def least(key: str) -> Callable[[dict], float]:
    """A score of rows for `tune`: the less of this one, the better."""
    return lambda row: -row["metrics"].get(key, math.inf)


@contextlib.contextmanager
def left_out(said: str) -> Iterator[None]:
    """What ends in one sentence in the block, as a diverged training does, or a value that a flag refuses, is told
    after `said`, and what comes after the block goes on; but not where the disk or the memory is full."""
    try:
        yield
    except (InputError, SystemExit) as stop:
        why = stop.__cause__ if isinstance(stop, SystemExit) else stop  # of a script that was run, None for its flags
        if getattr(stop, "code", 2) != 2 or isinstance(why, WriteError) or not isinstance(why, InputError | None):
            raise  # also Ctrl-C
        print(f"{said}: {stop}", file=sys.stderr)


def measured(file: Path, name: str, items: Mapping[str, Any], run: Callable[[Any], dict]) -> list[dict]:
    """The rows of a setting called `name`, one per item (id -> what `run` takes); missing ones are made and kept.

    What ends in one sentence, as a diverged training or a value that a flag refuses, has a row without metrics.
    """
    rows = {row["item"]: row for row in run_rows(file.parent) if row["method"] == name}
    for key in [key for key in items if key not in rows]:
        row = {"paper": "eval", "method": name, "item": key, "seed": 0, "metrics": {}, "seconds": math.nan,
               "peak_memory_mb": math.nan}  # fmt: skip
        with left_out(f"{name} has no score of {key}"):
            row = run(items[key]) | {"method": name}
        append_row(file, row)
        rows[key] = row
    return [rows[key] for key in items]


def write_settings(path: Path, head: list[str], found: dict[str, Setting], notes: dict[str, str] | None = None) -> None:
    """A TOML file of settings by method, under comments; notes: what stands behind a method's name."""
    lines = [f"# {line}" for line in head]
    for method, setting in found.items():
        note = f"  # {notes[method]}" if notes else ""
        told = [f"{name} = {json.dumps(value)}" for name, value in setting.items()]
        lines += ["", f"[{json.dumps(method)}]{note}", *told]
    write_text(path, "\n".join(lines) + "\n")


def write_tuned(path: Path, head: list[str], found: dict[str, tuple[Setting, float]], digits: int = 3) -> None:
    """What `tune` found as a file of settings, with the scores behind the names."""
    notes = {method: f"{abs(value):.{digits}f}" for method, (_, value) in found.items()}
    write_settings(path, head, {method: setting for method, (setting, _) in found.items()}, notes)
    print(f"written to {path}")
