"""A command as experiments have them, for test_experiments.py: two methods on some items, one row a piece."""

import argparse
import json
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", type=Path)
parser.add_argument("--limit", type=int, default=10)
parser.add_argument("--shard", default="")
parser.add_argument("--fail", action="store_true")
args = parser.parse_args()
if args.fail:
    raise SystemExit(2)
args.output_dir.mkdir(parents=True, exist_ok=True)
mine = range(args.limit)
if args.shard:
    part, count = map(int, args.shard.split("/"))
    mine = mine[part - 1 :: count]
with open(args.output_dir / "rows.jsonl", "a" if args.shard else "w") as file:
    for item in mine:
        for method, value in (("spd+p2p", 20.0 + item), ("ddim+p2p", 18.5 + item + 0.05 * item)):
            row = {"method": method, "item": str(item), "seed": 0, "seen": "x", "metrics": {"psnr/pie_official": value},
                   "paper": "spdinv", "seconds": 1.0, "peak_memory_mb": 1.0}  # fmt: skip
            file.write(json.dumps(row) + "\n")
(args.output_dir / "config.json").write_text(json.dumps({"dataset": "PIE-Bench", "provenance": {"gpu": "a card"}}))
