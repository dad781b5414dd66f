"""Result rows to tables: published beside measured, per edit type and overall."""

import csv
import io
from pathlib import Path

from common import tables
from common.data import EDIT_TYPES
from common.metrics import PIE_SCORES
from common.runs import bootstrap_interval, write_text
from common.tables import Summary, by, cell, published_table, text_table


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """One line per picture; a column per method and metric, headed method|metric as PIE-Bench's scorer does."""
    columns = list(dict.fromkeys((row["method"], key) for row in rows for key in row["metrics"]))
    lines = [["item", "edit_type", *map("|".join, columns)]]
    for item, group in by(rows, "item").items():
        metrics = {row["method"]: row["metrics"] for row in group}
        values = (metrics.get(method, {}).get(key, "") for method, key in columns)
        lines.append([item, group[0]["edit_type"], *values])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


def edit_type_table(summary: dict[str, dict[str, dict]], wanted: tuple[str, ...]) -> str:
    """Edit types and methods down, the metrics named in `wanted` across."""
    keys = wanted_keys(list(dict.fromkeys(k for kind in summary.values() for v in kind.values() for k in v)), wanted)
    lines = [[f"{kind} {EDIT_TYPES[kind]}", method, *(cell(values.get(key)) for key in keys)]
             for kind, methods in summary.items() for method, values in methods.items()]  # fmt: skip
    return text_table([["edit type", "method", *keys], *lines])


def interval_of(values) -> dict[str, float]:
    """{"mean", "low", "high", "n"} of numbers, one per item."""
    return dict(zip(("mean", "low", "high"), bootstrap_interval(values), strict=True), n=len(values))


def wanted_keys(keys: list[str], wanted: tuple[str, ...]) -> list[str]:
    """The keys of the wanted scores, whatever encoder they name: "lpips/pie_official (picturebook)"."""
    return [key for name in wanted for key in keys if key == name or key.startswith(name + " (")]


def of_methods(name: str, summary: dict[str, Summary]) -> list[Summary | None]:
    """For each row of a published table what was measured of the same method in its plain form, if anything."""
    rows = published_table("spdinv", name)["rows"]
    return [None if row.get("settings") else summary.get(row.get("method")) for row in rows]


def beside_published(name: str, measured: dict[str, list[Summary | None] | dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables): scores of protocol pie_official, multiplied as the
    paper does."""
    table = published_table("spdinv", name)
    measured = {called: of_methods(name, found) if isinstance(found, dict) else found
                for called, found in measured.items()}  # fmt: skip
    factors = {column: factor for column, (_, factor, *_) in PIE_SCORES.items()}
    return tables.beside_published(table, measured, dict.fromkeys(table["columns"], "pie_official"), factors)
