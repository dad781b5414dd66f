"""Result rows to tables: published beside measured, per edit type and overall."""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.data import EDIT_TYPES
from common.metrics import PIE_SCORES, aggregate, parse_key
from common.runs import COSTS, atomic_path, bootstrap_interval
from common.tables import text_table
from spdinv.published import published_table


def intervals(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Per metric and cost {"mean", "low", "high", "n"}: mean over items with 95 % bootstrap interval; NaN drops.

    An infinite value, the PSNR of equal pictures, makes the mean infinite and leaves it without an interval.
    """
    summary = {}
    rows = [{"metrics": {**row["metrics"], **{cost: row[cost] for cost in COSTS if cost in row}}} for row in rows]
    for key, score in aggregate(rows).items():
        mean = low = high = score.value
        if not math.isinf(mean):
            mean, low, high = bootstrap_interval(row["metrics"].get(key, math.nan) for row in rows)
        summary[key] = {"mean": mean, "low": low, "high": high, "n": score.n}
    return summary


def by(rows: Iterable[dict], field: str) -> dict[str, list[dict]]:
    """Rows grouped by one of their fields, in order of appearance."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return groups


def summarise(rows: list[dict]) -> dict[str, Any]:
    """{"overall": {method: intervals}, "by_edit_type": {edit type: {method: intervals}}}."""
    return {
        "overall": {method: intervals(group) for method, group in by(rows, "method").items()},
        "by_edit_type": {
            kind: {method: intervals(group) for method, group in by(of_kind, "method").items()}
            for kind, of_kind in sorted(by(rows, "edit_type").items())
        },
    }


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """One line per picture; a column per method and metric, headed method|metric as PIE-Bench's scorer does."""
    columns = list(dict.fromkeys((row["method"], key) for row in rows for key in row["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", "edit_type", *(f"{method}|{key}" for method, key in columns)])
    for item, group in by(rows, "item").items():
        metrics = {row["method"]: row["metrics"] for row in group}
        values = [metrics.get(method, {}).get(key, "") for method, key in columns]
        writer.writerow([item, group[0]["edit_type"], *values])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def cell(value: dict[str, float] | None, factor: float = 1.0) -> str:
    """mean [low, high] of one metric, the mean alone where it is infinite; "-" where nothing was measured."""
    if not value or not value["n"]:
        return "-"
    mean, low, high = (f"{value[name] * factor:.4g}" for name in ("mean", "low", "high"))
    return mean if math.isinf(value["mean"]) else f"{mean} [{low}, {high}]"


def overall_table(summary: dict[str, dict]) -> str:
    """Metrics down, methods across."""
    keys = list(dict.fromkeys(key for values in summary.values() for key in values))
    lines = [[key, *(cell(values.get(key)) for values in summary.values())] for key in keys]
    counts = ["items", *(str(max(v["n"] for v in values.values())) for values in summary.values())]
    return text_table([["mean [95 % interval]", *summary], counts, *lines])


def edit_type_table(summary: dict[str, dict[str, dict]], wanted: tuple[str, ...]) -> str:
    """Edit types and methods down, the metrics named in `wanted` across."""
    keys = wanted_keys(list(dict.fromkeys(k for kind in summary.values() for v in kind.values() for k in v)), wanted)
    lines = [
        [f"{kind} {EDIT_TYPES[kind]}", method, *(cell(values.get(key)) for key in keys)]
        for kind, methods in summary.items()
        for method, values in methods.items()
    ]
    return text_table([["edit type", "method", *keys], *lines])


def wanted_keys(keys: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The keys of the wanted scores, whatever encoder they name: "lpips/pie_official (picturebook)"."""
    return [key for name in wanted for key in keys if key == name or key.startswith(name + " (")]


def of_methods(name: str, summary: dict[str, dict]) -> list[dict | None]:
    """For each row of a published table what was measured of the same method in its plain form, if anything."""
    return [None if row.get("settings") else summary.get(row.get("method")) for row in published_table(name)["rows"]]


def beside_published(name: str, measured: dict[str, list[dict | None]]) -> str:
    """A whole published table, and under each row that was measured here our values of the same scores.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and for each row of
    the table its intervals, or None. Scores are those of protocol pie_official, multiplied as the paper does.
    """
    table = published_table(name)
    lines = [[*table["label_columns"], "", *table["columns"]]]
    for number, row in enumerate(table["rows"]):
        lines.append([*row["label"], "published", *(f"{value:g}" for value in row["values"])])
        for called, found in measured.items():
            if values := found[number]:
                ours = [cell(find(values, column), PIE_SCORES.get(column, ("", 1.0))[1]) for column in table["columns"]]
                lines.append([*row["label"], called, *ours])
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    return (
        f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nDoubts about the published numbers:\n{doubts}"
    )


def find(values: dict[str, dict], name: str) -> dict[str, float] | None:
    """The measured score of this name: under protocol pie_official, or under none."""
    for key, value in values.items():
        parsed = parse_key(key)
        if parsed["name"] == name and parsed["protocol"] in ("pie_official", ""):
            return value
    return None
