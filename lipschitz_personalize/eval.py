"""Train the folder's methods on subjects, sample DreamBench's prompts, score: tables and figures of the paper.

    python -m lipschitz_personalize.eval --table 1                  # own rows inside the whole published table
    python -m lipschitz_personalize.eval --figure 2 4 5 --drift     # lambda against drift and scores


Without arguments: DreamBooth, plain, with prior preservation and with the penalty, on one picturebook subject.
An interrupted run goes on where it stopped: start it again with the same flags. --shard 1/8 to 8/8 share a run.
"""

import argparse
from pathlib import Path

from common.files import InputError, append_row, read_rows, write_json
from common.flags import check_handed_on, is_picturebook_folder, number, say_unheeded, show_config, weights_of
from common.runs import joined_config, make_parser, script, write_config
from common.shards import add_shard_flag, all_done
from lipschitz_personalize import options
from lipschitz_personalize.reproduction import plan

SETTINGS = ("pretrained_model_name_or_path", "weights", "dataset", "split", "num_images", "num_inference_steps",
            "guidance_scale", "metric_encoders", "prompts", "held_out_classes")  # fmt: skip

DRIFT = "eps_per_theta all"  # a score that --drift alone measures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--table", choices=("1", "2"), help="run the rows of this table that this folder owns")
    add("--figure", nargs="+", type=int, choices=(1, 2, 3, 4, 5), default=[], help="1: the toy; 2: drift over lambda; "
        "3: methods side by side; 4: scores over lambda; 5: pictures over lambda")  # fmt: skip
    add("--drift", action="store_true", help="also measure drift of samples and held-out classes")
    add("--held_out_classes", nargs="+", metavar="NAME", help="what drift is measured on; by default the dataset's "
        "classes but the subject's own")  # fmt: skip
    add("--methods", nargs="+", metavar="NAME", help=f"instead: {', '.join(plan.METHODS)}, each with @flag=value, ...")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--backbone", choices=options.BACKBONES, help="by default that of the model")
    add("--dataset", default="picturebook", help="picturebook, or a DreamBench folder with prompts_and_classes.txt")
    add("--split", choices=("validation", "test"), default="test", help="of the picturebook's subjects")
    add("--subjects", nargs="+", metavar="NAME", help="by default the first one; with --full all")
    add("--full", action="store_true", help="all subjects, all prompts, four pictures each (DreamBench's protocol)")
    add("--seeds", nargs="+", type=number(int, 0, 2**62), default=[0], help="one training per subject and seed")
    add("--prompts", type=number(int, 1), default=5, help="the first so many prompts; with --full all")
    add("--num_images", type=number(int, 1), default=1, help="pictures per prompt; with --full 4")
    options.add_sampling_flags(parser)
    add("--metric_encoders", help="picturebook, or a folder with clip-vit-base-patch32/ and dino-vits16/, and for "
        "the FID inception-2015-12-05.pt; by default the picturebook's for the picturebook, the published ones for "
        "other models")  # fmt: skip
    add_shard_flag(parser, "trainings")
    add("--keep_weights", action="store_true", help="keep every training's weights")
    add("--output_dir", default="outputs/lipschitz_personalize/eval", help="folder for results; what is done is kept")
    add("--device", choices=("cpu", "cuda"), help="a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what every training resolves to, and stop")
    add("--train_args", nargs=argparse.REMAINDER, default=[], help="everything after it goes to every training")
    args = parser.parse_args(argv)
    check_handed_on("--train_args", args.train_args)
    args.seeds = list(dict.fromkeys(args.seeds))
    if args.full:
        args.prompts, args.num_images = 10**6, 4
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    args.metric_encoders = args.metric_encoders or ("picturebook" if on_picturebook else "published")
    args.weights = weights_of(args.pretrained_model_name_or_path)
    if args.dataset == "picturebook" and not on_picturebook:
        raise InputError("--dataset picturebook is for the picturebook; give a DreamBench folder for other models")
    if args.dataset != "picturebook" and not (Path(args.dataset) / "prompts_and_classes.txt").is_file():
        raise InputError(f"--dataset {args.dataset} holds no prompts_and_classes.txt; give a DreamBench folder")
    if args.dataset == "picturebook" and args.held_out_classes:
        from common.picturebook.scenes import KINDS

        if unknown := [name for name in args.held_out_classes if name not in KINDS]:
            raise InputError(f"--held_out_classes {unknown[0]}: the picturebook knows {', '.join(KINDS)}")
    say_unheeded(parser, args, {"split": ("dataset", ["picturebook"])})
    return args


def report(args: argparse.Namespace, rows: list[dict]) -> None:
    """results.json, and tables and claims on the screen."""
    from common import claims
    from common.tables import by_method, score_table
    from lipschitz_personalize.reproduction import tables

    summary = by_method(rows, tables.COSTS)
    findings = claims.tried("lipschitz_personalize", rows)
    print(score_table(summary, "subjects x seeds"), end="\n\n")
    if args.table:
        called = f"measured, {args.dataset}, {args.metric_encoders} encoders"
        measured = {called: tables.of_methods(args.table, summary, plan.backbone_of(args))}
        print(tables.beside_published(args.table, measured), end="\n\n")
    print(claims.report(findings), end="\n\n")
    write_json(Path(args.output_dir) / "results.json",
               {"overall": summary, "claims": [claims.as_json(one) for one in findings]})  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    names, output = plan.wanted(args), Path(args.output_dir)
    settings = {name: vars(options.parse([*plan.training_flags(args, name), "--print_config"])) for name in names}
    if show_config(args, methods=settings):
        return
    if 1 in args.figure and args.shard.index == 1:
        from lipschitz_personalize.reproduction import toy

        toy.main(["--output_dir", str(output / "figure_1")])
    if not names:
        return
    joined_config(output, vars(args), SETTINGS, methods=settings)  # is refused before a model is loaded
    before = [row for row in read_rows(output / "rows.jsonl") if row["method"] in names]
    if args.drift and any(DRIFT not in row.get("metrics", {}) for row in before):
        raise InputError(f"{output} holds rows that were measured without --drift; leave it out, or take another "
                         "--output_dir")  # fmt: skip

    from tqdm import tqdm

    from common.joining import digest_of_data
    from lipschitz_personalize.reproduction import figures
    from lipschitz_personalize.reproduction.rows import drop_weights, read_bench, run_item

    bench = read_bench(args)
    pictures = {one.name: digest_of_data([one.class_name, bench.templates(one)], one.paths) for one in bench.subjects}
    write_config(output, joined_config(output, vars(args), SETTINGS, methods=settings, pictures=pictures))
    done = {(row["method"], row["item"]) for row in read_rows(output / "rows.jsonl")}
    items = [(name, subject, seed) for subject in bench.subjects for seed in args.seeds for name in names]
    last = None
    for name, subject, seed in tqdm(args.shard.of(items), "trainings", disable=None):
        if (subject.class_name, seed) != last:  # the base's pictures for drift are the same for all methods
            bench.kept.clear()
            last = (subject.class_name, seed)
        if (name, f"{subject.name}/{seed}") not in done:
            append_row(output / "rows.jsonl", run_item(bench, name, subject, seed))
        if not args.keep_weights:
            drop_weights(bench.folder(name, subject, seed))
    at_hand = [(name, f"{subject.name}/{seed}", seed) for name, subject, seed in items]
    if not all_done(output / "rows.jsonl", at_hand, args.shard):
        return
    rows = [row for row in read_rows(output / "rows.jsonl") if (row["method"], row["item"], row.get("seed")) in at_hand]
    report(args, rows)
    figures.draw(bench, names, rows)
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


if __name__ == "__main__":
    main()
