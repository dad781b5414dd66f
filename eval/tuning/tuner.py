"""What the tunings on the validation split share: grids of settings, their names, the choice by the least score, and
the file of what was chosen."""

import json
from itertools import product
from pathlib import Path
from typing import Any

from common.files import write_text

Setting = dict[str, Any]


def grid(**values: tuple) -> list[Setting]:
    """Every combination: grid(a=(1, 2), b=(3,)) is [{"a": 1, "b": 3}, {"a": 2, "b": 3}]."""
    return [dict(zip(values, row, strict=True)) for row in product(*values.values())]


def label(method: str, setting: Setting) -> str:
    """The name of a method with a setting in result rows."""
    return f"{method} " + " ".join(f"{name}={value}" for name, value in setting.items())


def least(rows: list[dict], grids: dict[str, list[Setting]], score: str) -> dict[str, tuple[Setting, float]]:
    """Per method the setting of the least mean score, the first of equals, and that mean."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["method"], []).append(row["metrics"][score])
    means = {name: sum(found) / len(found) for name, found in values.items()}
    found = {}
    for method, settings in grids.items():
        best = min(settings, key=lambda setting: means[label(method, setting)])
        found[method] = best, means[label(method, best)]
    return found


def write_settings(path: Path, head: list[str], found: dict[str, Setting], notes: dict[str, str] | None = None) -> None:
    """A TOML file of settings by method, under comments; notes: what stands behind a method's name."""
    lines = [f"# {line}" for line in head]
    for method, setting in found.items():
        note = f"  # {notes[method]}" if notes else ""
        told = [f"{name} = {json.dumps(value)}" for name, value in setting.items()]
        lines += ["", f"[{json.dumps(method)}]{note}", *told]
    write_text(path, "\n".join(lines) + "\n")
