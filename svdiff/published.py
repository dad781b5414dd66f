"""The paper's tables, as printed (published.toml), beside what was measured."""

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.runs import bootstrap_interval
from common.tables import text_table

PUBLISHED = Path(__file__).parent / "published.toml"


def published_table(name: str) -> dict[str, Any]:
    """One table: title, place, label_columns, columns, doubts, rows."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]


def size_table(costs: dict[str, dict[str, int]]) -> str:
    """Table 1 with our counts beside it. costs: per subset what subsets.cost finds on the UNet of the paper."""
    table = published_table("1")
    lines = [["Subset", "tensors", "numbers", "KB published", "KB as torch.save", "KB as our file"]]
    for row in table["rows"]:
        found = costs[row["subset"]]
        sizes = (f"{found[name] / 1024:.1f}" for name in ("torch_bytes", "file_bytes"))
        lines.append([row["subset"], str(found["tensors"]), f"{found['values']:,}", f"{row['values'][0]:g}", *sizes])
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    return f"{table['title']}\n({table['place']})\n\n{text_table(lines)}\n\nOn the published numbers:\n{doubts}"


def summarise(rows: Iterable[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {score: {"mean", "low", "high", "n"}}}, with 95 % bootstrap intervals; NaN drops out."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores = groups.setdefault(row["method"], {})
        for name, value in row["metrics"].items():
            scores.setdefault(name, []).append(math.nan if value is None else float(value))
    return {
        method: {
            name: dict(zip(("mean", "low", "high"), bootstrap_interval(values), strict=True))
            | {"n": sum(not math.isnan(value) for value in values)}
            for name, values in scores.items()
        }
        for method, scores in groups.items()
    }


def cell(value: dict[str, float] | None) -> str:
    """mean [low, high]; "-" where nothing was measured."""
    if not value or not value["n"]:
        return "-"
    return "{mean:.4g} [{low:.4g}, {high:.4g}]".format(**value)


def score_table(summary: dict[str, dict[str, dict]]) -> str:
    """Scores down, methods across."""
    names = list(dict.fromkeys(name for scores in summary.values() for name in scores))
    lines = [[name, *(cell(scores.get(name)) for scores in summary.values())] for name in names]
    counts = ["pictures", *(str(max((s["n"] for s in scores.values()), default=0)) for scores in summary.values())]
    return text_table([["mean [95 % interval]", *summary], counts, *lines])
