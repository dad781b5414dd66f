"""Result rows to tables: means with intervals, published beside measured."""

import csv
import io
import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.metrics import aggregate, parse_key
from common.runs import COSTS, atomic_path, bootstrap_interval
from common.tables import text_table

PUBLISHED = Path(__file__).parent / "published.toml"
FACTORS = {"CLIP-I": 100.0}  # printed value over stored value
PROTOCOLS = {"CLIP-I": "same_box"}  # the reading that stands in the paper's table


def published_table(name: str) -> dict[str, Any]:
    """One table of published.toml: title, place, label_columns, columns, doubts, rows."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]


def by_method(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """Rows grouped by method, in order of appearance."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return groups


def intervals(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Per metric and cost {"mean", "low", "high", "n"}: mean over items with 95 % bootstrap interval; NaN drops, and
    so do infinite values (a PSNR of equal pictures)."""
    rows = [{"metrics": {**row["metrics"], **{cost: row[cost] for cost in COSTS if cost in row}}} for row in rows]
    summary = {}
    for key in aggregate(rows):
        values = [row["metrics"].get(key, math.nan) for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        if any(value == math.inf for value in values):
            summary[key] = {"mean": math.inf, "low": math.inf, "high": math.inf, "n": len(values)}
        else:
            mean, low, high = bootstrap_interval(finite)
            summary[key] = {"mean": mean, "low": low, "high": high, "n": len(finite)}
    return summary


def summarise(rows: list[dict]) -> dict[str, Any]:
    """{"overall": {method: intervals}}."""
    return {"overall": {method: intervals(group) for method, group in by_method(rows).items()}}


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """One line per item and method."""
    keys = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", "method", *keys])
    for row in rows:
        writer.writerow([row["item"], row["method"], *(row["metrics"].get(key, "") for key in keys)])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def cell(value: dict[str, float] | None, factor: float = 1.0) -> str:
    """mean [low, high] of one metric, the mean alone where there is no interval; "-" where nothing was measured."""
    if not value or not value["n"]:
        return "-"
    mean, low, high = (f"{value[name] * factor:.4g}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def overall_table(summary: dict[str, dict]) -> str:
    """Metrics down, methods across."""
    keys = list(dict.fromkeys(key for values in summary.values() for key in values))
    lines = [[key, *(cell(values.get(key)) for values in summary.values())] for key in keys]
    counts = ["items", *(str(max(v["n"] for v in values.values())) for values in summary.values())]
    return text_table([["mean [95 % interval]", *summary], counts, *lines])


def of_methods(name: str, summary: dict[str, dict]) -> dict[str, dict]:
    """What beside_published takes of a summary: all of it, for methods that no published row has follow the table."""
    return summary


def beside_published(name: str, measured: dict[str, dict[str, dict]]) -> str:
    """A whole published table, and under each row that was measured here our values of the same scores; methods that
    the paper does not have (the paste control, above all) follow.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and its summary.
    """
    table = published_table(name)
    lines = [[*table["label_columns"], "", *table["columns"]]]
    listed = {row["method"] for row in table["rows"]}

    def line(label: list[str], called: str, values: dict[str, dict]) -> list[str]:
        cells = [cell(find(values, column), FACTORS.get(column, 1.0)) for column in table["columns"]]
        return [*label, called, *cells]

    for row in table["rows"]:
        lines.append([*row["label"], "published", *(f"{value:g}" for value in row["values"])])
        lines += [line(row["label"], called, s[row["method"]]) for called, s in measured.items() if row["method"] in s]
    lines += [line([m], called, v) for called, s in measured.items() for m, v in s.items() if m not in listed]
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    return (
        f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nDoubts about the published numbers:\n{doubts}"
    )


def find(values: dict[str, dict], name: str) -> dict[str, float] | None:
    """The measured score of this name, under the protocol that stands in the paper's table, or under none."""
    for key, value in values.items():
        parsed = parse_key(key)
        if parsed["name"] == name and parsed["protocol"] in (PROTOCOLS.get(name, ""), ""):
            return value
    return None
