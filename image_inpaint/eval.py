"""Train methods on subjects, paint every subject into every scene, and print the scores beside the paper's tables.

    python -m image_inpaint.eval                          two subjects in six scenes, untuned against LoRA
    python -m image_inpaint.eval --table 2 --items 240    12 subjects in 20 scenes, all rows of Table 2
    python -m image_inpaint.eval --figure 4               the ablation, drawn
    python -m image_inpaint.eval --storage                file sizes of low-rank updates of Stable Diffusion

An interrupted run goes on where it stopped: start it again with the same flags.
"""

import argparse
import hashlib
import json
from pathlib import Path

from common.flags import PICTUREBOOK, is_picturebook_folder, number
from common.runs import (
    InputError,
    append_row,
    done_items,
    make_parser,
    measure,
    read_json,
    read_rows,
    script,
    write_config,
    write_json,
)  # fmt: skip
from image_inpaint import options
from image_inpaint.reproduction.methods import DEFAULT, FIGURES, METHODS, REFERENCES, TABLES

SAME = ("pretrained_model_name_or_path", "weights", "subjects", "scenes", "split", "metric_encoders", "seed",
        "no_prior_model", "training_flags", "scheduler", "num_inference_steps", "guidance_scale", "posterior",
        "mask_resize", "composite", "feather", "context", "mixed_precision", "boxes", "detector", "detector_threshold",
        "labels", "text_model", "text_guidance_scale", "captioner")  # fmt: skip


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("subjects and scenes").add_argument
    add("--subjects", help="a folder with a folder of photographs per subject; by default the picturebook's twelve")
    add("--scenes", help="a folder of pictures <name>.png with holes <name>_mask.png; by default the picturebook's")
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--items", type=number(int, 1), default=12, help="pictures per method (the paper: 240 = 12 subjects x 20)")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, help="what to run; untuned and lora by default")
    add("--table", choices=("1", "2", "3"), help="run the rows of this table of the paper, and print them inside it")
    add("--figure", nargs="+", choices=("2", "3", "4"), help="draw these figures of the paper from such pictures")
    add("--storage", action="store_true", help="print what low-rank updates of Stable Diffusion take, and stop")
    add("--training_flags", default="", help='flags handed on to train.py, such as "--max_train_steps 100 --rank 4"')
    add("--no_prior_model", help="of method no_prior: the model/ of train.py --stage pretrain --prior none")
    add("--text_model", help="of method sd_caption (the paper: Stable Diffusion's inpainting model); the picturebook's "
        "text-to-image model on the picturebook")  # fmt: skip
    add(
        "--captioner", default="blip", help="of your own pictures: blip (Sec. 5.3), vit-gpt2 (Sec. 5.4), a folder or id"
    )
    add("--text_guidance_scale", type=number(float, 0), help="of method sd_caption; by default diffusers' "
        f"{options.TEXT_GUIDANCE:g}, on the picturebook {options.PICTUREBOOK_TEXT_GUIDANCE:g}")  # fmt: skip
    add("--dreambooth", metavar="FOLDER", help="of figure 3: pictures drawn by DreamBooth, <subject>/*.png")
    add("--metric_encoders", choices=("picturebook", "paper"), help="paper: DINO ViT-S/16, CLIP ViT-B/32, Inception; "
        "by default those that suit the model")  # fmt: skip
    add_data_flags(parser)
    options.add_box_flags(parser)
    options.add_sampling_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/image_inpaint_eval")
    args = parser.parse_args(argv)
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    if bool(args.subjects) != bool(args.scenes):
        raise InputError("--subjects and --scenes belong together: give both, or neither for the picturebook's")
    if not args.subjects and not on_picturebook and not args.print_config and not args.storage:
        raise InputError("give --subjects and --scenes; only the picturebook brings its own")
    for flag, folder in (("subjects", args.subjects), ("scenes", args.scenes), ("dreambooth", args.dreambooth)):
        if folder and not Path(folder).is_dir():
            raise InputError(f"--{flag} {folder} is no folder")
    chosen = dict.fromkeys(args.methods or [])
    if args.table:
        chosen |= dict.fromkeys(TABLES[args.table])
    for figure in args.figure or []:
        chosen |= dict.fromkeys(name for name in FIGURES[figure] if name != "dreambooth")
    references = [] if args.methods or args.subjects else REFERENCES
    args.methods = [*references, *(chosen or DEFAULT)]
    if "no_prior" in args.methods and not args.no_prior_model:
        raise InputError("--methods no_prior needs --no_prior_model, made by train.py --stage pretrain --prior none")
    if "3" in (args.figure or []) and not args.dreambooth:
        raise InputError("--figure 3 needs --dreambooth, a folder <subject>/*.png of DreamBooth's pictures")
    args.text_model = args.text_model or (
        "picturebook" if on_picturebook else "stable-diffusion-v1-5/stable-diffusion-inpainting"
    )
    if args.text_guidance_scale is None:
        args.text_guidance_scale = options.PICTUREBOOK_TEXT_GUIDANCE if on_picturebook else options.TEXT_GUIDANCE
    args.weights = weights_of(args.pretrained_model_name_or_path)
    args.metric_encoders = args.metric_encoders or ("picturebook" if on_picturebook else "paper")
    options.check_sampling(args)
    return args


def weights_of(name: str) -> str | None:
    """Twelve digits of a local model's networks, so that rows of other weights are not mixed in; None of a hub id."""
    root, digest = PICTUREBOOK if name == "picturebook" else Path(name).expanduser(), hashlib.sha256()
    parts = ("unet", "image_encoder", "inpaint_unet", "inpaint_image_encoder")
    for path in sorted(path for part in parts for path in (root / part).glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12] if root.is_dir() else None


def read_data(args: argparse.Namespace):
    """(subjects, items)."""
    from image_inpaint.data import benchmark

    if args.subjects:
        subjects = benchmark.folder_subjects(Path(args.subjects), args)
        scenes = len(benchmark.folder_items(subjects[:1], Path(args.scenes), 10**6))
        count, each = benchmark.choose(len(subjects), scenes, args.items)
        return subjects[:count], benchmark.folder_items(subjects[:count], Path(args.scenes), each)
    count, each = benchmark.choose(benchmark.SUBJECTS, benchmark.SCENES, args.items)
    subjects = benchmark.picturebook_subjects(args.split, count)
    return subjects, benchmark.picturebook_items(subjects, each, args.split)


def check_same_settings(output: Path, args: argparse.Namespace) -> None:
    """Raises InputError if the folder holds rows of other pictures or settings."""
    if not (output / "rows.jsonl").exists():
        return
    before, now = read_json(output / "config.json"), vars(args)
    without_prior = done_items(output / "rows.jsonl", "no_prior")
    for name in SAME:
        if name == "feather" and not args.composite or name == "no_prior_model" and not without_prior:
            continue  # nothing in the folder depends on it
        if before.get(name) != now[name]:
            raise InputError(f"{output} holds results with another --{name} ({before.get(name)}); take the same one, "
                             "or another --output_dir")  # fmt: skip


def picture_path(output: Path, item_id: str, method: str) -> Path:
    return output / "pictures" / item_id / f"{method}.png"


def keep_picture(output: Path, item, subject, method: str, picture, eyes, scale=None) -> dict:
    """Write a painted picture, with what it was made from, and score it as its file holds it; half of its row. scale:
    scoring.anchors of the subject."""
    from common.images import load_image, save_png
    from image_inpaint.reproduction.scoring import item_scores
    from image_inpaint.samples import with_hole

    path = picture_path(output, item.id, method)
    save_png(path, picture)
    given = {"hole": with_hole(item.source, item.fill), "reference": item.reference, "truth": item.truth}
    for name, one in given.items():
        if one is not None:
            save_png(path.with_name(f"{name}.png"), one)
    scores = item_scores(item, subject, load_image(path), eyes, scale)
    return {"method": method, "item": item.id, "metrics": scores, "condition": item.condition}


def run_all(args: argparse.Namespace, subjects: list, items: list) -> list[dict]:
    """Train, paint and score what is missing; one row per picture and method. Returns all rows of these items."""
    from tqdm import tqdm

    from image_inpaint.reproduction.methods import Painter, train_method, training_scores
    from image_inpaint.reproduction.scoring import anchors, load_eyes

    output, painter, eyes, scales = Path(args.output_dir), Painter(args), None, {}
    rows = output / "rows.jsonl"
    done = {method: done_items(rows, method) for method in args.methods}
    for subject in tqdm(subjects, "subjects", disable=None):
        for method in args.methods:
            missing = [item for item in items if item.subject == subject.name and item.id not in done[method]]
            if not missing:
                continue
            eyes = eyes or load_eyes(args.metric_encoders, args.device)
            if subject.name not in scales:
                scales[subject.name] = anchors(subject, items, eyes)
            weights = train_method(args, method, subject) if METHODS[method].training else None
            about = training_scores(weights) if weights else {}
            with measure() as cost:
                painted = painter.paint(method, weights, missing, subject)
            for item, picture in zip(missing, painted, strict=True):
                row = keep_picture(output, item, subject, method, picture, eyes, scales[subject.name])
                append_row(rows, {
                    **row, "paper": "image_inpaint", "seed": args.seed, "metrics": row["metrics"] | about,
                    "seconds": cost.seconds / len(missing), "peak_memory_mb": cost.peak_memory_mb,
                })  # fmt: skip
    known = {item.id for item in items}
    return [row for row in read_rows(rows) if row["item"] in known and row["method"] in args.methods]


def sets_of(args: argparse.Namespace, items: list) -> dict[str, dict]:
    """FID and KID of each method's pictures. Real pictures: the true ones where they are known, else the scenes,
    each once however many subjects stand in it."""
    from common.images import load_image
    from image_inpaint.reproduction.scoring import load_eyes, set_scores

    eyes, output = load_eyes(args.metric_encoders, args.device), Path(args.output_dir)
    shown = [item.truth or item.source for item in items]
    real = list({id(picture): picture for picture in shown}.values())
    return {method: set_scores(real, [load_image(picture_path(output, item.id, method)) for item in items], eyes)
            for method in args.methods}  # fmt: skip


def draw_figure(args: argparse.Namespace, items: list, columns: list[str], path: Path, rows: int = 8) -> None:
    """A grid: source, hole, reference, and one column per method."""
    from common.images import grid, list_pictures, load_image, save_png
    from image_inpaint.samples import with_hole

    step = max(1, len(items) // rows)
    lines = []
    for item in items[::step][:rows]:
        cells = [item.source, with_hole(item.source, item.fill), item.reference.resize(item.source.size)]
        for column in columns:
            if column == "dreambooth":
                cells.append(
                    load_image(list_pictures(Path(args.dreambooth) / item.subject)[0]).resize(item.source.size)
                )
            else:
                cells.append(load_image(picture_path(Path(args.output_dir), item.id, column)))
        lines.append(cells)
    save_png(path, grid(lines, column_labels=["source", "hole", "reference", *columns]))


def report(args: argparse.Namespace, items: list, rows: list[dict]) -> None:
    """results.json, grid.png, figures, and the tables on the screen."""
    from common.tables import by, by_method, by_subject, score_table
    from image_inpaint.reproduction.tables import beside_published

    output = Path(args.output_dir)
    summary = {"overall": by_method(by_subject(rows)), "by_condition": {}}
    counts = ""
    for method, found in sets_of(args, items).items():
        summary["overall"][method] |= found
        for score in found.values():  # of every method and score the same
            counts = f"FID and KID: n = {score['n']} generated and {score['n_real']} real pictures\n"
    for condition, own in by(rows, "condition").items():
        summary["by_condition"][condition] = by_method(by_subject(own))
    draw_figure(args, items, args.methods, output / "grid.png")
    for figure in args.figure or []:
        draw_figure(args, items, FIGURES[figure], output / f"figure_{figure}.png")
    print(score_table(summary["overall"], "subjects"), counts, sep="\n\n")
    for condition, found in summary["by_condition"].items():
        shown = {method: {key: v for key, v in values.items() if key.startswith(("DINO", "thing_seen", "psnr_truth"))}
                 for method, values in found.items()}  # fmt: skip
        print(f"{condition}\n{score_table(shown, 'subjects')}", end="\n\n")
    if args.table:
        called = f"measured: {Path(args.subjects or 'picturebook').name}, {args.metric_encoders} encoders"
        print(beside_published(args.table, {called: summary["overall"]}), end="\n\n")
    write_json(output / "results.json", summary)
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


def print_storage() -> None:
    """What the paper's 2 to 40 MB can be, on Stable Diffusion 1.x with nine channels, and the whole UNet beside it."""
    from common.tables import text_table
    from image_inpaint.lora import TARGETS, storage

    lines = [["targets", "rank", "parameters", "share", "file, float32"]]
    for targets in TARGETS:
        for rank in (1, 4, 16, 50):
            found = storage(rank, targets)
            lines.append([targets, str(rank), f"{found['parameters']:,}", f"{found['share_percent']:.4f} %",
                          f"{found['megabytes']:.2f} MB"])  # fmt: skip
    print(text_table(lines))
    whole, rank16 = 4 * storage(16, "attention")["total"] / 1e6, storage(16, "attention")["megabytes"]
    print(f"\nwhole UNet, float32: {whole:,.0f} MB, {whole / rank16:.0f} times the file of rank 16 on attention")


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.print_config:
        print(json.dumps(vars(args), indent=2))
        return
    if args.storage:
        print_storage()
        return
    output = Path(args.output_dir)
    check_same_settings(output, args)
    subjects, items = read_data(args)
    write_config(output, args, items_run=[item.id for item in items])
    report(args, items, run_all(args, subjects, items))


if __name__ == "__main__":
    main()
