"""What a track hands to the report: plain data, whatever paper it comes from; and what tracks share to gather it."""

import argparse
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.flags import as_flags
from common.runs import COSTS, read_json, read_object
from eval import freshness
from eval.report.measures import find

# A committed run is shown beside a live one only if these agree, as far as a track has them.
SAME = (
    "pretrained_model_name_or_path",
    "weights",
    "dataset",
    "split",
    "metric_encoders",
    "resolution",
    "mixed_precision",
    "num_inference_steps",
    "guidance_scale",
)


Parse = Callable[[list[str]], argparse.Namespace]  # from the words of an experiment's command to the flags, resolved


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

    methods: name in result rows -> name on the page; the first is the baseline. own: the paper's own method, "" where
    there is none. asked: those that --methods names, if it names any.
    columns: scores of the main table, without encoders (eval.report.measures.find). runs: the live one, then earlier.
    published: "<paper>:<table>" of that paper's published.toml. commands: method -> the command that makes its rows.
    notices: what a reader has to see first, such as that photographs went through the drawn world.
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
    references: tuple[str, ...] = ()
    families: dict[str, str] = field(default_factory=dict)
    fronts: list[tuple[str, str]] = field(default_factory=list)
    curves: dict[str, list[str]] = field(default_factory=dict)
    own: str = ""
    asked: tuple[str, ...] = ()


def given(args: argparse.Namespace, *names: str, **others: Any) -> list[str]:
    """These flags as words of a command line, and others with values of their own, where they have a value."""
    return as_flags({name: getattr(args, name) for name in names} | others)


def runs_of(name: str, output: Path, rows: list[dict], parse: Parse) -> list[Run]:
    """These rows of the folder with its dated configuration; then the committed run, if there is one of the same."""
    live = Run("this run", rows, read_json(output / "config.json") | {"date": date_of(output / "rows.jsonl")})
    committed = committed_run(name, output, live.config, parse)
    return [beside(live, committed), committed] if committed else [live]


def committed_run(name: str, output: Path, config: dict, parse: Parse) -> Run | None:
    """What eval.experiments keeps of this track, if it is fresh and was made with the model, pictures, encoders and
    settings of `config`; else None, after a line that says what differs."""
    rows = freshness.fresh_rows(name)
    if not rows:
        return None
    one = freshness.find(name)
    then = vars(parse([*shlex.split(one.commands[0])[1:], "--output_dir", str(output)]))
    both = [flag for flag in SAME if flag in config and flag in then]
    if changed := next((flag for flag in both if config[flag] != then[flag]), None):
        print(f"  committed rows ({one.n} items) are not shown beside: another --{changed} ({then[changed]})")
        return None
    return Run("committed run", rows, read_object(one.about))


def beside(live: Run, other: Run) -> Run:
    """The live run; where it has a method that the other lacks, with the other's rows of the same items, so that they
    can be compared. These have no costs: those are of another machine."""
    ran = {row["method"] for row in live.rows}
    if ran <= {row["method"] for row in other.rows}:
        return live
    pairs = {(row["item"], row["seed"]) for row in live.rows}
    more = [{key: value for key, value in row.items() if key not in COSTS} for row in other.rows
            if row["method"] not in ran and (row["item"], row["seed"]) in pairs]  # fmt: skip
    return replace(live, label="this run and committed rows of its items", rows=[*live.rows, *more]) if more else live


def judged(rows: list[dict], item: str, score: str) -> dict[str, bool | None]:
    """By method, whether its picture of an item passed a score that is 0 or 1; None where it has none."""
    key = find(rows, score)
    values = {row["method"]: row["metrics"].get(key) for row in rows if row["item"] == item}
    return {method: None if value is None or value != value else value > 0.5 for method, value in values.items()}


def pictures_of(
    given: dict[str, Path], place: Path, passed: dict[str, bool | None], methods: Iterable[str]
) -> list[Picture]:
    """An item's pictures for the grid: what was given, by label, where it is there; then what each method made of it in
    a run's folder. passed: method -> whether its picture did (see judged)."""
    return [*(Picture(label, path) for label, path in given.items() if path.is_file()),
            *(Picture("edit", place / f"{name}.png", name, passed.get(name)) for name in methods)]  # fmt: skip


def date_of(path: Path) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime))
