"""Tune every method of the arena on the picturebook's validation subjects, six settings for each.

    python -m eval.tuning.personalization
    python -m eval.tuning.personalization --shard 1/4 & … --shard 4/4        the last one writes the file

Writes eval/tuning/personalization.toml, to be committed before the test subjects are run. An interrupted run goes on.
The score is the harmonic mean of two shares: of the way that DINO goes from the base model's pictures to the real ones,
and of pictures with all that their prompt asks for. A method that only copies, or only obeys, gets nothing.
"""

import argparse
import shutil
from statistics import harmonic_mean

from common.flags import as_flags, number
from common.runs import progress, run_rows, script
from common.shards import add_shard_flag, all_done
from eval.tracks.personalization import options
from eval.tracks.personalization.methods import TRAINED
from eval.tuning.tuner import Setting, grid, label, make_tuning_parser, measured, tune, write_tuned

GRIDS: dict[str, list[Setting]] = {name: grid(**method.tries) for name, method in TRAINED.items()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_tuning_parser(__doc__, GRIDS, "outputs/tune_personalization")
    add = parser.add_argument
    add("--limit", type=number(int, 1), default=2, help="validation subjects")
    add("--images_per_prompt", type=number(int, 1, 1000), default=1, help="pictures")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of sampling; the arena's by default")
    add_shard_flag(parser, "settings")
    return parser.parse_args(argv)


def score(row: dict, base: dict, real: dict) -> float:
    """The harmonic mean of the shares of fidelity and context; 0 where one of them is, or where a training diverged."""
    key = "DINO/dreambench (picturebook)"
    if key not in row["metrics"]:
        return 0.0
    low, high = base["metrics"][key], real["metrics"][key]
    likeness = min(1.0, max(0.0, (row["metrics"][key] - low) / (high - low)))
    return harmonic_mean([likeness, row["metrics"]["context (picturebook)"]])


def arena_flags(args: argparse.Namespace) -> list[str]:
    """The arena's command line for the methods as they are, on validation subjects."""
    own = {"split": "validation", "methods": ["base", *args.methods], "curves": [], "follow": None,
           "shard": str(args.shard)}  # fmt: skip
    return as_flags(vars(args) | own)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = options.parse(arena_flags(args))
    settings.held_out_images = 0  # drift is no part of the score, and its samples cost time

    from eval.tracks.personalization import arena as arenas
    from eval.tracks.personalization import scoring, variants

    arena, subjects = arenas.prepare(settings, tuned={})
    shared, mine = arena.settings, args.shard
    if mine.index == 1:
        arena.variants = [variants.Variant("base", "base")]
        for subject in subjects:
            arenas.run_subject(arena, subject, 0)  # and the row of the real pictures
    place = arena.output / "weights" / f"shard-{mine.index}"

    def rows_of(method: str, setting: Setting, own: list = subjects) -> list[dict]:
        variant = variants.Variant(label(method, setting), method, knob="tuned")

        def run(subject) -> dict:
            arena.settings = {variant.name: shared[method] | setting}
            try:
                return arenas.run_variant(arena, variant, subject, 0, scoring.read_references(subject), place)
            finally:
                shutil.rmtree(place, ignore_errors=True)

        return measured(arena.rows, variant.name, {subject.name: subject for subject in own}, run)

    if mine.count > 1:
        wanted = [(method, setting, [one]) for method in args.methods for setting in GRIDS[method] for one in subjects]
        for one in progress(mine.of(wanted), "settings"):
            rows_of(*one)
        keys = [(name, one.name, 0) for name in (arenas.REAL, "base") for one in subjects]
        keys += [(label(method, setting), own[0].name, 0) for method, setting, own in wanted]
        if not all_done(arena.rows, keys, mine):
            return
    known = {(row["method"], row["item"]): row for row in run_rows(arena.output)}
    balance = lambda row: score(row, known["base", row["item"]], known["real", row["item"]])  # noqa: E731
    found = tune({method: GRIDS[method] for method in args.methods}, rows_of, balance, args.follow)
    head = [
        "What each method of the personalization arena is trained with on the picturebook, over its script's preset.",
        f"Written by `python -m eval.tuning.personalization --limit {args.limit}` on validation subjects: the same",
        "number of settings tried for each, the best balance of likeness and context (0 to 1, behind each) taken.",
    ]
    write_tuned(variants.SETTINGS, head, found, digits=2)


if __name__ == "__main__":
    main()
