"""Result rows to tables: means with intervals, published beside measured."""

import math
import tomllib
from pathlib import Path
from typing import Any

from common.metrics import aggregate, parse_key
from common.runs import COSTS, bootstrap_interval
from common.tables import text_table

PUBLISHED = Path(__file__).parent / "published.toml"
FACTORS = {"DINO": 100.0, "CLIP-I": 100.0}  # printed value over stored value
PROTOCOLS = {"DINO": "region", "CLIP-I": "region"}


def published_table(name: str) -> dict[str, Any]:
    """One table of published.toml: title, place, label_columns, columns, doubts, rows."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]


def summarise(rows: list[dict]) -> dict[str, Any]:
    """{"overall": {method: {score: {"mean", "low", "high", "n"}}}}, 95 % bootstrap intervals over items."""
    overall: dict[str, dict] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [{"metrics": {**row["metrics"], **{cost: row[cost] for cost in COSTS if cost in row}}}
               for row in rows if row["method"] == method]  # fmt: skip
        overall[method] = {}
        for key, score in aggregate(own).items():
            mean, low, high = bootstrap_interval(row["metrics"].get(key, math.nan) for row in own)
            overall[method][key] = {"mean": mean, "low": low, "high": high, "n": score.n}
    return {"overall": overall}


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
    """A whole published table, under each row our values of the same scores, and then the methods that it lacks.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and its summary.
    """
    table = published_table(name)
    lines = [[*table["label_columns"], "", *table["columns"]]]
    listed = {row["method"] for row in table["rows"]}

    def line(label: list[str], called: str, values: dict[str, dict]) -> list[str]:
        return [*label, called, *(cell(find(values, column), FACTORS.get(column, 1.0)) for column in table["columns"])]

    for row in table["rows"]:
        shown = ("-" if math.isnan(value) else f"{value:g}" for value in row["values"])
        lines.append([*row["label"], "published", *shown])
        lines += [line(row["label"], called, s[row["method"]]) for called, s in measured.items() if row["method"] in s]
    lines += [line([m], called, v) for called, s in measured.items() for m, v in s.items() if m not in listed]
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    return (
        f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nDoubts about the published numbers:\n{doubts}"
    )


def scores_of(values: dict[str, dict], name: str) -> dict[str, float] | None:
    """The measured score of a name with or without protocol, "DINO/region", whatever encoder looked."""
    wanted = parse_key(name)
    for key, value in values.items():
        parsed = parse_key(key)
        if (parsed["name"], parsed["protocol"]) == (wanted["name"], wanted["protocol"]):
            return value
    return None


def find(values: dict[str, dict], name: str) -> dict[str, float] | None:
    """The measured score of a column of the paper's tables."""
    return scores_of(values, f"{name}/{PROTOCOLS[name]}" if name in PROTOCOLS else name)
