"""Run PIXELS and its controls over pairs of pictures, and print what they score beside the paper's tables and figures.

    python -m pixels.eval --table 1a
    python -m pixels.eval --figure 7

An interrupted run goes on where it stopped: start it again with the same flags. Large runs are shared among processes:
--shard 1/8 to --shard 8/8, each with the same flags; the last one makes the tables.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.flags import say_unheeded, weights_of
from common.runs import InputError, append_row, joined_config, make_parser, script, write_config, write_json
from common.shards import add_shard_flag, all_done, run_rows
from pixels import options
from pixels.thresholds import THRESHOLDS

OTHER_THRESHOLDS = [f"pixels_{name}" for name in THRESHOLDS if name != "linear"]
# Keys of baselines.TRUE and baselines.METHODS, which are heavy to import; the first six are reference rows.
METHOD_NAMES = ("truth", "truth_vae", "nothing", "paste", "alpha", "poisson", "latent_paste", "perturbed",
                "noise_scaling", "pixels", *OTHER_THRESHOLDS)  # fmt: skip
OF_TRUTH = METHOD_NAMES[:2]
TABLES = ("1a", "1b", "overhead")
FIGURES = ("2", "3", "4", "5", "6", "7", "8", "10", "gradient")
ONLY_WITH = {  # flags that count with others alone
    **dict.fromkeys(("maps", "pair_count"), ("pairs", True)), "prompts": ("figure", ["5"]), "repeats": ("lemma", True),
    "split": ("dataset", options.DRAWN), "full": ("dataset", ["picturebook"]),
}  # fmt: skip
# What may change from run to run in one folder; --full has the quick subset's items among its own.
FREE = set("full methods limit table figure shard device output_dir print_config user_study answers lemma repeats "
           "pairs maps pair_count prompts".split())  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--table", choices=TABLES, help="print the measured rows inside this table of the paper")
    add("--figure", choices=FIGURES, help="draw this figure of the paper anew, and print its numbers")
    add("--lemma", action="store_true", help="try Lemma 1's bound and the corrected one")
    add("--pairs", metavar="FOLDER", help="write the paper's protocol from a folder of pictures (ImageNet's validation "
        "set) to --dataset, and stop")  # fmt: skip
    add("--maps", metavar="FOLDER", help="of --pairs: the database of maps, white = keep; drawn by default")
    add("--pair_count", type=options.number(int, 1), default=3000, help="of --pairs (paper: 3000)")
    add("--user_study", action="store_true", help="write the blinded page for Table 1b from the pictures at hand")
    add("--answers", nargs="+", metavar="JSON", help="average the ranks of these answer files, and stop")
    add("--dataset", default="picturebook", help="a folder with pairs.json or source_1.*, exemplar_1.*, map_1.*; "
        "picturebook: the quick subset; compositions: its halves of scenes")  # fmt: skip
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--full", action="store_true", help="all items of the picturebook's benchmark, not the quick subset")
    add("--map_white", choices=("keep", "edit"), default="keep", help="what white means in a folder's maps")
    add("--methods", nargs="+", choices=METHOD_NAMES,
        help="each is run; by default those that the table or figure needs")  # fmt: skip
    add("--limit", type=options.number(int, 1), help="take only so many items")
    add_shard_flag(parser, "pairs")
    add("--metric_encoders", help="picturebook; paper: CLIP ViT-B/32, LPIPS, and for FID also Inception; or a folder "
        "with copies of these; default: by the model")  # fmt: skip
    add("--prompts", nargs="+", help="of --figure 5")
    add("--repeats", type=options.number(int, 1), default=20, help="of --lemma")
    options.add_method_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/pixels_eval")
    args = options.parse(parser, argv)
    args.weights = weights_of(args.pretrained_model_name_or_path)
    if args.metric_encoders is None:
        on_picturebook = options.is_picturebook_folder(args.pretrained_model_name_or_path)
        args.metric_encoders = "picturebook" if on_picturebook else "paper"
    if args.maps and not Path(args.maps).is_dir():
        raise InputError(f"--maps {args.maps} is no folder; give one with pictures of maps")
    if args.pairs and args.dataset in options.DRAWN:
        raise InputError("--pairs writes to --dataset: name a folder there")
    if not args.pairs and args.dataset not in options.DRAWN and not Path(args.dataset).is_dir():
        raise InputError(f"--dataset {args.dataset} is no folder; give one with pairs.json, or see --pairs")
    of_thresholds = ["pixels", *OTHER_THRESHOLDS] if args.figure in ("7", "10") else None
    args.methods = list(dict.fromkeys(args.methods or of_thresholds or METHOD_NAMES[: -len(OTHER_THRESHOLDS)]))
    say_unheeded(parser, args, ONLY_WITH)
    return args


def config_of(output: Path, args: argparse.Namespace, pairs: list = (), **settings: Any) -> dict[str, Any]:
    """What config.json is to hold (common.joining). Raises InputError if the folder holds rows of other pictures or
    settings; those of eval.tracks.pretrained_exemplar, which knows none of them, do not count."""
    rows = [row for row in run_rows(output) if row["method"] in METHOD_NAMES]
    pictures = {pair.id: pair.digest for pair in pairs}
    same = [name for name in vars(args) if name not in FREE]
    return joined_config(output, vars(args), same, rows, pictures=pictures, **settings)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output = Path(args.output_dir)
    if options.config_shown(args):
        return
    if args.pairs:
        from pixels.reproduction.pairs import build_pairs

        count = build_pairs(args.pairs, args.dataset, args.pair_count, args.seed, args.maps)
        print(f"{count} pairs in {Path(args.dataset) / 'pairs.json'}")
        return
    if args.answers:
        from pixels.reproduction.tables import print_ranks

        print_ranks(args.answers, output)
        return
    if args.table in ("1b", "overhead"):  # of participants, and of eval.bench
        from pixels.reproduction.tables import beside_published

        print(beside_published(args.table, {}))
        return
    from pixels.reproduction.pairs import find_pairs
    from pixels.reproduction.scoring import load_bench, load_pair

    pairs = find_pairs(args.dataset, args.split, args.full, args.map_white, args.limit)
    config = config_of(output, args, pairs)
    bench = load_bench(args)
    for pair in pairs:  # what is refused is refused before anything is written
        load_pair(pair, bench.size)
    write_config(output, config, sampling=asdict(bench.sampling), surgery=asdict(bench.surgery))
    if not args.lemma and args.figure in (None, "4", "7", "10"):
        if run_all(bench, pairs):
            report(bench, pairs)
    elif args.shard.index == 1:  # there are no rows of these to share
        from pixels.reproduction.figures import FIGURES
        from pixels.reproduction.lemma import lemma

        (lemma if args.lemma else FIGURES[args.figure])(bench, pairs)


def run_all(bench, pairs: list, name: str = "rows.jsonl") -> bool:
    """Every method on every pair of the shard that has no row yet; rows go to output/<name>. Whether all are there."""
    from tqdm import tqdm

    from common.images import save_png
    from pixels.reproduction.scoring import run_item

    args, output = bench.args, bench.output
    rows, done = output / name, {(row["method"], row["item"]) for row in run_rows(output)}
    methods = {pair.id: [one for one in args.methods if pair.truth or one not in OF_TRUTH] for pair in pairs}
    for pair in tqdm(args.shard.of(pairs), "items", disable=None):
        for method in [one for one in methods[pair.id] if (one, pair.id) not in done]:
            row, pictures = run_item(bench, pair, method)
            for name, picture in pictures.items():
                save_png(output / "pictures" / pair.id / f"{method if name == 'edited' else name}.png", picture)
            append_row(rows, row)
    return all_done(rows, [(method, pair.id, args.seed) for pair in pairs for method in methods[pair.id]], args.shard)


def report(bench, pairs: list) -> None:
    """results.json and grid.png of the items and methods at hand, and the tables on the screen."""
    from common import claims
    from common.images import grid, load_image, save_png
    from common.tables import by_method, score_table
    from pixels.backbones import select_timesteps
    from pixels.reproduction import tables
    from pixels.reproduction.scoring import frechet_distances

    args, output = bench.args, bench.output
    found = {(row["item"], row["method"]): row for row in run_rows(output)}
    others = dict.fromkeys(method for _, method in found if method not in METHOD_NAMES)  # pretrained
    methods = [*args.methods, *(m for m in others if all((pair.id, m) in found for pair in pairs))]
    if not all(pair.truth for pair in pairs):
        methods = [method for method in methods if method not in OF_TRUTH]
    rows = [found[pair.id, method] for pair in pairs for method in methods]
    summary = by_method(rows)
    for method, scores in frechet_distances(bench, pairs, methods).items():
        summary[method] |= scores
    write_json(output / "results.json", summary)
    columns = ["source", "exemplar_1", "map", *methods]
    sheet = [[load_image(output / "pictures" / pair.id / f"{name}.png") for name in columns] for pair in pairs[:12]]
    save_png(output / "grid.png", grid(sheet, [pair.kind or pair.id for pair in pairs[:12]], columns))
    print(score_table(summary), end="\n\n")
    if args.figure in ("7", "10"):
        count = len(select_timesteps(bench.model.scheduler, "cpu", bench.sampling))
        print(tables.threshold_areas(count, bench.surgery.schedule), end="\n\n")
    if args.table:
        measured_on = f"measured: {Path(args.dataset).name}, {Path(args.metric_encoders).name} encoders"
        print(tables.beside_published(args.table, {measured_on: summary}), end="\n\n")
    experiment = "pixels.compositions" if args.dataset == "compositions" else "exemplar_editing"
    judged = claims.tried("pixels", rows, "pixels.thresholds" if args.figure in ("7", "10") else experiment)
    print(claims.report(judged), end="\n\n")
    if args.user_study:
        ranked = [method for method in methods if method not in METHOD_NAMES[:6] or method == "paste"]
        print(f"open {tables.write_study(output, pairs, ranked, args.seed)}")
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


if __name__ == "__main__":
    main()
