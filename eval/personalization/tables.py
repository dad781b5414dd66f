"""The paper's published tables with the arena's rows in them, for eval.compare --table lipschitz_personalize:2."""

from typing import Any

from lipschitz_personalize import tables as own
from lipschitz_personalize.published import published_table

Summary = dict[str, dict[str, dict[str, float]]]


def summarise(rows: list[dict]) -> dict[str, Summary]:
    """{"overall": method -> score -> mean, low, high, n}."""
    return {"overall": own.summarise(rows)}


def of_methods(number: str, summary: Summary) -> list[dict[str, Any] | None]:
    """For each row of a published table what was measured of the same method, if anything. Rows of SDXL and SD3 are
    left alone: the arena's are of the SD kind."""
    rows = published_table(number)["rows"]
    return [summary.get(row.get("method")) if row.get("backbone", "sd") == "sd" else None for row in rows]


def beside_published(number: str, measured: dict[str, list[dict | None]]) -> str:
    """A whole published table, and under each row what was measured of it; `measured`: by what the lines are called."""
    table = published_table(number)
    lines = [[*table["label_columns"], "", *table["columns"]]]
    for place, row in enumerate(table["rows"]):
        lines.append([*row["label"], "published", *(f"{value:g}" for value in row["values"])])
        for called, found in measured.items():
            if found[place]:
                cells = [own.cell(own.find(found[place], column)) for column in table["columns"]]
                lines.append([*row["label"], called, *cells])
    doubts = "\n".join(f"- {doubt}" for doubt in table["doubts"])
    head = f"{table['title']}\n({table['place']})"
    return f"{head}\n\n{own.text_table(lines)}\n\nDoubts about the published numbers:\n{doubts}"
