"""Runs the experiments, keeps their rows with what these depend on, and renders them into the READMEs.

    python -m eval.experiments --list               id, n, minutes, date, fresh or stale
    python -m eval.experiments --run                tier 1, what is missing or stale (make results); or --run ID …
    python -m eval.experiments --run ID --again     run what is fresh too, and tell how far its rows lie from the kept
    python -m eval.experiments --render             tables, verdicts and figures into the READMEs
    python -m eval.experiments --check              fails where a README is not what the rows say
    python -m eval.experiments --export FOLDER      every table as CSV and LaTeX
    python -m eval.experiments --quick              everything with two items and two steps: has anything rotted?
    python -m eval.experiments --import FOLDER --as ID     rows of real weights or data, made elsewhere

An interrupted run goes on where it stopped: the same command again.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common.files import ROW_KEYS, InputError, cache_folder, check_file_name, read_object, refused_as
from common.runs import digest_of, make_parser, provenance, read_rows, run_rows, script, write_json, write_text
from common.shards import Shard, add_shard_flag
from eval import freshness
from eval.freshness import FRESH, ROOT, Experiment, experiments, fingerprint, state

HEAVY = ("seen", "gap", "trajectory")  # what rows have for figures alone, and results do not keep
PRINTED, MINUTES = "printed.txt", "minutes.json"  # in a run's folder: what a command without rows says; time so far


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--list", action="store_true", help="every experiment and its state")
    add("--run", nargs="*", metavar="ID", help="run these if they are missing or stale; all of --tier without a name")
    add("--tier", type=int, choices=(1, 2), default=1, help="of --run without a name: 1, or 2 for everything")
    add_shard_flag(parser, "items of what --run runs; then once without")
    add("--quick", nargs="*", metavar="ID", help="run with two items and two steps, and keep nothing")
    add("--render", action="store_true", help="fill the marked parts of every README")
    add("--check", action="store_true", help="fail if a README is not what --render would write")
    add("--again", action="store_true", help="with --run: run what is fresh too, and only tell how far its rows lie "
        "from those that are kept")  # fmt: skip
    add("--export", metavar="FOLDER", help="write tables as CSV and LaTeX")
    add("--import", dest="imported", metavar="FOLDER", help="keep rows that were made elsewhere: a folder of the "
        "command of an experiment, with config.json")  # fmt: skip
    add("--as", dest="name", metavar="ID", help="the experiment that imported rows belong to")
    add("--label", help="what imported rows are called; by default the folder's name")
    add("--output_dir", default=str(cache_folder("experiments")), help="folder for runs at work")
    args = parser.parse_args(argv)
    for name in [*(args.run or []), *(args.quick or []), *([args.name] if args.name else [])]:
        freshness.find(name)
    if bool(args.imported) != bool(args.name):
        raise InputError("--import FOLDER and --as ID go together: the rows, and the experiment that they belong to")
    if args.imported and not Path(args.imported).is_dir():
        raise InputError(f"--import {args.imported} is no folder")
    if (args.shard.count > 1 or args.again) and args.run is None:
        raise InputError("--shard and --again are for --run")
    asked = args.list or args.render or args.check or args.export or args.imported
    if not asked and args.run is None and args.quick is None:
        raise InputError("nothing to do: give --list, --run, --render, --check, --quick, --export or --import")
    return args


# ---------------------------------------------------------------------------------------------------------------- run


def run(ids: list[str], output: Path, part: Shard) -> None:
    """What is not fresh, one after the other. Where one fails the others go on; InputError says in the end which."""
    failed = []
    for name in ids:
        one = experiments()[name]
        if state(one)[0] == FRESH:
            print(f"{name} is fresh", flush=True)
            continue
        try:
            run_one(one, output, part)
        except InputError as problem:
            print(f"error: {problem}", file=sys.stderr, flush=True)
            failed.append(name)
    if failed:
        raise InputError(f"{', '.join(failed)} stopped; the same command goes on from here")


def run_one(one: Experiment, output: Path, part: Shard) -> None:
    """Run an experiment and keep its rows. The folder is named after what rows depend on, so that no row of another
    world is ever continued."""
    before, began = fingerprint(one), time.time()
    place = output / f"{one.id}-{digest_of(before)[:6]}"
    start(one, place, ["--shard", str(part)] if part.count > 1 and one.shards else [])
    if part.count > 1:
        return
    if fingerprint(one) != before:
        raise InputError(f"weights, drawing or settings changed while {one.id} ran: run it again")
    keep(one, place, before, (time.time() - began) / 60)


def again(ids: list[str], output: Path, part: Shard) -> None:
    """Run them whether they are fresh or not, in folders of their own, and tell how far the rows lie from those that
    are kept; nothing is kept of it."""
    for name in ids:
        one = experiments()[name]
        place = output / f"{name}-again"
        start(one, place, ["--shard", str(part)] if part.count > 1 and one.shards else [])
        if part.count > 1:
            continue
        if not one.rows:
            print((place / PRINTED).read_text(encoding="utf-8"))
        if not one.rows or not one.kept.is_file():
            continue
        before, now = ({(row["method"], row["item"], row["seed"]): row["metrics"] for row in rows}
                       for rows in (read_rows(one.kept), gathered(place / one.rows)))  # fmt: skip
        gaps = [(abs(value - now[key].get(score, math.nan)), score, *key)
                for key, scores in before.items() if key in now for score, value in scores.items()]  # fmt: skip
        gaps = [one for one in gaps if math.isfinite(one[0])]
        gap, score, method, item, _ = max(gaps, default=(math.nan, "–", "–", "–", 0))
        print(f"{name}: {len(before.keys() & now.keys())} of {len(before)} kept rows were made again; the largest "
              f"difference is {gap:.3g} ({score} of {method} on {item})")  # fmt: skip
        shutil.rmtree(place)  # whoever doubts once more gets rows of their own, not these


def start(one: Experiment, output: Path, more: list[str]) -> None:
    """Run its commands. Raises InputError where one ends in an error, which it has already told."""
    said = []
    for words in command_lines(one, output, more):
        print("$ python " + shlex.join(words[1:]), flush=True)
        done = subprocess.run(words, cwd=ROOT, text=True, stdout=None if one.rows else subprocess.PIPE)
        if done.returncode:
            raise InputError(f"{one.id} ended with exit code {done.returncode}")
        said.append(done.stdout or "")
    if not one.rows:
        write_text(output / PRINTED, "".join(said))


def command_lines(one: Experiment, output: Path, more: list[str]) -> list[list[str]]:
    """The commands as they are started. more: further flags, such as those that make them short."""
    return [[sys.executable, "-m", *shlex.split(command), "--output_dir", str(output), *more]
            for command in one.commands]  # fmt: skip


def keep(one: Experiment, place: Path, world: dict, minutes: float) -> None:
    """Rows, what they depend on, and the figure, into the repository."""
    # of the code that made the rows, which may not be the code that gathers them
    configs = [folder / "config.json" for folder in (place, (place / one.rows).parent)]
    made_by = next((read_object(config)["provenance"] for config in configs if config.is_file()), provenance())
    if one.rows:
        write_rows(one.kept, gathered(place / one.rows))
    else:
        said = (place / PRINTED).read_text(encoding="utf-8").splitlines(keepends=True)
        write_text(one.kept, "".join(line for line in said if str(place) not in line))  # where it lay is nobody's
    if (place / MINUTES).is_file():  # of runs that were interrupted, or of another machine's part
        minutes += read_object(place / MINUTES)["minutes"]
    took = {"minutes": round(minutes, 1)}
    write_json(place / MINUTES, took)
    about = {"experiment": one.id, "date": time.strftime("%Y-%m-%d", time.gmtime()), **took, "machine": machine()}
    write_json(one.about, {**about, "fingerprint": world, "provenance": made_by})
    if one.figure and (place / one.figure).is_file():
        (ROOT / "assets").mkdir(exist_ok=True)
        shutil.copyfile(place / one.figure, ROOT / "assets" / f"{one.id}.png")


def write_rows(path: Path, rows: list[dict]) -> None:
    """One JSON line a row, without what is of no use beside the pictures."""
    kept = ({key: value for key, value in row.items() if key not in HEAVY} for row in rows)
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def gathered(file: Path) -> list[dict]:
    """The rows of a run, each (method, item, seed) once, without those that only mark what is done. InputError if there
    are none."""
    if not (rows := [row for row in run_rows(file.parent) if row.get("metrics", True)]):
        raise InputError(f"{file} holds no rows")
    return rows


def machine() -> str:
    """The processor and how many of its cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} {'core' if count == 1 else 'cores'} of {name}"


def quick(ids: list[str], output: Path) -> None:
    """Every experiment with two items and two steps. InputError for the first that fails or leaves no rows."""
    for name in ids:
        one, place = experiments()[name], output / "quick" / name
        shutil.rmtree(place, ignore_errors=True)
        start(one, place, shlex.split(one.quick))
        print(f"{name}: {len(gathered(place / one.rows)) if one.rows else 'no'} rows")


# --------------------------------------------------------------------------------------------------- list and import


def listing() -> list[list[str]]:
    """A line per experiment."""
    lines = [["id", "tier", "n", "minutes", "state", "date", "question"]]
    for one in experiments().values():
        date = read_object(one.about)["date"] if one.about.is_file() else ""
        lines.append([one.id, str(one.tier), str(one.n), f"{one.took:g}", ": ".join(filter(None, state(one))), date,
                      one.question])  # fmt: skip
    return lines


def import_rows(folder: Path, one: Experiment, label: str | None) -> Path:
    """Keep rows that were made elsewhere, with their provenance, beside the experiment's own. Raises InputError for
    rows that no page could show."""
    from eval import rendering

    if not one.rows:
        raise InputError(f"{one.id} keeps no rows, so that there are none to import")
    config, name = read_object(folder / "config.json"), folder.resolve().name
    file = folder / Path(one.rows).name
    rows = gathered(file if file.exists() else folder / one.rows)
    if lacking := sorted(ROW_KEYS - set.intersection(*map(set, rows))):
        raise InputError(f"{file}: a row lacks {lacking[0]}; give the rows as the experiment's command writes them")
    check_file_name(name, "--import: the folder's name")
    if odd := re.search(r"[\n\r<>]|--", label or name):
        raise InputError(f"--label {label or name!r} stands in a README: it cannot hold {odd[0]!r}; give another")
    with refused_as(f"the table of {one.id} cannot hold these rows"):
        rendering.table_of(one, rows)
    elsewhere = config.get("provenance")
    told = {**config, **(elsewhere if isinstance(elsewhere, dict) else {})}
    made = ("pretrained_model_name_or_path", "dataset", "metric_encoders", "git_revision", "torch", "gpu")
    made_with = ", ".join(f"{key} {told[key]}" for key in made if told.get(key) is not None)
    target = freshness.RESULTS / "imported" / f"{one.id}--{name}.jsonl"
    if target.exists() and read_object(target.with_suffix(".json")).get("config") != config:
        raise InputError(f"{target} holds rows of another run in a folder of this name: rename the folder")
    write_rows(target, rows)
    write_json(target.with_suffix(".json"),
               {"experiment": one.id, "label": label or name, "made_with": made_with, "config": config})  # fmt: skip
    return target


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from common.tables import text_table
    from eval import rendering

    output = Path(args.output_dir)
    if args.list:
        print(text_table(listing()))
    if args.imported:
        print(f"kept {import_rows(Path(args.imported), freshness.find(args.name), args.label)}")
    if args.run is not None:
        every = [one.id for one in experiments().values() if one.tier <= args.tier]
        (again if args.again else run)(args.run or every, output, args.shard)
    if args.quick is not None:
        quick(args.quick or list(experiments()), output)
    if args.render:
        for path in rendering.render():
            print(f"rendered {path.relative_to(ROOT)}")
    if args.export:
        print("\n".join(f"wrote {path}" for path in rendering.export(Path(args.export))))
    if args.check:
        for one in experiments().values():
            if absent := rendering.lacking(one):
                raise InputError(f"experiments.toml: {one.id} names {absent[0]}, which its rows have not")
        if wrong := rendering.differing():
            names = ", ".join(str(path.relative_to(ROOT)) for path in wrong)
            raise InputError(f"not what the rows say: {names}; python -m eval.experiments --render")
        print("every README is what the rows say")


if __name__ == "__main__":
    main()
