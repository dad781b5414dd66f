"""The page's tables: scores with intervals as text, methods down, reference rows apart; published ones as printed."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.claims import LEAST
from common.metrics import PIE_SCORES
from common.tables import published_table, subject_of
from eval.report.measures import GROUPS, Measure, best_method, find, keys, mean_interval, measure
from eval.tracks.track import Run, Track

SHOWN = 5  # columns beside the method and its number of items; the others are behind the column chooser


def cell(rows: list[dict], column: Measure, method: str, best: bool = False) -> dict[str, Any]:
    """A mean with its interval, as text; value: the number to sort by, or None."""
    found = mean_interval(rows, column.key, method)
    spread = column.span(found.low, found.high) if found.n > 1 and math.isfinite(found.mean) else ""
    value = None if math.isnan(found.mean) else found.mean
    return {"text": column.text(found.mean), "spread": spread, "n": found.n, "best": best, "value": value}


def own_methods(track: Track, run: Run) -> dict[str, str]:
    """The track's methods that this run has rows of."""
    own = {row["method"] for row in run.rows}
    return {method: name for method, name in track.methods.items() if method in own}


def contestants(track: Track, run: Run) -> dict[str, str]:
    """Those among them that are not there for reference only."""
    return {method: name for method, name in own_methods(track, run).items() if method not in track.references}


def papers_own(track: Track, run: Run) -> str | None:
    """The method of the track's paper; None where it has no rows."""
    return track.own if track.own in contestants(track, run) else None


def columns_of(track: Track, rows: list[dict]) -> list[Measure]:
    """The track's own columns first, then every other score that the rows have, by group."""
    first = [key for key in (find(rows, name) for name in track.columns) if key]
    others = [measure(key) for key in keys(rows) if key not in first]
    order = list(GROUPS)
    return [measure(key) for key in first] + sorted(others, key=lambda column: order.index(column.group))


def board(track: Track, run: Run) -> dict[str, Any]:
    """The table of one run: contestants, then reference rows; every score, of which the first few are shown."""
    columns = columns_of(track, run.rows)
    rivals = list(contestants(track, run))
    counts = Counter(row["method"] for row in run.rows)
    equal = len({counts[name] for name in rivals}) == 1  # else the rows are of other items, and nothing is best
    best = {column.key: best_method(run.rows, column.key, rivals, LEAST) if equal else None for column in columns}
    families = list(dict.fromkeys(track.families.get(name, "") for name in own_methods(track, run)))
    lines = [
        {
            "name": name,
            "n": counted(run.rows, method),
            "family": families.index(track.families.get(method, "")),
            "reference": method in track.references,
            "cells": [cell(run.rows, column, method, best[column.key] == method) for column in columns],
        }
        for method, name in own_methods(track, run).items()
    ]
    groups = {GROUPS[group]: [(i, c) for i, c in enumerate(columns) if c.group == group] for group in GROUPS}
    return {
        "columns": columns,
        "choices": {title: members for title, members in groups.items() if members},
        "families": families if len(families) > 1 else [],
        "parts": [("", [line for line in lines if not line["reference"]]),
                  ("For reference, not competing", [line for line in lines if line["reference"]])],
        "shown": SHOWN,
        "equal": equal,
    }  # fmt: skip


def counted(rows: list[dict], method: str) -> str:
    """How many pictures, or trainings, stand behind a row: "48 of 8 subjects"."""
    pairs = {(row["item"], row["seed"]) for row in rows if row["method"] == method}
    subjects = {subject_of(item) for item, _ in pairs}
    return str(len(pairs)) if len(subjects) == len(pairs) else f"{len(pairs)} of {len(subjects)}"


def breakdown(track: Track, run: Run) -> dict[str, Any] | None:
    """Per edit type the means of the baseline, of the methods asked for and of the paper's own (without any, of the
    last), or None where rows have no edit type."""
    kinds, rivals = sorted({row["edit_type"] for row in run.rows if "edit_type" in row}), list(contestants(track, run))
    if not kinds or not track.breakdown or len(rivals) < 2:
        return None
    from common.data import EDIT_TYPES

    columns = [measure(key) for key in (find(run.rows, name) for name in track.breakdown) if key]
    named = [method for method in (*track.asked, papers_own(track, run)) if method in rivals] or rivals[-1:]
    methods = list(dict.fromkeys([rivals[0], *named]))
    lines = []
    for kind in kinds:
        rows = [row for row in run.rows if row.get("edit_type") == kind]
        cells = [cell(rows, column, method) for column in columns for method in methods]
        lines.append({"kind": EDIT_TYPES[kind], "items": len({row["item"] for row in rows}), "cells": cells})
    return {"columns": columns, "lines": lines, "methods": [track.methods[name] for name in methods]}


def published_view(track: Track) -> dict[str, Any] | None:
    """The paper's own table, as printed; rows of methods that ran here are marked."""
    if not track.published:
        return None
    paper, _, number = track.published.partition(":")
    table = published_table(paper, number)
    own = {name.partition("/")[0]: name for name in track.columns}  # what the track calls a score of the paper
    columns = [measure(f"{name}/pie_official" if name in PIE_SCORES else own.get(name, name))
               for name in table["columns"]]  # fmt: skip
    by_column = zip(*(row["values"] for row in table["rows"]), strict=True)
    printed = zip(*map(as_printed, by_column), strict=True)
    lines = [{"label": " + ".join(row["label"]), "values": values, "ours": row.get("method") in track.methods}
             for row, values in zip(table["rows"], printed, strict=True)]  # fmt: skip
    return {"table": table, "columns": columns, "lines": lines}


def as_printed(values: Sequence[float]) -> list[str]:
    """Published values of one column, all with the decimals of the longest (28.6 was printed as 28.60)."""
    decimals = max(len(repr(value).partition(".")[2]) for value in values)
    return [f"{value:.{decimals}f}" for value in values]
