"""Several processes on one evaluation: each takes a part of the work, all append to one file of rows, and whoever comes
to the end last makes the tables. Without --shard a run is one part of one."""

import argparse
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.files import InputError, locked, read_rows, write_text

OF_THE_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # what torchrun tells each of its processes


class Shard(NamedTuple):
    """The `index`-th, from 1, of `count` parts of a run, each for a process of its own."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, things: Sequence) -> list:
        """This part of them: every count-th."""
        return list(things[self.index - 1 :: self.count])


def shard(text: str) -> Shard:
    """An argparse type: I/N, I from 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/4")
    return Shard(int(found[1]), int(found[2]))


def told_by_launch() -> dict[str, int]:
    """What torchrun or accelerate launch has told this process, which alone is told nothing. Raises InputError for what
    is no number."""
    told = {name: os.environ[name] for name in OF_THE_LAUNCH if name in os.environ}
    if odd := [name for name, text in told.items() if not re.fullmatch("[0-9]+", text)]:
        raise InputError(f"the environment variable {odd[0]} is {told[odd[0]]!r}, which torchrun and accelerate launch "
                         "set to a number: unset it")  # fmt: skip
    return {name: int(text) for name, text in told.items()}


def launched() -> Shard:
    """The part of this process among those of `accelerate launch` or torchrun. From here on it works alone, on one GPU:
    a training that it runs is its own, and shares no step with the others'."""
    for name in (told := told_by_launch()):
        del os.environ[name]
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= told.keys() or told["WORLD_SIZE"] == 1:
        return Shard()
    if told["RANK"] >= told["WORLD_SIZE"]:  # a part that there is not, whose things nobody would do
        raise InputError(f"the environment variables RANK={told['RANK']} and WORLD_SIZE={told['WORLD_SIZE']} are of no "
                         "launch: unset them")  # fmt: skip
    import torch

    if gpus := torch.cuda.device_count():  # asks no GPU, so that the choice still counts
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[told["LOCAL_RANK"] % gpus]
    return Shard(told["RANK"] + 1, told["WORLD_SIZE"])


def add_shard_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """--shard I/N; of: what there are parts of."""
    parser.add_argument("--shard", type=shard, default=launched(), metavar="I/N", help=f"take only the I-th of N parts "
        f"of the {of}, for N processes; under accelerate launch each takes its own")  # fmt: skip


def run_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows in a run's folder, each (method, item, seed) once; those of rows-<name>.jsonl too."""
    rows = [row for path in sorted(Path(folder).glob("rows*.jsonl")) for row in read_rows(path)]
    return list({(row["method"], row["item"], row.get("seed")): row for row in rows}.values())


def all_done(path: Path, wanted: Iterable[tuple[str, str, int]], part: Shard) -> bool:
    """Whether it is time to report: for a whole run always, for a shard if every (method, item, seed) has its row by
    now, whoever made it; it says so if not. Rows are left in the order of `wanted`, as one process would leave them."""
    wanted = list(wanted)
    with locked(path):
        rows = read_rows(path)
        found = {(row["method"], row["item"], row.get("seed")): row for row in rows}
        missing = sum(key not in found for key in wanted)
        if missing and part.count > 1:
            print(f"shard {part} is done; {missing} rows are the other shards': the last one makes the tables, or the "
                  "same command without --shard")  # fmt: skip
            return False
        own = dict.fromkeys(key for key in wanted if key in found)
        ordered = iter(own)
        as_wanted = [found[next(ordered) if key in own else key] for key in found]
        if as_wanted != rows:
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in as_wanted))
    return True
