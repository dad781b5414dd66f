"""Rows into the READMEs: tables, verdicts and figures between <!-- results: ID --> and <!-- end -->; CSV and LaTeX.

What an ID may be:
    <experiment>             its table: reference rows apart, the contest on the items that all its methods have
    <experiment>.verdicts    the claims that it decides
    <experiment>.figure      its picture
    <experiment>.gpu         the command at the paper's scale, and what to expect
    experiments              every experiment: question, n, minutes, command
    claims, claims:<paper>   the ledger: how many claims hold; a paper's claims one by one
    held:<paper>             its headline claims, at most five rows
"""

import csv
import functools
import importlib
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import claims
from common.claims import PAPERS, Interval, common_items
from common.runs import InputError, read_object, read_rows, write_text
from eval import freshness
from eval.claims import counts, judge, ledger
from eval.freshness import FRESH, ROOT, STALE, Experiment, experiments, state
from eval.report.measures import Measure, best_method, find, mean_interval, measure

MARKER = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
IMPORTED = "imported"  # folder of freshness.RESULTS: rows that were made elsewhere
ASSETS = ROOT / "assets"


@dataclass(frozen=True)
class Line:
    """A method's row of a table. cells: column -> its interval."""

    method: str
    title: str
    reference: bool
    n: int
    cells: dict[str, Interval]


@dataclass(frozen=True)
class Table:
    """columns: those that rows have. best: column -> the one method that beats all others in it. left_out:
    methods that ran on fewer than half of the items, with how many."""

    columns: list[Measure]
    lines: list[Line]
    best: dict[str, str | None]
    left_out: dict[str, int]


def title_of(experiment: Experiment) -> Callable[[str], str]:
    """Row name -> what it is called, by "module:NAME" of the entry: a function, or a dict of titles or methods."""
    if not experiment.titles:
        return str
    module, _, name = experiment.titles.partition(":")
    known = getattr(importlib.import_module(module), name)
    if callable(known):
        return known
    return lambda method: getattr(known.get(method, method), "title", known.get(method, method))


def table_of(experiment: Experiment, rows: list[dict]) -> Table:
    """The rows as a table. The contest is held on the items that all its methods ran on; who ran on fewer than half of
    the most is left out of it."""
    named = list(dict.fromkeys(row["method"] for row in rows))
    order = [m for m in experiment.methods if m in named] or named
    references = [m for m in experiment.references if m in named]
    items = {m: len({(row["item"], row["seed"]) for row in rows if row["method"] == m}) for m in order}
    most = max((items[m] for m in order if m not in references), default=0)
    left_out = {m: items[m] for m in order if m not in references and 2 * items[m] < most}
    contest = [m for m in order if m not in references and m not in left_out]
    shared = common_items(rows, contest)
    keys = [key for key in (find(rows, name) for name in experiment.columns) if key]
    columns = [measure(key) for key in keys]
    called, lines = title_of(experiment), []
    for method in [*references, *contest]:
        own = shared if method in contest else [row for row in rows if row["method"] == method]
        cells = {key: mean_interval(own, key, method) for key in keys}
        count = len({(row["item"], row["seed"]) for row in own if row["method"] == method})
        lines.append(Line(method, called(method), method in references, count, cells))
    best = {key: best_method(shared, key, contest, claims.LEAST) for key in keys}
    return Table(columns, lines, best, left_out)


def heading(column: Measure) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(column.better, "")
    factor = {1e3: "x1e3", 1e4: "x1e4", 1e2: ""}.get(column.factor, "")
    unit = column.unit or factor
    source = f" ({column.encoder})" if column.encoder else ""
    return f"{column.label}{f', {unit}' if unit else ''}{source}{arrow}"


def cell(column: Measure, value: Interval) -> str:
    if not value.n:
        return "–"
    mean = column.text(value.mean)
    if value.low == value.high or value.low != value.low:
        return mean
    return f"{mean} [{column.text(value.low)}, {column.text(value.high)}]"


def grid_of(table: Table, bold: bool = True) -> list[list[str]]:
    """Head and lines as text."""
    head = ["", "n", *map(heading, table.columns)]
    lines = [head]
    for line in table.lines:
        cells = []
        for column in table.columns:
            text = cell(column, line.cells[column.key])
            cells.append(f"**{text}**" if bold and table.best[column.key] == line.method else text)
        lines.append([f"*{line.title}*" if bold and line.reference else line.title, str(line.n), *cells])
    return lines


def markdown(lines: list[list[str]]) -> str:
    head, *rest = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest)])


# ------------------------------------------------------------------------------------------------------------- bodies


def not_run(experiment: Experiment) -> str:
    how, why = state(experiment)
    kept = f" Kept rows are of another state ({why}) and not shown." if how == STALE else ""
    return f"*Not run yet:* `{experiment.command}` *(about {experiment.minutes:g} minutes).*{kept}"


def provenance(about: dict) -> str:
    """One line under a table: where its rows come from."""
    world = about["fingerprint"]
    return (
        f"`python -m eval.experiments --run {about['experiment']}`, {about['date']}, {about['minutes']:g} minutes on "
        f"{about['machine']}; weights {world['weights']}, drawing {world['drawing']}."
    )


def body_of_table(experiment: Experiment) -> str:
    parts = []
    if state(experiment)[0] == FRESH and not experiment.rows:
        printed = experiment.kept.read_text(encoding="utf-8").rstrip()
        parts += [f"```text\n{printed}\n```", provenance(read_object(experiment.about))]
    elif state(experiment)[0] == FRESH:
        table = table_of(experiment, read_rows(experiment.kept))
        parts += [markdown(grid_of(table)), notes(table) + provenance(read_object(experiment.about))]
    else:
        parts.append(not_run(experiment))
    for about in sorted((freshness.RESULTS / IMPORTED).glob(f"{experiment.id}--*.json")):
        seen = read_object(about)
        table = table_of(experiment, read_rows(about.with_suffix(".jsonl")))
        parts += [f"**Run elsewhere: {seen['label']}** ({seen['made_with']}; not to be compared with the rows above)",
                  markdown(grid_of(table))]  # fmt: skip
    return "\n\n".join(parts)


def notes(table: Table) -> str:
    said = "Means with 95 % intervals; bold: better than every other row of the contest by paired intervals. "
    if any(line.reference for line in table.lines):
        said += "Rows in italics are references and do not compete. "
    if table.left_out:
        fewer = ", ".join(f"{method} ({count})" for method, count in table.left_out.items())
        said += f"Left out, having run on fewer than half of the items: {fewer}. "
    return said


def claim_lines(found: list[claims.Finding]) -> str:
    return markdown(claims.table(found))


def body_of_verdicts(experiment: Experiment) -> str:
    rows = freshness.fresh_rows(experiment.id)
    found = [judge(claim, rows) for paper in PAPERS for claim in claims.read_claims(paper)
             if claim["experiment"] == experiment.id]  # fmt: skip
    return claim_lines(found) if found else "No claim of the papers rests on this."


def body_of_figure(experiment: Experiment, place: Path) -> str:
    picture = ASSETS / f"{experiment.id}.png"
    if state(experiment)[0] != FRESH or not picture.is_file():
        return "*The picture comes with the rows.*"
    return f"![{experiment.title}]({os.path.relpath(picture, place)})"


def body_of_experiments() -> str:
    lines = [["id", "question", "n", "minutes", "tier"]]
    lines += [[f"`{one.id}`", one.question, str(one.n), f"{one.minutes:g}", str(one.tier)]
              for one in experiments().values()]  # fmt: skip
    return markdown(lines)


@functools.cache
def _ledger(paper: str) -> tuple[claims.Finding, ...]:
    return tuple(ledger(paper))


def body_of_claims() -> str:
    lines = [["paper", "hold", "do not hold", "inconclusive", "not run"]]
    for paper in PAPERS:
        lines.append([f"[{paper}]({paper})", *map(str, counts(list(_ledger(paper))).values())])
    return markdown(lines)


def body(name: str, place: Path) -> str:
    """What stands between the markers of `name`. place: folder of the README. InputError for an unknown name."""
    kind, _, paper = name.partition(":")
    if paper and paper not in PAPERS:
        raise InputError(f"<!-- results: {name} -->: there is no paper {paper!r}")
    if kind == "claims":
        return claim_lines(list(_ledger(paper))) if paper else body_of_claims()
    if kind == "held":
        return claim_lines([one for one in _ledger(paper) if one.claim.get("headline")])
    if name == "experiments":
        return body_of_experiments()
    if name in experiments():
        return body_of_table(experiments()[name])
    stem, _, part = name.rpartition(".")
    parts = {"verdicts": body_of_verdicts, "figure": lambda one: body_of_figure(one, place),
             "gpu": lambda one: one.gpu}  # fmt: skip
    if stem in experiments() and part in parts:
        return parts[part](experiments()[stem])
    raise InputError(f"<!-- results: {name} -->: there is no such experiment or table")


# ------------------------------------------------------------------------------------------------------------ READMEs


def readmes(root: Path = ROOT) -> list[Path]:
    """The pages that may have markers."""
    patterns = ("*.md", "*/README.md", "*/reproduction/*.md", "docs/*.md")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


def rendered(path: Path) -> str:
    """The page with every marked part made again. InputError for a marker without an end."""
    text = path.read_text(encoding="utf-8")
    if text.count("<!-- results: ") != len(MARKER.findall(text)):
        raise InputError(f"{path}: a <!-- results: … --> stands without its <!-- end -->, each on a line of its own")

    def fill(found: re.Match) -> str:
        return f"{found[1]}\n{body(found[2], path.parent)}\n\n{found[4]}"

    return MARKER.sub(fill, text)


def render(root: Path = ROOT) -> list[Path]:
    """Write every page whose marked parts are not what the rows say; which these were."""
    _ledger.cache_clear()
    changed = []
    for path in readmes(root):
        text = rendered(path)
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            changed.append(path)
    return changed


def differing(root: Path = ROOT) -> list[Path]:
    """The pages that `render` would change."""
    _ledger.cache_clear()
    return [path for path in readmes(root) if rendered(path) != path.read_text(encoding="utf-8")]


# ------------------------------------------------------------------------------------------------------------- export


def as_csv(lines: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def as_latex(lines: list[list[str]]) -> str:
    """A tabular with booktabs' rules."""
    special = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
               "–": "--", "\u202f": r"\,"}  # fmt: skip
    head, *rest = ([re.sub("[%&_#−↑↓–\u202f]", lambda m: special[m[0]], cell) for cell in line] for line in lines)
    rows = [" & ".join(line) + r" \\" for line in (head, *rest)]
    return "\n".join([rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", rows[0], r"\midrule", *rows[1:],
                      r"\bottomrule", r"\end{tabular}", ""])  # fmt: skip


def export(folder: Path) -> list[Path]:
    """<id>.csv and <id>.tex of every fresh experiment, and claims.csv."""
    written = []
    for one in experiments().values():
        if one.rows and state(one)[0] == FRESH:
            lines = grid_of(table_of(one, read_rows(one.kept)), bold=False)
            for suffix, form in ((".csv", as_csv), (".tex", as_latex)):
                written.append(folder / f"{one.id}{suffix}")
                write_text(written[-1], form(lines))
    judged = [one for paper in PAPERS for one in ledger(paper)]
    written.append(folder / "claims.csv")
    write_text(written[-1], as_csv(claims.table(judged)))
    return written
