"""Tracks to one self-contained page: numbers become text here and in its neighbours, report.html.j2 lays them out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.runs import atomic_path
from eval.claims import findings
from eval.report import boards, headlines, pictures, plots
from eval.report.measures import GROUPS, Measure
from eval.tracks.track import Run, Track

HERE = Path(__file__).parent
PICTURES = 4_000_000  # bytes that the pictures of a page may take, as text
STRIP = 3  # methods on the first screen, per track


def write_page(path: Path, tracks: Sequence[Track]) -> Path:
    """Write the page atomically and return its path. No file beside it is needed to read it."""
    shown = (picture.path for track in tracks for item in track.items for picture in item.pictures)
    encoded = pictures.encode_all(shown, PICTURES)
    views = [track_view(track, encoded) for track in tracks]
    used = {column.key: column for view in views for board in view["boards"] for column in board["columns"]}
    html = plots.environment().get_template("report.html.j2").render(
        tracks=views, definitions=definitions(used.values()), groups=GROUPS,
        notices=[notice for track in tracks for notice in track.notices],
        style=(HERE / "report.css").read_text(), script=(HERE / "report.js").read_text(),
        most=max((len(board["columns"]) for view in views for board in view["boards"]), default=0),
        plots=max((len(view["fronts"]) + len(view["forests"]) for view in views), default=0),
        items=max((len(view["items"]) for view in views), default=0),
    )  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def track_view(track: Track, encoded: dict) -> dict[str, Any]:
    """Everything the template shows of one track, as text, numbers and SVG. Claims are judged on the run with most
    rows; tables and plots begin with the live run where it has a method that no other has."""
    largest = max(track.runs, key=lambda run: len(run.rows))
    live, *others = track.runs
    known = {row["method"] for run in others for row in run.rows}
    first = largest if {row["method"] for row in live.rows} <= known else live
    claims = [headlines.claim_view(found, f"claim-{track.name}-{number}")
              for number, found in enumerate(findings(track.name, largest.rows), start=1)]  # fmt: skip
    shown = [pictures.item_view(item, track.methods, encoded) for item in track.items]
    return {
        "track": track,
        "run": run_head(first),
        "judged_on": run_head(largest),
        "boards": [run_head(run) | boards.board(track, run)
                   for run in (first, *(run for run in track.runs if run is not first))],
        "claims": claims,
        "verdicts": headlines.tally(claims),
        "headline": headlines.headline(track, first, claims),
        "strip": pictures.strip(shown, strip_methods(track, shown)),
        "fronts": plots.fronts(track, first),
        "forests": plots.forests(track, first),
        "alone": len({(row["item"], row["seed"]) for row in first.rows}) == 1,
        "items": shown,
        "given": list(dict.fromkeys(cell["name"] for view in shown for cell in view["given"] if cell["image"])),
        "judged": any(cell["success"] is not None for view in shown for cell in view["cells"]),
        "reconstructed": any(cell["before"] for view in shown for cell in view["cells"]),
        "breakdown": boards.breakdown(track, first),
        "published": boards.published_view(track),
        "commands": commands(track),
        "settings": settings_view(live.config),
    }  # fmt: skip


def strip_methods(track: Track, views: list[dict[str, Any]]) -> list[str]:
    """Titles of the methods asked for, of the paper's own, of the baseline and of another, as many as there is room for
    and as far as the items have pictures of them; in the page's order."""
    drawn = {cell["name"] for view in views for cell in view["cells"] if cell["image"]}
    names = {method: name for method, name in track.methods.items() if name in drawn and method not in track.references}
    own = [method for method in names if method == track.own] or [*names][-1:]
    middle = [method for method in [*names][1:] if method not in own]
    asked = [method for method in track.asked if method in names]
    chosen = list(dict.fromkeys([*asked, *own, *[*names][:1], *middle[len(middle) // 2 :][:1]]))[:STRIP]
    return [name for method, name in names.items() if method in chosen]


def run_head(run: Run) -> dict[str, Any]:
    """What labels a run: its name, number of items, day and code revision."""
    provenance = run.config.get("provenance", {})
    revision = (provenance.get("git_revision") or "unknown")[:10]
    return {
        "label": run.label,
        "items": len({row["item"] for row in run.rows}),
        "date": run.config.get("date", "unknown day"),
        "revision": revision + (" with changes" if provenance.get("dirty") else ""),
    }


def commands(track: Track) -> dict[str, list[str]]:
    """Each command once, with the methods whose rows it makes."""
    found: dict[str, list[str]] = {}
    for method, command in track.commands.items():
        found.setdefault(command, []).append(track.methods.get(method, method))
    return found


def settings_view(config: dict) -> dict[str, str]:
    """Flags and what they resolved to, then versions."""
    flat = {**config, **config.get("provenance", {})}
    left_out = {"provenance", "methods", "print_config", "output_dir", "table", "device", "git_revision"}
    shown = {key: value for key, value in flat.items() if key not in left_out and value not in (None, [], {})}
    revision = {"git_revision": flat["git_revision"]} if flat.get("git_revision") else {}
    methods = {f"method {name}": value for name, value in config.get("methods", {}).items()}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in
            (revision | shown | methods).items()}  # fmt: skip


def definitions(columns) -> dict[str, list[Measure]]:
    """By group, each score's definition once, whatever its protocol."""
    groups: dict[str, list[Measure]] = {group: [] for group in GROUPS}
    for column in columns:
        if column.definition and column.label not in {one.label for one in groups[column.group]}:
            groups[column.group].append(column)
    return {group: known for group, known in groups.items() if known}
