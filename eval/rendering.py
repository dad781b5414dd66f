"""Rows into the READMEs: tables, verdicts and figures between <!-- results: ID --> and <!-- end -->; CSV and LaTeX.

An ID is an <experiment>, for its table; <experiment>.verdicts or .figure; experiments, for a list of all; claims or
held, the ledger or its headlines in few words; or claims:<paper> or held:<paper>, one by one.
"""

import csv
import functools
import os
import re
from collections import Counter
from pathlib import Path

from common import claims
from common.claims import PAPERS, Interval, common_items
from common.runs import InputError, atomic_path, read_object, read_rows, write_text
from eval import freshness
from eval.claims import counts, findings, ledger
from eval.freshness import FRESH, ROOT, STALE, Experiment, experiments, state
from eval.report.measures import Measure, best_method, find, mean_interval, measure

MARKER = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PAGES = ("*.md", "*/README.md", "*/reproduction/*.md", "docs/*.md")  # that may have markers
ASSETS = ROOT / "assets"
LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
         "–": "--", "\u202f": r"\,"}  # fmt: skip
Grid = list[list[str]]  # a table's head and lines


# ------------------------------------------------------------------------------------------------------------- tables


def table_of(experiment: Experiment, rows: list[dict]) -> tuple[Grid, str]:
    """The rows as a table, and the note under it. The contest is held on the items that all its methods ran on; who ran
    on fewer than half of the most is left out of it. In markdown: references in italics, in bold what beats all."""
    named = list(dict.fromkeys(row["method"] for row in rows))
    references = [method for method in experiment.references if method in named]
    rivals, ran = [one for one in experiment.methods or named if one not in references], items_of(rows)
    most = max((ran[method] for method in rivals), default=0)
    contest = [method for method in rivals if 2 * ran[method] >= most]
    shared = common_items(rows, contest)
    columns = [measure(key) for key in (find(rows, name) for name in experiment.columns) if key]
    best = {column.key: best_method(shared, column.key, contest, claims.LEAST) for column in columns}
    lines = [["", "n", *map(heading, columns)]]
    for method in [*references, *contest]:
        own = shared if method in contest else rows
        count = items_of(own)[method]
        cells = [cell(column, mean_interval(own, column.key, method), count) for column in columns]
        marked = (f"**{text}**" if best[column.key] == method else text
                  for column, text in zip(columns, cells, strict=True))  # fmt: skip
        lines.append([method if method in contest else f"*{method}*", str(count), *marked])
    said = "Means with 95 % intervals; bold: better than every other row of the contest by paired intervals. "
    if references:
        said += "Rows in italics are references and do not compete. "
    if fewer := [f"{method} ({ran[method]})" for method in rivals if method not in contest]:
        said += f"Left out, having run on fewer than half of the items: {', '.join(fewer)}. "
    return lines, said


def items_of(rows: list[dict]) -> Counter[str]:
    """How many items (and seeds) each method ran on."""
    return Counter(method for method, *_ in {(row["method"], row["item"], row["seed"]) for row in rows})


def heading(column: Measure) -> str:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(column.better, "")
    unit = column.unit or {1e3: "x1e3", 1e4: "x1e4"}.get(column.factor, "")
    source = f" ({column.encoder})" if column.encoder else ""
    return column.label + (f", {unit}" if unit else "") + source + arrow


def cell(column: Measure, value: Interval, count: int) -> str:
    """Mean and interval; how many pictures it is of, where these are fewer than the row's."""
    if not value.n:
        return "–"
    spread = value.high - value.low  # NaN, where the mean is infinite
    shown = column.text(value.mean) + (f" [{column.text(value.low)}, {column.text(value.high)}]" if spread > 0 else "")
    return shown if value.n == count else f"{shown} (n {value.n})"


def markdown(lines: Grid) -> str:
    head, *rest = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest)])


# ------------------------------------------------------------------------------------------------------------- bodies


judged = functools.cache(ledger)  # once for all pages


def body(name: str, place: Path) -> str:
    """What stands between the markers of `name`. place: folder of the README. InputError for an unknown name."""
    experiment, _, part = (name, "", "") if name in experiments() else name.rpartition(".")
    if one := experiments().get(experiment):
        if part == "":
            return body_of_table(one)
        if part == "figure":
            picture = ASSETS / f"{one.id}.png"
            if state(one)[0] != FRESH or not picture.is_file():
                return "*The picture comes with the rows.*"
            return f"![{one.title}]({os.path.relpath(picture, place)})"
        if part == "verdicts":
            found = findings(one.id, freshness.fresh_rows(one.id))
            return markdown(claims.table(found)) if found else "No claim of the papers rests on this."
    if name == "experiments":
        lines = [[f"`{one.id}`", one.question, str(one.n), f"{one.took:g}", str(one.tier)]
                 for one in experiments().values()]  # fmt: skip
        return markdown([["id", "question", "n", "minutes", "tier"], *lines])
    if name == "claims":
        lines = [[f"[{paper}]({paper})", *map(str, counts(judged(paper)).values())] for paper in PAPERS]
        return markdown([["paper", "hold", "do not hold", "inconclusive", "not run"], *lines])
    if name == "held":
        lines = [[f"[{paper}]({paper})", claim, measured, verdict] for paper in PAPERS
                 for claim, _, _, measured, _, verdict, _ in headlines(paper)[1:]]  # fmt: skip
        return markdown([["paper", "claim", "measured [95 % interval]", "verdict"], *lines])
    kind, _, paper = name.partition(":")
    if kind in ("claims", "held") and paper in PAPERS:
        return markdown(claims.table(judged(paper)) if kind == "claims" else headlines(paper))
    raise InputError(f"<!-- results: {name} -->: there is no such experiment, table or paper")


def headlines(paper: str) -> Grid:
    """The ledger's lines that the front door shows, under its head."""
    return claims.table(one for one in judged(paper) if one.claim.get("headline"))


def body_of_table(experiment: Experiment) -> str:
    """The table, or that it was not run; where its rows come from; tables of rows that were made elsewhere."""
    command, parts = f"python -m eval.experiments --run {experiment.id}", []
    how, why = state(experiment)
    if how != FRESH:
        kept = f" Kept rows are of another state ({why}) and not shown." if how == STALE else ""
        parts += [f"*Not run yet:* `{command}` *(about {experiment.minutes:g} minutes).*{kept}"]
    else:
        about = read_object(experiment.about)
        world = about["fingerprint"]
        source = (f"`{command} --again`, {about['date']}, {about['minutes']:g} minutes on {about['machine']}; weights "
                  f"{world['weights']}, drawing {world['drawing']}.")  # fmt: skip
        if experiment.rows:
            lines, note = table_of(experiment, read_rows(experiment.kept))
            parts += [markdown(lines), note + source]
        else:
            parts += [f"```text\n{experiment.kept.read_text(encoding='utf-8').rstrip()}\n```", source]
    if experiment.gpu:
        parts += [f"At the paper's scale: {experiment.gpu}"]
    for about in sorted((freshness.RESULTS / "imported").glob(f"{experiment.id}--*.json")):
        seen = read_object(about)
        parts += [f"**Run elsewhere: {seen['label']}** ({seen['made_with']}; not to be compared with the rows above)",
                  markdown(table_of(experiment, read_rows(about.with_suffix(".jsonl")))[0])]  # fmt: skip
    return "\n\n".join(parts)


# -------------------------------------------------------------------------------------------------- READMEs and files


def rendered(path: Path) -> str:
    """The page with every marked part made again. InputError for a marker without an end."""
    text = path.read_text(encoding="utf-8")
    if text.count("<!-- results: ") != len(MARKER.findall(text)):
        raise InputError(f"{path}: a <!-- results: … --> stands without its <!-- end -->, each on a line of its own")
    return MARKER.sub(lambda found: f"{found[1]}\n{body(found[2], path.parent)}\n\n{found[4]}", text)


def differing(root: Path = ROOT) -> dict[Path, str]:
    """The pages whose marked parts are not what the rows say, with the text that they should have."""
    judged.cache_clear()
    pages = {path: rendered(path) for pattern in PAGES for path in sorted(root.glob(pattern))}
    return {path: text for path, text in pages.items() if text != path.read_text(encoding="utf-8")}


def lacking(experiment: Experiment) -> list[str]:
    """Columns and references that its entry names and its fresh rows have not."""
    rows = freshness.fresh_rows(experiment.id)
    ran = {row["method"] for row in rows}
    return [name for name in experiment.columns if rows and not find(rows, name)] + [
        name for name in experiment.references if rows and name not in ran]  # fmt: skip


def render(root: Path = ROOT) -> list[Path]:
    """Write these pages; which they were."""
    pages = differing(root)
    for path, text in pages.items():
        write_text(path, text)
    return list(pages)


def export(folder: Path) -> list[Path]:
    """<id>.csv and <id>.tex of every fresh experiment, and claims.csv."""
    tables = {"claims": claims.table(one for paper in PAPERS for one in ledger(paper))}
    written = [folder / "claims.csv"]
    for one in experiments().values():
        if one.rows and state(one)[0] == FRESH:
            lines, _ = table_of(one, read_rows(one.kept))
            tables[one.id] = [[text.strip("*") for text in line] for line in lines]
            written += [folder / f"{one.id}.csv", folder / f"{one.id}.tex"]
    for path in written:
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                csv.writer(file, lineterminator="\n").writerows(tables[path.stem])
            else:
                file.write(as_latex(tables[path.stem]))
    return written


def as_latex(lines: Grid) -> str:
    """A tabular with booktabs' rules."""
    head, *rest = (" & ".join("".join(LATEX.get(letter, letter) for letter in cell) for cell in line) + r" \\"
                   for line in lines)  # fmt: skip
    columns = "l" + "r" * (len(lines[0]) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rest, r"\bottomrule",
                      r"\end{tabular}", ""])  # fmt: skip
