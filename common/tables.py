"""Result rows to tables: means with intervals, and published tables with what was measured beside them.

Nothing heavy is imported here. A summary is {score: {"mean", "low", "high", "n"}}, of the rows of one method.
"""

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.joining import subject_of
from common.runs import COSTS, bootstrap_interval

Summary = dict[str, dict[str, float]]
ROOT = Path(__file__).parents[1]


def published_table(paper: str, name: str) -> dict[str, Any]:
    """A table of the paper as printed: title, place, label_columns, columns, doubts, rows, and what else it has."""
    file = ROOT / paper / "reproduction" / "published.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))[name]


def by(rows: Iterable[dict], field: str) -> dict[str, list[dict]]:
    """Rows grouped by one of their fields, in order of appearance."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[field], []).append(row)
    return groups


def _columns(rows: Iterable[dict], costs: tuple[str, ...]) -> dict[str, list[float]]:
    """The values of every metric and cost over rows; None is NaN."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in {**row["metrics"], **{cost: row[cost] for cost in costs if cost in row}}.items():
            columns.setdefault(key, []).append(math.nan if value is None else float(value))
    return columns


def by_subject(rows: list[dict], costs: tuple[str, ...] = COSTS) -> list[dict]:
    """A row per method and subject with the means of its scores and costs over prompts, scenes and seeds: a
    hundred pictures of one training say nothing of the next."""
    grouped: dict[tuple, list[dict]] = {}
    for row in rows:
        grouped.setdefault((row["method"], subject_of(row["item"])), []).append(row)
    found = []
    for (_, subject), same in grouped.items():
        kept = {key: [v for v in values if not math.isnan(v)] for key, values in _columns(same, costs).items()}
        means = {key: math.fsum(values) / len(values) for key, values in kept.items() if values}
        own = {cost: means.pop(cost) for cost in costs if cost in means}
        found.append({**same[0], "item": subject, "metrics": means, **own})
    return found


def intervals(rows: list[dict], costs: tuple[str, ...] = COSTS) -> Summary:
    """Per metric and cost the mean over rows with its 95 % bootstrap interval; NaN and None drop out. An infinite
    value, the PSNR of equal pictures, makes the mean infinite and leaves it without an interval."""
    summary = {}
    for key, values in _columns(rows, costs).items():
        mean, low, high = (math.inf,) * 3 if math.inf in values else bootstrap_interval(values)
        summary[key] = {"mean": mean, "low": low, "high": high, "n": sum(not math.isnan(value) for value in values)}
    return summary


def by_method(rows: list[dict], costs: tuple[str, ...] = COSTS) -> dict[str, Summary]:
    """The summary of every method, in order of appearance."""
    return {method: intervals(group, costs) for method, group in by(rows, "method").items()}


def text_table(rows: list[list[str]]) -> str:
    """Aligned columns; the first row is the header."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def cell(value: dict[str, float] | None, factor: float = 1.0) -> str:
    """mean [low, high] of one score, the mean alone where these are one number; "-" where nothing was measured."""
    if not value or not value["n"]:
        return "-"
    mean, low, high = (f"{value[name] * factor:.4g}" for name in ("mean", "low", "high"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def score_table(summaries: dict[str, Summary], counted: str = "items") -> str:
    """Scores down, methods across. counted: what n is of."""
    keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary))
    lines = [[key, *(cell(summary.get(key)) for summary in summaries.values())] for key in keys]
    counts = (max((value["n"] for value in summary.values()), default=0) for summary in summaries.values())
    return text_table([["mean [95 % interval]", *summaries], [counted, *map(str, counts)], *lines])


def find_key(keys: Iterable[str], *names: str) -> str | None:
    """The first of the keys (common.metrics.score_key) that has one of these names, which do without the encoder:
    "clip_whole/pie_official" finds "clip_whole/pie_official (picturebook)"."""
    return next((key for key in keys if key.partition(" (")[0] in names), None)


def find(summary: Summary, name: str, protocol: str = "") -> dict[str, float] | None:
    """The measured score of this name under this protocol or under none, whatever encoder looked."""
    return summary.get(find_key(summary, name, f"{name}/{protocol}"))


def beside_published(
    table: dict[str, Any],
    measured: dict[str, list[Summary | None] | dict[str, Summary]],
    protocols: dict[str, str] | None = None,
    factors: dict[str, float] | None = None,
) -> str:
    """A whole published table, and under each row that was measured here our values of the same scores.

    measured: what a measured line is called (it says which pictures and encoders are behind it) -> a summary, or None,
    for each row of the table; or summaries by method, of which those that the table does not have follow it.
    protocols, factors: by column, the reading that stands in the paper's table, and printed value over stored value.
    """
    protocols, factors = protocols or {}, factors or {}
    methods = [row.get("method") for row in table["rows"]]

    def line(label: list[str], called: str, summary: Summary) -> list[str]:
        found = {name: find(summary, name, protocols.get(name, "")) for name in table["columns"]}
        return [*label, called, *(cell(value, factors.get(name, 1.0)) for name, value in found.items())]

    lines = [[*table["label_columns"], "", *table["columns"]]]
    for number, (row, method) in enumerate(zip(table["rows"], methods, strict=True)):
        printed = ("-" if math.isnan(value) else f"{value:g}" for value in row["values"])
        lines.append([*row["label"], "published", *printed])
        ours = {called: found.get(method) if isinstance(found, dict) else found[number]
                for called, found in measured.items()}  # fmt: skip
        lines += [line(row["label"], called, summary) for called, summary in ours.items() if summary]
    for called, found in measured.items():
        if isinstance(found, dict):
            lines += [line([method], called, summary) for method, summary in found.items() if method not in methods]
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    head = f"{table['title']}\n({table['place']})"
    return f"{head}\n\n{text_table(lines)}\n\nDoubts about the published numbers:\n{doubts}"
