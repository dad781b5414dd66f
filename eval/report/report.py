"""Tracks to one self-contained page: numbers become text here, report.html.j2 only lays them out."""

import base64
import difflib
import functools
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from common.images import load_image
from common.metrics import PIE_SCORES
from common.runs import atomic_path
from common.tables import published_table as published_table_of
from eval.claims import FAILS, HOLDS, UNDECIDED, Finding, findings
from eval.report import plots
from eval.report.measures import GROUPS, Measure, best_method, difference, find, keys, mean_interval, measure, values
from eval.tracks.track import Item, Run, Track

HERE = Path(__file__).parent
LEAST = 8  # a best value is marked from so many pairs on
LARGEST = 256  # pixels; larger pictures are reduced for the page
CLASSES = {HOLDS: "holds", FAILS: "fails", UNDECIDED: "unsure"}


def write_page(path: Path, tracks: Sequence[Track]) -> Path:
    """Write the page atomically and return its path. No file beside it is needed to read it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    views = [track_view(track) for track in tracks]
    used = {column.key: column for view in views for column in view["every_column"]}
    html = environment.get_template("report.html.j2").render(
        tracks=views, definitions=definitions(used.values()), groups=GROUPS, style=(HERE / "report.css").read_text()
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def track_view(track: Track) -> dict[str, Any]:
    """Everything the template shows of one track, as text, numbers and SVG."""
    all_rows = [row for run in track.runs for row in run.rows]
    columns = [measure(key) for key in (find(all_rows, name) for name in track.columns) if key]
    largest = max(track.runs, key=lambda run: len(run.rows))
    judged = [findings(track.name, run.rows) for run in track.runs]
    return {
        "track": track,
        "columns": columns,
        "groups": Counter(column.group for column in columns),
        "every_column": [measure(key) for key in keys(all_rows)],
        "runs": [run_view(track, run, columns) for run in track.runs],
        "all_scores": [all_scores(track, run) for run in track.runs],
        "claims": [claim_view(found) for found in zip(*judged, strict=True)],
        "verdicts": Counter(found.verdict for found in judged[track.runs.index(largest)]),
        "largest": run_head(largest),
        "duels": duels(track, largest),
        "forest": forest(track, largest, columns),
        "times": times(track, largest),
        "scatters": scatters(track, largest, columns),
        "figures": [{"figure": figure, "uri": data_uri(figure.path, largest=None)} for figure in track.figures],
        "items": [item_view(item, track.methods) for item in track.items],
        "judged": any(picture.success is not None for item in track.items for picture in item.pictures),
        "breakdown": breakdown(track, largest),
        "published": published_view(track),
        "settings": settings_view(track.runs[0].config),
    }


# ------------------------------------------------------------------------------------------------------------ tables


def run_head(run: Run) -> dict[str, Any]:
    """What labels a run: its name, number of items, day and code revision."""
    provenance = run.config.get("provenance", {})
    revision = (provenance.get("git_revision") or "unknown")[:10]
    return {
        "label": run.label,
        "items": len({(row["item"], row["seed"]) for row in run.rows}),
        "date": run.config.get("date", "unknown day"),
        "revision": revision + (" with changes" if provenance.get("dirty") else ""),
    }


def cell(rows: list[dict], column: Measure, method: str, best: bool = False) -> dict[str, Any]:
    found = mean_interval(rows, column.key, method)
    spread = column.span(found.low, found.high) if found.n > 1 and math.isfinite(found.mean) else ""
    return {"text": column.text(found.mean), "spread": spread, "n": found.n, "best": best}


def run_view(track: Track, run: Run, columns: list[Measure]) -> dict[str, Any]:
    best = {column.key: best_method(run.rows, column.key, list(track.methods), LEAST) for column in columns}
    lines = [
        {"name": name, "cells": [cell(run.rows, column, method, best[column.key] == method) for column in columns]}
        for method, name in own_methods(track, run).items()
    ]
    return run_head(run) | {"lines": lines}


def own_methods(track: Track, run: Run) -> dict[str, str]:
    """The track's methods that this run has rows of."""
    own = {row["method"] for row in run.rows}
    return {method: name for method, name in track.methods.items() if method in own}


def all_scores(track: Track, run: Run) -> dict[str, Any]:
    """Scores down, methods across, of both protocols and all costs."""
    columns = [measure(key) for key in keys(run.rows)]
    methods = own_methods(track, run)
    lines = [{"column": c, "cells": [cell(run.rows, c, method) for method in methods]} for c in columns]
    return run_head(run) | {"lines": lines, "methods": list(methods.values())}


def breakdown(track: Track, run: Run) -> dict[str, Any] | None:
    """Means of the baseline and of the paper's own per edit type, or None where rows have none."""
    kinds = sorted({row["edit_type"] for row in run.rows if "edit_type" in row})
    if not kinds or not track.breakdown:
        return None
    from common.data import EDIT_TYPES

    columns = [measure(key) for key in (find(run.rows, name) for name in track.breakdown) if key]
    baseline, *_, own = track.methods
    lines = []
    for kind in kinds:
        rows = [row for row in run.rows if row.get("edit_type") == kind]
        cells = [cell(rows, column, method) for column in columns for method in (baseline, own)]
        lines.append({"kind": EDIT_TYPES[kind], "items": len({row["item"] for row in rows}), "cells": cells})
    return {"columns": columns, "lines": lines, "methods": [track.methods[baseline], track.methods[own]]}


def published_view(track: Track) -> dict[str, Any] | None:
    """The paper's own table, as printed; rows of methods that ran here are marked."""
    if not track.published:
        return None
    table = published_table(track.published)
    own = {name.partition("/")[0]: name for name in track.columns}  # what the track calls a score of the paper
    columns = [
        measure(f"{name}/pie_official" if name in PIE_SCORES else own.get(name, name)) for name in table["columns"]
    ]
    by_column = zip(*(row["values"] for row in table["rows"]), strict=True)
    printed = zip(*map(as_printed, by_column), strict=True)
    lines = [
        {"label": " + ".join(row["label"]), "values": values, "ours": row.get("method") in track.methods}
        for row, values in zip(table["rows"], printed, strict=True)
    ]
    return {"table": table, "columns": columns, "lines": lines}


@functools.cache
def published_table(name: str) -> dict[str, Any]:
    paper, _, number = name.partition(":")
    return published_table_of(paper, number)


def as_printed(values: Sequence[float]) -> list[str]:
    """Published values of one column, all with the decimals of the longest (28.6 was printed as 28.60)."""
    decimals = max(len(repr(value).partition(".")[2]) for value in values)
    return [f"{value:.{decimals}f}" for value in values]


def settings_view(config: dict) -> dict[str, str]:
    """Flags and what they resolved to, then versions."""
    flat = {**config, **config.get("provenance", {})}
    left_out = {"provenance", "methods", "print_config", "output_dir", "table", "device", "git_revision"}
    shown = {key: value for key, value in flat.items() if key not in left_out and value not in (None, [], {})}
    revision = {"git_revision": flat["git_revision"]} if flat.get("git_revision") else {}
    methods = {f"method {name}": value for name, value in config.get("methods", {}).items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in
            (revision | shown | methods).items()}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ claims


def claim_view(found: Sequence[Finding]) -> dict[str, Any]:
    """One claim, with what each run says about it."""
    claim, column = found[0].claim, found[0].measure
    allowed = f"no more than {claim.get('margin', 0):g} {column.gap_unit}".strip() + " worse"
    rule = "better" if claim["rule"] == "better" else allowed
    if "matched" in claim:
        rule += f" at equal {measure(claim['matched']).label}"
    measured = [
        {
            "text": column.text(one.difference.mean, signed=True),
            "spread": column.span(one.difference.low, one.difference.high, signed=True),
            "n": one.difference.n,
            "subjects": one.difference.subjects,
            "verdict": one.verdict,
            "class": CLASSES[one.verdict],
        }
        for one in found
    ]
    return {"claim": claim, "column": column, "rule": rule, "published": published_pair(claim), "measured": measured}


def published_pair(claim: dict) -> list[str] | None:
    """The paper's (baseline, method) values of the claimed score, in the paper's units."""
    if "published" not in claim:
        return None
    table = published_table(claim["published"])
    column = table["columns"].index(claim["score"].partition("/")[0])
    rows = {row.get("method"): row["values"][column] for row in reversed(table["rows"])}  # of several the first: SD 1.5
    return as_printed([rows[claim["baseline"]], rows[claim["method"]]])


def duels(track: Track, run: Run) -> dict[str, Any] | None:
    """The paper's own methods minus each competitor, scores across; None where the claims already say it all."""
    found = track.judge(run.rows, list(track.methods)) if track.judge else []
    lines: dict[tuple[str, str], list[dict]] = {}
    for one in found:
        column = measure(one["score"])
        spread = column.span(one["low"], one["high"], signed=True)
        shown = {"text": column.text(one["mean"], signed=True), "spread": spread, "n": one["n"],
                 "verdict": one["verdict"], "class": CLASSES[one["verdict"]]}  # fmt: skip
        lines.setdefault((one["method"], one["baseline"]), []).append(shown)
    if len(lines) < 2:
        return None
    margins = {one["score"]: one["margin"] for one in found}
    heads = []
    for key, margin in margins.items():
        column = measure(key)
        allowed = "" if margin is None else f"no more than {margin * column.factor:g} {column.gap_unit} worse"
        heads.append({"column": column, "rule": allowed or "better"})
    named = [(track.methods[own], track.methods[other], cells) for (own, other), cells in lines.items()]
    return {"heads": heads, "lines": named, "verdicts": Counter(one["verdict"] for one in found)}


# ------------------------------------------------------------------------------------------------------------- plots


def forest(track: Track, run: Run, columns: list[Measure]) -> list[dict[str, Any]]:
    """Paired differences, the last method minus the first, one line per score."""
    baseline, *_, method = track.methods
    lines = []
    for column in columns:
        gap = difference(run.rows, column.key, method, baseline)
        if not column.sign or gap.n < 2 or not math.isfinite(gap.low + gap.high):
            continue
        spread = column.span(gap.low, gap.high, signed=True)
        text = column.text(gap.mean, signed=True)
        title = f"{column.label}: {text} {column.gap_unit}, 95 % interval {spread}, {gap.n} pairs"
        strip = plots.interval_strip(gap, column.sign, title)
        lines.append({"column": column, "strip": strip, "text": text, "spread": spread, "n": gap.n})
    return lines


def times(track: Track, run: Run) -> list[dict[str, Any]]:
    """Per method: seconds of inversion and of the rest."""
    found = []
    for method, name in track.methods.items():
        whole = mean_interval(run.rows, "seconds", method).mean
        inversion = mean_interval(run.rows, "inversion_seconds", method).mean
        if math.isfinite(whole):
            inversion = inversion if math.isfinite(inversion) else 0.0
            found.append((name, inversion, max(whole - inversion, 0.0)))
    longest = max((sum(parts) for _, *parts in found), default=0.0)
    seconds = measure("seconds").text
    return [
        {"name": name, "inversion": seconds(a), "rest": seconds(b), "whole": seconds(a + b),
         "bar": plots.stacked_bar((a, b), longest, f"{name}: {seconds(a)} s inversion, {seconds(b)} s the rest")}
        for name, a, b in found
    ]  # fmt: skip


def scatters(track: Track, run: Run, columns: list[Measure], most: int = 3) -> list[dict[str, Any]]:
    """Item by item, first against last method, for scores in dB."""
    baseline, *_, method = track.methods
    drawn = []
    for column in [column for column in columns if column.unit == "dB"][:most]:
        a, b = values(run.rows, column.key, baseline), values(run.rows, column.key, method)
        points = [(a[i], b[i], i[0]) for i in a if i in b and math.isfinite(a[i]) and math.isfinite(b[i])]
        above = sum(y > x for x, y, _ in points)
        title = f"{column.label} per item: {track.methods[method]} is higher in {above} of {len(points)}"
        if points:
            drawn.append({"column": column, "svg": plots.scatter(points, title), "above": above, "n": len(points)})
    return drawn


# ---------------------------------------------------------------------------------------------------------- pictures


def item_view(item: Item, methods: dict[str, str]) -> dict[str, Any]:
    """Prompts as (word, changed) pairs, and pictures as data URIs, grouped by method ("" first)."""
    words = item.source_prompt.split(), item.target_prompt.split()
    marked: tuple[list, list] = ([], [])
    for tag, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        marked[0].extend((word, tag != "equal") for word in words[0][a:b])
        marked[1].extend((word, tag != "equal") for word in words[1][c:d])
    groups = [
        {"name": methods.get(method, ""),
         "pictures": [{"shown": p, "uri": data_uri(p.path)} for p in item.pictures if p.method == method]}
        for method in ("", *methods) if any(p.method == method for p in item.pictures)
    ]  # fmt: skip
    return {"item": item, "source": marked[0], "target": marked[1], "groups": groups}


def data_uri(path: Path, largest: int | None = LARGEST) -> str | None:
    """The picture as it will stand in the page, its sides at most `largest`; None if its file is gone."""
    if not path.is_file():
        return None
    image = load_image(path)
    if largest and max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def definitions(columns) -> dict[str, list[Measure]]:
    """By group, each score's definition once, whatever its protocol."""
    groups: dict[str, list[Measure]] = {group: [] for group in GROUPS}
    for column in columns:
        if column.definition and column.label not in {one.label for one in groups[column.group]}:
            groups[column.group].append(column)
    return {group: known for group, known in groups.items() if known}
