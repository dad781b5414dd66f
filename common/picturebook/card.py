"""The quality table of the model card: rows that `build --check --keep` measured, kept beside the weights, and shown in
models/README.md between its marks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from common.picturebook.hashes import weights_hash
from common.picturebook.quality import Result
from common.picturebook.shipping import MODELS

BEGIN, END = "<!-- quality -->\n", "<!-- end -->"


def keep(results: Iterable[Result], order: Iterable[str], models: Path = MODELS) -> None:
    """Rows into quality.json and into the card, in the place of older rows of the same measures; rows of other weights
    go. order: names of checks, as the table lists them."""
    weights, places = weights_hash(models=models), {name: place for place, name in enumerate(order)}
    old = [row for row in kept(models)["rows"] if kept(models)["weights"] == weights]
    new = [asdict(result) for result in results]
    measured = {row["what"] for row in new}
    rows = [row for row in old if row["what"] not in measured] + new
    rows.sort(key=lambda row: places[row["check"]])
    text = json.dumps({"weights": weights, "rows": rows}, indent=1, ensure_ascii=False)
    (models / "quality.json").write_text(text + "\n", encoding="utf-8")
    card = models / "README.md"
    card.write_text(rendered(card.read_text(encoding="utf-8"), rows), encoding="utf-8")


def kept(models: Path = MODELS) -> dict:
    """{"weights": hash, "rows": [a Result's fields]}."""
    file = models / "quality.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"weights": "", "rows": []}


def rendered(card: str, rows: list[dict]) -> str:
    """The card with its table made again."""
    before, _, rest = card.partition(BEGIN)
    lines = ["| measure | value | bar | aim | n | |", "|---|---|---|---|---|---|"]
    for row in (Result(**row) for row in rows):
        goals = ["" if goal is None else f"{row.sign} {goal:g}" for goal in (row.bar, row.aim)]
        what = f"{row.what} ({row.note})" if row.note else row.what
        lines.append(f"| {what} | {row.value:.2f} | {' | '.join(goals)} | {row.n} | {row.verdict} |")
    return before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + rest.partition(END)[2]
