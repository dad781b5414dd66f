"""What the paper argues beside its tables, measured on pictures of which the true noise is known.

Each module has run(task: Task) for spdinv.eval; it skips what is done, prints its tables, and returns results.json; {}
for a shard that ends before others.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.runs import append_row, read_rows
from common.shards import all_done

EXPERIMENTS = ("noise_gap", "premise", "convergence")  # modules here, imported when they are run


@dataclass(frozen=True)
class Task:
    """What an experiment is given. methods: by name, options.Method. output: its folder, where rows.jsonl goes."""

    args: argparse.Namespace
    methods: dict[str, Any]
    pipe: Any
    resolution: int
    items: list
    encoders: Any
    output: Path

    def rows(self) -> dict[tuple[str, str], dict]:
        """All rows so far, by method and item."""
        return {(row["method"], row["item"]): row for row in read_rows(self.output / "rows.jsonl")}

    def append(self, method: str, item: str, **row: Any) -> None:
        own = {"paper": "spdinv", "method": method, "item": item, "seed": self.args.seed}
        append_row(self.output / "rows.jsonl", own | row)

    def done(self, wanted: list[tuple[str, str]]) -> bool:
        """Whether all (method, item) are there to be reported (common/shards.py)."""
        keys = [(method, item, self.args.seed) for method, item in wanted]
        return all_done(self.output / "rows.jsonl", keys, self.args.shard)
