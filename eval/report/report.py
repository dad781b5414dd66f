"""Tracks to one self-contained page: numbers become text here and in its neighbours, report.html.j2 lays them out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.runs import atomic_path
from eval.report import boards, drawings, headlines, pictures, plots
from eval.report.measures import GROUPS, Measure
from eval.tracks.track import Run, Track

HERE = Path(__file__).parent
PICTURES = 4_000_000  # bytes that the pictures of a page may take, as text
STRIP = 3  # methods on the first screen, per track


def write_page(path: Path, tracks: Sequence[Track]) -> Path:
    """Write the page atomically and return its path. No file beside it is needed to read it."""
    items = {track.name: pictures.with_kept(track) for track in tracks}
    encoded = pictures.encode_all((path for own in items.values() for path in pictures.paths_of(own)), PICTURES)
    views = [track_view(track, items[track.name], encoded) for track in tracks]
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


def track_view(track: Track, items: list, encoded: dict) -> dict[str, Any]:
    """Everything the template shows of one track, as text, numbers and SVG. Runs: the one with most rows first."""
    runs = sorted(track.runs, key=lambda run: -len(run.rows))
    largest = runs[0]
    claims = headlines.claim_views(track, largest)
    shown = [pictures.item_view(item, track.methods, encoded) for item in items]
    return {
        "track": track,
        "run": run_head(largest),
        "boards": [run_head(run) | boards.board(track, run) for run in runs],
        "claims": claims,
        "verdicts": headlines.tally(claims),
        "headline": headlines.headline(track, largest, claims),
        "strip": pictures.strip(shown, strip_methods(track, shown)),
        "fronts": drawings.fronts(track, largest),
        "forests": drawings.forests(track, largest),
        "items": shown,
        "given": list(dict.fromkeys(cell["name"] for view in shown for cell in view["given"] if cell["image"])),
        "prompted": any(view["target"] for view in shown),
        "judged": any(cell["success"] is not None for view in shown for cell in view["cells"]),
        "reconstructed": any(cell["before"] for view in shown for cell in view["cells"]),
        "breakdown": boards.breakdown(track, largest),
        "published": boards.published_view(track),
        "commands": commands(track),
        "settings": settings_view(track.runs[0].config),
    }


def strip_methods(track: Track, views: list[dict[str, Any]]) -> list[str]:
    """Titles of the baseline, of another and of the paper's own, as far as the items have pictures of them."""
    drawn = {cell["name"] for view in views for cell in view["cells"] if cell["image"]}
    names = [name for method, name in track.methods.items() if name in drawn and method not in track.references]
    own = [name for name in names if name == track.methods.get(track.own)] or names[-1:]
    middle = [name for name in names[1:] if name not in own]
    return list(dict.fromkeys(names[:1] + middle[len(middle) // 2 :][:1] + own))[:STRIP]


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
