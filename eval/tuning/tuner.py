"""What the tunings on the validation split share: grids of settings, their names, and the choice by the least score."""

from itertools import product
from typing import Any

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
