"""Train methods on subjects, paint every subject into every scene, and print the scores beside the paper's tables.

    python -m image_inpaint.eval                          two subjects in six scenes, untuned against LoRA
    python -m image_inpaint.eval --table 2 --items 240    12 subjects in 20 scenes, all rows of Table 2
    python -m image_inpaint.eval --figure 4               the ablation, drawn
    python -m image_inpaint.eval --storage                file sizes of low-rank updates of Stable Diffusion

An interrupted run goes on where it stopped: start it again with the same flags. --shard 1/8 to 8/8 share a run.
"""

import argparse
import shlex
from pathlib import Path

from common.files import InputError, append_row, done_items, read_rows, write_json
from common.flags import check_handed_on, is_picturebook_folder, number, say_unheeded, show_config
from common.runs import joined_config, make_parser, measure, script, write_config
from common.shards import add_shard_flag, all_done
from image_inpaint import options
from image_inpaint.reproduction.methods import DEFAULT, FIGURES, METHODS, REFERENCES, TABLES, Painter

# Flags that change no row (or those of one method); of all others a folder knows one value.
FREE = ("methods", "items", "table", "figure", "storage", "dreambooth", "output_dir", "device", "print_config",
        "no_prior_model", "shard")  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, help="what to run; untuned and lora by default")
    add("--table", choices=("1", "2", "3"), help="run the rows of this table of the paper, and print them inside it")
    add("--figure", nargs="+", choices=("2", "3", "4"), default=[], help="draw these figures of the paper likewise")
    add("--storage", action="store_true", help="print what low-rank updates of Stable Diffusion take, and stop")
    add("--training_flags", default="", help='flags handed on to train.py, such as "--max_train_steps 100 --rank 4"')
    add("--no_prior_model", help="of method no_prior: the model/ of train.py --stage pretrain --prior none")
    add("--text_model", help="of sd_caption (paper: Stable Diffusion's inpainting model); on the picturebook its own")
    add("--captioner", default="blip", help="of your own pictures: blip (Sec. 5.3), vit-gpt2 (Sec. 5.4), folder or id")
    add("--text_guidance_scale", type=number(float, 0), help="of method sd_caption; by default diffusers' "
        f"{options.TEXT_GUIDANCE:g}, on the picturebook {options.PICTUREBOOK_TEXT_GUIDANCE:g}")  # fmt: skip
    add("--dreambooth", metavar="FOLDER", help="of figure 3: pictures drawn by DreamBooth, <subject>/*.png")
    add("--metric_encoders", choices=("picturebook", "paper"), help="paper: DINO ViT-S/16, CLIP ViT-B/32, Inception; "
        "by default those that suit the model")  # fmt: skip
    add = parser.add_argument_group("subjects and scenes").add_argument
    add("--subjects", help="a folder with a folder of photographs per subject; by default the picturebook's twelve")
    add("--scenes", help="a folder of pictures <name>.png with holes <name>_mask.png; by default the picturebook's")
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--items", type=number(int, 1), default=12, help="pictures per method (the paper: 240 = 12 subjects x 20)")
    add_shard_flag(parser, "subjects and methods")
    options.add_box_flags(parser)
    options.add_sampling_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/image_inpaint_eval")
    args = parser.parse_args(argv)
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    if bool(args.subjects) != bool(args.scenes):
        raise InputError("--subjects and --scenes belong together: give both, or neither for the picturebook's")
    if not args.subjects and not on_picturebook and not args.print_config and not args.storage:
        raise InputError("give --subjects and --scenes; only the picturebook brings its own")
    for flag in ("subjects", "scenes", "dreambooth"):
        if getattr(args, flag) and not Path(getattr(args, flag)).is_dir():
            raise InputError(f"--{flag} {getattr(args, flag)} is no folder")
    references = [] if args.methods or args.subjects else REFERENCES
    chosen = [*(args.methods or []), *TABLES.get(args.table, [])]
    chosen += [name for figure in args.figure for name in FIGURES[figure] if name != "dreambooth"]
    args.methods = list(dict.fromkeys([*references, *(chosen or DEFAULT)]))
    if "no_prior" in args.methods and not args.no_prior_model:
        raise InputError("--methods no_prior needs --no_prior_model, made by train.py --stage pretrain --prior none")
    if "3" in args.figure and not args.dreambooth:
        raise InputError("--figure 3 needs --dreambooth, a folder <subject>/*.png of DreamBooth's pictures")
    check_training_flags(args)
    text_model = "picturebook" if on_picturebook else "stable-diffusion-v1-5/stable-diffusion-inpainting"
    args.text_model = args.text_model or text_model
    if args.text_guidance_scale is None:
        args.text_guidance_scale = options.PICTUREBOOK_TEXT_GUIDANCE if on_picturebook else options.TEXT_GUIDANCE
    args.weights = options.weights_of_all(args.pretrained_model_name_or_path)
    args.metric_encoders = args.metric_encoders or ("picturebook" if on_picturebook else "paper")
    options.check_sampling(args)
    own = dict.fromkeys(("boxes", "detector", "detector_threshold", "labels", "captioner"), ("subjects", True))
    say_unheeded(parser, args, {"split": ("subjects", [None]), **own})
    return args


def check_training_flags(args: argparse.Namespace) -> None:
    """Raises InputError for --training_flags that train.py refuses, before anything is paid for."""
    try:
        words = shlex.split(args.training_flags)
    except ValueError as problem:
        raise InputError(f"--training_flags {args.training_flags!r} cannot be read: {problem}") from None
    check_handed_on("--training_flags", words)
    if words:
        model = ["--pretrained_model_name_or_path", args.pretrained_model_name_or_path]
        options.parse_train([*model, *words, "--print_config"])


def read_data(args: argparse.Namespace):
    """(subjects, items)."""
    from image_inpaint.data import benchmark

    if args.subjects:
        subjects, rooms = benchmark.folder_subjects(args), benchmark.folder_rooms(Path(args.scenes))
        count, each = benchmark.choose(len(subjects), len(rooms), args.items)
        return subjects[:count], benchmark.folder_items(subjects[:count], rooms[:each])
    count, each = benchmark.choose(benchmark.SUBJECTS, benchmark.SCENES, args.items)
    subjects = benchmark.picturebook_subjects(args.split, count)
    return subjects, benchmark.picturebook_items(subjects, each, args.split)


def keep_config(args: argparse.Namespace, painter, items=()) -> None:
    """config.json, with what each method is trained with. InputError if the folder holds rows of other pictures or
    settings, or of a method that was trained otherwise."""
    methods = {name: painter.settings(name) for name in args.methods}
    same = [name for name in vars(args) if name not in FREE]
    pictures = {item.id: item.digest for item in items}
    config = joined_config(args.output_dir, vars(args), same, methods=methods, pictures=pictures)
    write_config(args.output_dir, config, dataset=args.subjects or "picturebook")


def picture_path(output: str | Path, item_id: str, method: str) -> Path:
    return Path(output) / "pictures" / item_id / f"{method}.png"


def keep_pictures(output: Path, item, method: str, picture) -> None:
    """A painted picture, and what it was made from."""
    from common.images import save_png
    from image_inpaint.samples import with_hole

    given = {"hole": with_hole(item.source, item.fill), "reference": item.reference, "truth": item.truth}
    for name, one in {method: picture, **given}.items():
        if one is not None:
            save_png(picture_path(output, item.id, name), one)


def run_all(args: argparse.Namespace, painter) -> tuple[list, list[dict]]:
    """Train, paint and score what is missing of args.methods; one row per picture and method.

    painter: what trains and paints these methods, a methods.Painter or its like. Returns all items and their rows; no
    rows for a shard that ends before others.
    """
    from tqdm import tqdm

    from common.images import load_image
    from image_inpaint.reproduction.scoring import anchors, item_scores, load_eyes

    subjects, items = read_data(args)
    keep_config(args, painter, items)
    output = Path(args.output_dir)
    rows = output / "rows.jsonl"
    done = {method: done_items(rows, method) for method in args.methods}
    mine = args.shard.of([(subject.name, method) for subject in subjects for method in args.methods])
    for subject in tqdm(subjects, "subjects", disable=None):
        own = [item for item in items if item.subject == subject.name]
        missing = {method: [item for item in own if item.id not in done[method]]
                   for method in args.methods if (subject.name, method) in mine}  # fmt: skip
        if not any(missing.values()):
            continue
        eyes = load_eyes(args.metric_encoders, args.device)
        scale = anchors(subject, items, eyes)
        for method, wanted in missing.items():
            if not wanted:
                continue
            weights, about = painter.train(method, subject)
            with measure() as cost:
                painted = painter.paint(method, weights, wanted, subject)
            for item, picture in zip(wanted, painted, strict=True):
                keep_pictures(output, item, method, picture)
                kept = load_image(picture_path(output, item.id, method))  # scored as the file holds it
                append_row(rows, {
                    "paper": painter.paper, "method": method, "item": item.id, "seed": args.seed,
                    "metrics": item_scores(item, subject, kept, eyes, scale) | about, "condition": item.condition,
                    "seconds": cost.seconds / len(painted), "peak_memory_mb": cost.peak_memory_mb,
                })  # fmt: skip
    every = [(method, item.id, args.seed) for subject in subjects for method in args.methods
             for item in items if item.subject == subject.name]  # fmt: skip
    found = read_rows(rows) if all_done(rows, every, args.shard) else []
    return items, [row for row in found if row["item"] in {item.id for item in items}]


def sets_of(args: argparse.Namespace, items: list) -> dict[str, dict]:
    """FID and KID of each method's pictures. Real pictures: the true ones where they are known, else the scenes,
    each once however many subjects stand in it."""
    from common.images import load_image
    from image_inpaint.reproduction.scoring import load_eyes, set_scores

    eyes = load_eyes(args.metric_encoders, args.device)
    real = list({id(picture): picture for picture in (item.truth or item.source for item in items)}.values())
    made = {method: [load_image(picture_path(args.output_dir, item.id, method)) for item in items]
            for method in args.methods}  # fmt: skip
    return {method: set_scores(real, pictures, eyes) for method, pictures in made.items()}


def draw_figure(args: argparse.Namespace, items: list, columns: list[str], path: Path, rows: int = 8) -> None:
    """A grid: source, hole, reference, and one column per method."""
    from common.images import grid, list_pictures, load_image, save_png
    from image_inpaint.samples import with_hole

    lines = []
    for item in items[:: max(1, len(items) // rows)][:rows]:
        files = [picture_path(args.output_dir, item.id, column) if column != "dreambooth"
                 else list_pictures(Path(args.dreambooth) / item.subject)[0] for column in columns]  # fmt: skip
        cells = [item.reference, *map(load_image, files)]
        lines.append([item.source, with_hole(item.source, item.fill), *(one.resize(item.source.size) for one in cells)])
    save_png(path, grid(lines, column_labels=["source", "hole", "reference", *columns]))


def report(args: argparse.Namespace, items: list, rows: list[dict]) -> None:
    """results.json, grid.png, figures, and the tables on the screen."""
    from common.tables import by, by_method, by_subject, score_table
    from image_inpaint.reproduction.tables import beside_published

    output = Path(args.output_dir)
    overall, sets = by_method(by_subject(rows)), sets_of(args, items)
    conditions = {condition: by_method(by_subject(own)) for condition, own in by(rows, "condition").items()}
    for method, found in sets.items():
        overall[method] |= found
    draw_figure(args, items, args.methods, output / "grid.png")
    for figure in args.figure:
        draw_figure(args, items, FIGURES[figure], output / f"figure_{figure}.png")
    print(score_table(overall, "subjects"), end="\n\n")
    for n, real in {(score["n"], score["n_real"]) for found in sets.values() for score in found.values()}:
        print(f"FID and KID: n = {n} generated and {real} real pictures\n")
    for condition, found in conditions.items():
        shown = {method: {key: v for key, v in values.items() if key.startswith(("DINO", "thing_seen", "psnr_thing"))}
                 for method, values in found.items()}  # fmt: skip
        print(f"{condition}\n{score_table(shown, 'subjects')}", end="\n\n")
    if args.table:
        called = f"measured: {Path(args.subjects or 'picturebook').name}, {args.metric_encoders} encoders"
        print(beside_published(args.table, {called: overall}), end="\n\n")
    write_json(output / "results.json", {"overall": overall, "by_condition": conditions})
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args):
        return
    if args.storage:
        from image_inpaint.reproduction.storage import table

        print(table())
        return
    items, rows = run_all(args, Painter(args))
    if rows:
        report(args, items, [row for row in rows if row["method"] in args.methods])


if __name__ == "__main__":
    main()
