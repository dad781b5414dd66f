"""What a track hands to the report: plain data, whatever paper it comes from; and what tracks share to gather it."""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.flags import as_flags
from common.runs import append_row, atomic_path, read_json, read_rows, write_json
from eval.report.measures import find

RESULTS = Path(__file__).parents[1] / "results"  # committed: rows of longer runs, shown beside a live one
# A committed run is shown beside a live one only if these agree.
SAME = (
    "pretrained_model_name_or_path",
    "weights",
    "dataset",
    "split",
    "metric_encoders",
    "resolution",
    "mixed_precision",
)


@dataclass(frozen=True)
class Run:
    """Result rows and where they come from. config: that of the run's folder, with `provenance` and `date`."""

    label: str
    rows: list[dict]
    config: dict


@dataclass(frozen=True)
class Picture:
    """A cell of the picture grid. method: "" for the source and the true edit. success: None where nobody judged."""

    label: str
    path: Path
    method: str = ""
    success: bool | None = None


@dataclass(frozen=True)
class Item:
    id: str
    kind: str  # such as "change object"
    source_prompt: str
    target_prompt: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Track:
    """One kind of task, with every method that ran.

    methods: name in result rows -> name on the page; the first is the baseline. own: the paper's own method, by
    default the last that competes.
    columns: scores of the main table, without encoders (eval.report.measures.find). runs: the live one, then earlier.
    published: "<paper>:<table>" of that paper's published.toml. commands: method -> the command that makes its rows.
    keep: whether --save_results is to keep the live rows; not where they are a quick look at what a command of its own
    measures in full. notices: what a reader has to see first, such as that photographs went through the drawn world.
    references: those among the methods that do not compete, such as the true picture. families: method -> what the page
    can filter by. fronts: pairs of scores (across, up) of the plot; by default pairs of the first columns. curves:
    title -> methods that one knob's turning makes, in its order.
    """

    name: str
    title: str
    about: str
    methods: dict[str, str]
    columns: list[str]
    runs: list[Run]
    items: list[Item]
    commands: dict[str, str]
    papers: dict[str, str] = field(default_factory=dict)  # title -> link
    published: str | None = None
    breakdown: list[str] = field(default_factory=list)  # scores of the table per edit type
    notes: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    keep: bool = True
    references: tuple[str, ...] = ()
    families: dict[str, str] = field(default_factory=dict)
    fronts: list[tuple[str, str]] = field(default_factory=list)
    curves: dict[str, list[str]] = field(default_factory=dict)
    own: str = ""


def given(args: argparse.Namespace, *names: str, **others: Any) -> list[str]:
    """These flags as words of a command line, and others with values of their own, where they have a value."""
    return as_flags({name: getattr(args, name) for name in names} | others)


def runs_of(name: str, output: Path, rows: list[dict]) -> list[Run]:
    """These rows of the folder with its dated configuration; then the committed run, if there is one of the same."""
    config = read_json(output / "config.json") | {"date": date_of(output / "rows.jsonl")}
    return [Run("this run", rows, config), *earlier_results(name, config)]


def judged(rows: list[dict], item: str, score: str) -> dict[str, bool | None]:
    """By method, whether its picture of an item passed a score that is 0 or 1; None where it has none."""
    key = find(rows, score)
    values = {row["method"]: row["metrics"].get(key) for row in rows if row["item"] == item}
    return {method: None if value is None or value != value else value > 0.5 for method, value in values.items()}


def date_of(path: Path) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))


def save_results(name: str, run: Run) -> Path:
    """Keep a run's rows and configuration in eval/results, to be committed."""
    path = RESULTS / f"{name}.jsonl"
    with atomic_path(path) as temporary:
        for row in run.rows:
            append_row(temporary, row)
    write_json(path.with_suffix(".json"), run.config)
    return path


def earlier_results(name: str, config: dict) -> list[Run]:
    """The committed run of this track, if it is of the same model, pictures, encoders and settings as `config`."""
    rows = read_rows(RESULTS / f"{name}.jsonl")
    if not rows:
        return []
    before = read_json(RESULTS / f"{name}.json")
    then, now = before.get("methods", {}), config.get("methods", {})  # what the flags resolved to
    same = all(before.get(key) == config.get(key) for key in SAME)
    same = same and all(then[method] == now[method] for method in then.keys() & now.keys())
    return [Run("earlier run", rows, before)] if same else []
