"""Run inversions and engines over a PIE-Bench folder, and print what they score beside the paper's tables.

    python -m spdinv.eval --inversions ddim spd --engines p2p
    python -m spdinv.eval --table 1                           all rows of Table 1
    python -m spdinv.eval --experiment noise_gap              what the paper argues beside its tables

An interrupted run goes on where it stopped: start it again with the same flags. --shard 1/8 to 8/8 share a run.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from common.files import InputError, append_row, done_items, read_rows, write_json
from common.flags import as_flags, number, say_unheeded, weights_of
from common.runs import joined_config, make_parser, script, write_config
from common.shards import add_shard_flag, all_done
from common.tables import published_table
from spdinv import options, presets
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS, OWN
from spdinv.reproduction import rows
from spdinv.reproduction.baselines import run as baselines
from spdinv.reproduction.experiments import EXPERIMENTS, Task
from spdinv.reproduction.items import Bench, read_items, run_item, save_grid

TABLES = ("1", "2", "3", "s1", "s2")
# What all rows of one folder have in common, beside the settings of each method; --full has the quick subset's items
# among its own.
SAME = (
    "pretrained_model_name_or_path", "weights", "dataset", "split", "metric_encoders", "resolution", "mixed_precision",
    "seed", "adapter", "elite", "elite_clip", "elite_token_index", "elite_key_values", "reference_image_path",
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dataset", default="picturebook", help="a PIE-Bench folder, or picturebook: the quick subset of its own")
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--full", action="store_true", help="all items of the picturebook's benchmark, not the quick subset")
    add("--inversions", nargs="+", choices=tuple(INVERSIONS), help="each is run; ddim and spd by default, and of "
        f"a table all that it has: {options.titled(INVERSIONS)}")  # fmt: skip
    add("--engines", nargs="+", choices=tuple(ENGINES)[1:], help="the same; p2p by default")
    add("--edit_types", nargs="+", choices=list("0123456789"), help="of PIE-Bench; all, and of table 3 0, by default")
    add("--limit", type=number(int, 1), help="take only so many items")
    add_shard_flag(parser, "items")
    add("--table", choices=TABLES, help="run the rows of this table of the paper, and print them inside it")
    add("--presets", nargs="+", choices=presets.PRESETS, help="run under each of these in place of --preset; of a "
        "table, only rows with the paper's own inversion: no other was published with extras")  # fmt: skip
    add("--null_source_prompt", action="store_true", help='invert and redraw the source under "", as published '
        "of ddim and direct under masactrl do; spdinv.infer has --source_prompt for it")  # fmt: skip
    add("--factorial", action="store_true", help="run ddim and spd under p2p with every combination of extras, 32 "
        "edits per item, and print how much each explains")  # fmt: skip
    add("--experiment", choices=EXPERIMENTS, help="run this instead, in a folder of its own inside --output_dir")
    add("--drawing_scale", nargs="+", type=number(float, 0), metavar="SCALE", help="of noise_gap and premise: guidance "
        "scales at which their pictures are drawn; default: 1 and --guidance_scale, of premise the latter")  # fmt: skip
    add("--batch_size", type=number(int, 1), default=8, help="pictures inverted together by an experiment")
    add("--metric_encoders", help="picturebook, pie (those of the published tables), or a folder with copies of these; "
        "default: picturebook for the picturebook, pie for other models")  # fmt: skip
    options.add_method_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/spdinv_eval")
    baselines.add_flags(parser)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked. Raises InputError for those that do not go together, before anything is paid for."""
    parser = make_parser(__doc__.splitlines()[0])
    add_flags(parser)
    args, given = options.parse(parser, argv)
    if args.dataset != "picturebook" and not (Path(args.dataset) / "mapping_file.json").is_file():
        raise InputError(f"--dataset {args.dataset} holds no mapping_file.json; give a PIE-Bench folder")
    if args.table == "s1":
        args.experiment = args.experiment or "noise_gap"
    if args.experiment and (args.factorial or args.presets or args.table not in (None, "s1")):
        raise InputError(f"--experiment {args.experiment} runs by itself: leave out --table, --presets and --factorial")
    if args.drawing_scale and args.experiment not in ("noise_gap", "premise"):
        raise InputError("--drawing_scale is for --experiment noise_gap and premise: leave it out")
    if args.experiment and baselines.chosen(args):
        raise InputError("--baselines edit, and an experiment inverts: leave out --baselines or --experiment")
    if args.experiment and args.inversion_steps:
        raise InputError("--inversion_steps is for edits: an experiment compares level with level, so leave it out")
    if args.table == "3" and not args.edit_types:
        args.edit_types = ["0"]
    args.presets = args.presets or [args.preset]
    args.weights = weights_of(args.pretrained_model_name_or_path, *(args.adapter or ()), *filter(None, [args.elite]))
    if args.metric_encoders is None:
        on_picturebook = options.is_picturebook_folder(args.pretrained_model_name_or_path)
        args.metric_encoders = "picturebook" if on_picturebook else "pie"
    methods = methods_of(args).values()
    engines, inversions = [method.engine for method in methods], [method.inversion for method in methods]
    options.check(args, given, engines, inversions)
    if args.null_source_prompt and (args.experiment or "p2p" in engines):
        raise InputError("--null_source_prompt is for edits under masactrl and pnp (p2p aligns the words of both "
                         "prompts): leave it out, or give --engines")  # fmt: skip
    of_picturebook = dict.fromkeys(("split", "full"), ("dataset", ["picturebook"]))
    own = {"batch_size": ("experiment", True), "preset": ("presets", [[args.preset]])}
    say_unheeded(parser, args, own | of_picturebook)
    return args


def methods_of(args: argparse.Namespace) -> dict[str, options.Method]:
    """Everything that is to be run, by name."""
    if not args.experiment:
        methods = rows.plan(args)
        if not methods:
            raise InputError(f"table {args.table} has no row with these --inversions and --engines; leave them out")
        return methods
    engines = args.engines or ["p2p"] if args.experiment == "premise" else ["none"]
    inversions = args.inversions or ["ddim", *(["exact"] if args.experiment != "convergence" else []), OWN]
    return dict(rows.named(args, inversion, engine) for engine in engines for inversion in inversions)


def config_at_paper_scale(args: argparse.Namespace, argv: list[str]) -> dict:
    """What all flags resolve to. Of a table, every row with the paper's model and data, unless others were named."""
    scale = published_table("spdinv", args.table)["scale"] if args.table else {}
    given = {word.split("=")[0].removeprefix("--") for word in argv}
    scale = {name: value for name, value in scale.items() if name not in given}
    flags = as_flags({name: scale.get(name) for name in ("pretrained_model_name_or_path", "metric_encoders")})
    args = parse([*flags, *argv])
    if args.table and not args.experiment:
        found = {"rows": {preset: [row.config() for row in rows.table_rows(args, preset)] for preset in args.presets}}
    else:
        found = {"methods": {name: vars(method) for name, method in methods_of(args).items()}}
    return {**vars(args), **scale, **found}


def config_of(
    output_dir: Path, args: argparse.Namespace, methods: dict[str, options.Method], items=(), folder: Path = Path()
) -> dict:
    """What config.json is to hold: the flags, and the settings of every method that the folder has rows of. Raises
    InputError if it has rows of other pictures or prompts, another model, or other settings of a method."""
    from common.data import edit_digest

    settings = {name: vars(method) for name, method in methods.items()}
    pictures = {item.id: edit_digest(item, folder) for item in items}
    return joined_config(output_dir, vars(args), SAME, methods=settings, pictures=pictures)


@script
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    if args.print_config:
        print(json.dumps(config_at_paper_scale(args, argv), indent=2))
        return
    methods, others = methods_of(args), baselines.chosen(args)
    output = Path(args.output_dir) / (args.experiment or "")
    folder, items = read_items(args)
    config = config_of(output, args, methods | others, items, folder)

    from tqdm import tqdm

    from common.encoders import load_encoders
    from common.images import load_image, save_png
    from spdinv.customised import load, words_of
    from spdinv.customised.elite import add_subject

    if args.elite and not any(options.PLACEHOLDER in item.target_prompt for item in items):
        raise InputError(f"no target prompt of {folder} has the word {options.PLACEHOLDER}, ELITE's subject; put it in")
    pipe, resolution, elite = load(args)
    encoders = load_encoders(args.metric_encoders, args.device)
    write_config(output, config)
    if args.experiment:
        experiment = importlib.import_module(f"spdinv.reproduction.experiments.{args.experiment}")
        results = experiment.run(Task(args, methods, pipe, resolution, items, encoders, output))
        if results:
            write_json(output / "results.json", results)
            print(f"{len(items)} pictures; everything in {output}")
        return
    bench = Bench(pipe, encoders, folder, resolution, args.seed)
    wanted = methods | (baselines.load(args, pipe, elite, folder) if others else {})
    done = {name: done_items(output / "rows.jsonl", name) for name in wanted}
    for item in tqdm(args.shard.of(items), "items", disable=None):
        if elite and not args.reference_image_path:
            add_subject(pipe, elite, load_image(item.image_path), words_of(args))
        inverted: dict = {}
        for name in wanted:
            if item.id in done[name]:
                continue
            row, pictures = run_item(bench, item, wanted[name], name, inverted)
            files = {"source": "source", "reconstruction": f"{name}_reconstruction", "edited": name}
            for shown, picture in pictures.items():
                save_png(output / "pictures" / item.id / f"{files[shown]}.png", picture)
            append_row(output / "rows.jsonl", row)
    if all_done(output / "rows.jsonl", [(name, item.id, args.seed) for item in items for name in wanted], args.shard):
        report(args, items, list(wanted), "picturebook" if args.dataset == "picturebook" else folder.name)


def report(args: argparse.Namespace, items: list, methods: list[str], dataset: str) -> None:
    """results.csv, results.json and grid.png of the items and methods at hand, and the tables on the screen."""
    from common import claims
    from common.tables import by, by_method, score_table
    from spdinv.reproduction import factorial, tables
    from spdinv.reproduction.experiments import draw

    output = Path(args.output_dir)
    found = {(row["item"], row["method"]): row for row in read_rows(output / "rows.jsonl")}
    measured = [found[item.id, method] for item in items for method in methods]
    types = sorted(by(measured, "edit_type").items())
    summary = {"overall": by_method(measured), "by_edit_type": {kind: by_method(of_kind) for kind, of_kind in types}}
    tables.write_csv(output / "results.csv", measured)
    save_grid(output, items, ["source", *methods[:16]])

    if len(args.presets) > 1 and not args.table:
        draw.what_helps(output / "presets.png", {name: summary["overall"][name] for name in rows.order(methods)})

    wanted = ("edit_success", "psnr_truth", "structure/pie_official", "psnr/pie_official", "clip_whole/pie_official")
    print(tables.edit_type_table(summary["by_edit_type"], wanted), end="\n\n")
    print(score_table(summary["overall"]), end="\n\n")
    if args.table:
        called = {preset: f"measured, {preset}: {dataset}, {args.metric_encoders} encoders" for preset in args.presets}
        lines = rows.measured_lines(args, summary["overall"])
        print(tables.beside_published(args.table, {called[preset]: lines[preset] for preset in called}), end="\n\n")
        for row in rows.table_rows(args, args.preset):
            if row.needs:
                print(f"not run: {' '.join(row.label)} ({row.needs})")
    judged = claims.tried("spdinv", measured)
    summary["claims"] = [claims.as_json(one) for one in judged]
    if judged:
        print(claims.report(judged), end="\n\n")
    if args.factorial:
        cells = {cell: name for cell, (name, _) in rows.factorial(args).items()}
        summary["factorial"] = factorial.effects(measured, cells)
        print(factorial.table(summary["factorial"]), end="\n\n")
    write_json(output / "results.json", summary)
    print(f"{len(measured)} rows; everything in {output}, pictures in {output / 'grid.png'}")


if __name__ == "__main__":
    main()
