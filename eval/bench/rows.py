"""What it costs to keep a row: appending to a short file and to a long one, in turn. For make bench."""

import argparse
import tempfile
from pathlib import Path

from common.files import append_row
from eval.bench.ratios import middle, ratios, rounds

FEW, MANY, APPENDED = 10, 20_000, 50
ROW = {"paper": "svdiff", "method": "full", "item": "cat|0", "seed": 0, "metrics": {"DINO": 0.5}, "seconds": 1.0,
       "peak_memory_mb": 1.0}  # fmt: skip


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """A row per round, printed as a ratio. pipe: of the other parts, not needed."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.jsonl" for name in ("few", "many")}
        for name, count in (("few", FEW), ("many", MANY)):
            append_row(files[name], ROW)
            files[name].write_bytes(files[name].read_bytes() * count)

        def append(name: str) -> None:
            for _ in range(APPENDED):
                append_row(files[name], ROW)

        rows = rounds({name: lambda number, name=name: append(name) for name in files}, args.repeats)
    print(f"A row appended to a file of {MANY:,} / of {FEW}: {middle(ratios(rows, 'many', 'few'))}")
    return {"rows": rows}
