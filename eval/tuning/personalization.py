"""Tune every method of the arena on the picturebook's validation subjects, six settings for each.

    python -m eval.tuning.personalization
    python -m eval.tuning.personalization --shard 1/4 & … --shard 4/4        then once more without --shard

Writes eval/tuning/personalization.toml, to be committed before the test subjects are run. An interrupted run goes on.
The score is the harmonic mean of two shares: of the way that DINO goes from the base model's pictures to the real ones,
and of pictures with all that their prompt asks for. A method that only copies, or only obeys, gets nothing.
"""

import argparse
import shutil
from pathlib import Path

from common.flags import Shard, check_writable, number, shard
from common.runs import InputError, append_row, make_parser, progress, run_rows, script
from eval.tracks.personalization import options
from eval.tracks.personalization.methods import METHODS, TRAINED
from eval.tuning.tuner import Setting, grid, label, write_settings
from lipschitz_personalize.options import as_flags

GRIDS: dict[str, list[Setting]] = {name: grid(**method.tries) for name, method in TRAINED.items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=GRIDS, default=list(GRIDS), help="methods to tune")
    add("--limit", type=number(int, 1), default=2, help="validation subjects")
    add("--images_per_prompt", type=number(int, 1, 1000), default=1, help="pictures")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of sampling; the arena's by default")
    add("--output_dir", default="outputs/tune_personalization", help="folder for rows")
    add("--shard", type=shard, metavar="I/N", help="take only the I-th of N parts of the settings, for N processes")
    add("--device", help="cpu, cuda; a GPU if there is one by default")
    args = parser.parse_args(argv)
    check_writable(Path(args.output_dir))
    return args


def score(row: dict, base: dict, real: dict) -> float:
    """The harmonic mean of the shares of fidelity and context; 0 where one of them is, or where a training diverged."""
    if not row["metrics"]:
        return 0.0
    key = "DINO/dreambench (picturebook)"
    low, high = base["metrics"][key], real["metrics"][key]
    likeness = min(1.0, max(0.0, (row["metrics"][key] - low) / (high - low)))
    context = row["metrics"]["context (picturebook)"]
    return 2 * likeness * context / (likeness + context) if likeness + context else 0.0


def best_settings(rows: list[dict], methods: list[str]) -> dict[str, tuple[Setting, float]]:
    """The setting of the highest mean score per method, the first of equals, and that mean. InputError where rows are
    missing."""
    by_name: dict[str, dict[str, dict]] = {}
    for row in rows:
        by_name.setdefault(row["method"], {})[row["item"]] = row
    subjects, found = by_name.get("real", {}), {}
    for method in methods:
        means = []
        for setting in GRIDS[method]:
            own = by_name.get(label(method, setting), {})
            if own.keys() != subjects.keys() or not own:
                raise InputError(f"{label(method, setting)} has no rows of all subjects yet: run the remaining shards")
            scores = [score(own[item], by_name["base"][item], subjects[item]) for item in subjects]
            means.append(sum(scores) / len(scores))
        best = max(means)
        if best == 0:
            raise InputError(f"no setting of {method} gave a picture that counts: widen its grid")
        found[method] = GRIDS[method][means.index(best)], best
    return found


def arena_flags(args: argparse.Namespace) -> list[str]:
    """The arena's command line for the methods as they are, on validation subjects."""
    return as_flags({**vars(args), "split": "validation", "methods": ["base", *args.methods], "curves": []})


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = options.parse(arena_flags(args))
    settings.held_out_images = 0  # drift is no part of the score, and its samples cost time

    from eval.tracks.personalization import arena as runs
    from eval.tracks.personalization import scoring, variants

    arena, subjects = runs.prepare(settings, tuned={})
    shared, mine = arena.settings, args.shard or Shard()
    if mine.index == 1:
        arena.variants = [variants.Variant("base", "base")]
        for subject in subjects:
            runs.run_subject(arena, subject, 0)  # and the row of the real pictures
    wanted = [(method, setting, one) for method in args.methods for setting in GRIDS[method] for one in subjects]
    done = {(row["method"], row["item"]) for row in run_rows(arena.output)}
    for method, setting, subject in progress(mine.of(wanted), "settings"):
        variant = variants.Variant(label(method, setting), method, knob="tuned")
        if (variant.name, subject.name) in done:
            continue
        arena.settings = {variant.name: shared[method] | setting}
        place = arena.output / "weights" / f"shard-{mine.index}"
        try:
            row = runs.run_variant(arena, variant, subject, 0, scoring.read_references(subject), place)
        except (InputError, SystemExit) as stop:
            if getattr(stop, "code", 2) != 2:  # Ctrl-C
                raise
            # it diverged, and has said so; a score of 0
            row = runs.row_of(METHODS[method].paper, variant.name, subject, 0, {})
        append_row(arena.rows, row)
        shutil.rmtree(place, ignore_errors=True)
    if args.shard:
        print(f"shard {args.shard} is done; start without --shard for the settings when all are")
        return
    found = best_settings(run_rows(arena.output), args.methods)
    for method, (setting, value) in found.items():
        print(f"{label(method, setting)}: {value:.3f}")
    head = [
        "What each method of the personalization arena is trained with on the picturebook, over its script's preset.",
        f"Written by `python -m eval.tuning.personalization --limit {args.limit}` on validation subjects: the same",
        "number of settings tried for each, the best balance of likeness and context (0 to 1, behind each) taken.",
    ]
    write_settings(variants.SETTINGS, head, {method: setting for method, (setting, _) in found.items()},
                   {method: f"{value:.2f}" for method, (_, value) in found.items()})  # fmt: skip
    print(f"written to {variants.SETTINGS}")


if __name__ == "__main__":
    main()
