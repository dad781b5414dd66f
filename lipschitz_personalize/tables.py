"""Result rows beside the published tables."""

import math
from typing import Any

from common.metrics import aggregate, parse_key
from common.runs import bootstrap_interval
from common.tables import text_table
from lipschitz_personalize.published import published_table

COSTS = ("train_seconds", "class_seconds", "peak_memory_mb")


def summarise(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """method -> score -> {"mean", "low", "high", "n"}: over subjects and seeds, with 95 % bootstrap interval."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    found: dict[str, dict] = {}
    for method, group in groups.items():
        flat = [{"metrics": row["metrics"] | {cost: row[cost] for cost in COSTS if cost in row}} for row in group]
        for key, score in aggregate(flat).items():
            interval = bootstrap_interval(row["metrics"].get(key, math.nan) for row in flat)
            found.setdefault(method, {})[key] = dict(zip(("mean", "low", "high"), interval, strict=True), n=score.n)
    return found


def cell(value: dict[str, float] | None) -> str:
    """mean [low, high]; "-" where nothing was measured."""
    if not value or not value["n"]:
        return "-"
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"


def scores_table(summary: dict[str, dict]) -> str:
    """Scores down, methods across."""
    keys = list(dict.fromkeys(key for values in summary.values() for key in values))
    counts = ["subjects x seeds", *(str(max(v["n"] for v in values.values())) for values in summary.values())]
    lines = [[key, *(cell(values.get(key)) for values in summary.values())] for key in keys]
    return text_table([["mean [95 % interval]", *summary], counts, *lines])


def beside_published(name: str, summary: dict[str, dict], backbone: str, called: str) -> str:
    """A whole published table, and under each row of this backbone what was measured here; `called` says of what."""
    table = published_table(name)
    lines = [[*table["label_columns"], "", *table["columns"]]]
    for row in table["rows"]:
        lines.append([*row["label"], "published", *(f"{value:g}" for value in row["values"])])
        if row.get("backbone") == backbone and (values := summary.get(row["method"])):
            lines.append([*row["label"], called, *(cell(find(values, column)) for column in table["columns"])])
    notes = [f"- {doubt}" for doubt in table["doubts"]]
    foreign = [row["label"][0] for row in table["rows"] if row.get("foreign")]
    if foreign:
        notes.append(f"- {', '.join(foreign)}: python -m eval.personalize runs them beside these.")
    return f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nNotes:\n" + "\n".join(notes)


def find(values: dict[str, Any], name: str) -> dict[str, float] | None:
    """The measured score of this name, whichever encoder it names."""
    return next((value for key, value in values.items() if parse_key(key)["name"] == name), None)
