"""Run inversions and engines over a PIE-Bench folder, and print what they score beside the paper's tables.

    python -m spdinv.eval --inversions ddim spd --engines p2p --table 1

An interrupted run goes on where it stopped: start it again with the same flags.
"""

import argparse
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

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
)
from spdinv import options

log = logging.getLogger(__name__)

EQUALIZER = 2.0  # PIE-Bench's factor on the blended word of the target prompt
TABLES = ("1",)  # the published tables that the inversions and engines of this folder can fill
# What may change from run to run in one folder; --full has the quick subset's items among its own.
FREE = {"full", "inversions", "engines", "edit_types", "limit", "table", "device", "output_dir", "print_config"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--dataset",
        default="picturebook",
        help="a PIE-Bench folder (mapping_file.json, annotation_images), or "
        "picturebook: the quick subset of the picturebook's",
    )
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--full", action="store_true", help="all items of the picturebook's benchmark, not the quick subset")
    add("--inversions", nargs="+", choices=options.INVERSION_NAMES, default=["ddim", "spd"], help="each is run")
    add("--engines", nargs="+", choices=options.ENGINE_NAMES[1:], default=["p2p"], help="each is run")
    add("--edit_types", nargs="+", choices=list("0123456789"), help="PIE-Bench edit types; all by default")
    add("--limit", type=options.number(int, 1), help="take only so many items")
    add("--table", choices=TABLES, help="print the measured rows inside this table of the paper")
    add("--metric_encoders", help="picturebook, pie (those of the published tables), or a folder with copies of these; "
        "default: picturebook for the picturebook, pie for other models")  # fmt: skip
    options.add_method_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/spdinv_eval")
    args = options.parse(parser, argv)
    if args.dataset != "picturebook" and not (Path(args.dataset) / "mapping_file.json").is_file():
        raise InputError(f"--dataset {args.dataset} holds no mapping_file.json; give a PIE-Bench folder")
    if args.metric_encoders is None:
        on_picturebook = options.is_picturebook_folder(args.pretrained_model_name_or_path)
        args.metric_encoders = "picturebook" if on_picturebook else "pie"
    return args


def run_item(pipe, item, method, encoders, folder: Path | None = None, resolution: int | None = None, seed: int = 0):
    """Edit one EditItem and score it.

    Returns (row, pictures): a result row (common.runs), and {"source", "reconstruction", "edited"} as PIL pictures.
    method: an editing.Method; PIE-Bench's words for LocalBlend and reweighting are put in here. encoders: see
    common.metrics.load_encoders. folder: where the paths in item.extras start, for the true edit if there is one.
    """
    from common.images import center_crop_resize, load_image, to_pil, to_tensor
    from common.pipelines import native_resolution
    from spdinv.editing import edit_picture

    image = center_crop_resize(load_image(item.image_path), resolution or native_resolution(pipe))
    words = blended_words(pipe, item)
    method = options.with_words(method, words, {words[1]: EQUALIZER} if words else None)
    with measure() as cost:
        edit = edit_picture(pipe, to_tensor(image).to(pipe.device), item.source_prompt, item.target_prompt, method)
    pictures = {"source": image, "reconstruction": to_pil(edit.reconstruction), "edited": to_pil(edit.edited)}
    row = {
        "paper": "spdinv",
        "method": method.name,
        "item": item.id,
        "edit_type": item.edit_type,
        "seed": seed,
        "metrics": {
            **scores(item, pictures, encoders, folder),
            "latent_mse": edit.latent_mse,
            "rounds": edit.inversion.rounds.float().mean().item(),
            "inversion_forward": edit.inversion.cost["forward"],
            "inversion_backward": edit.inversion.cost["backward"],
        },
        "seconds": cost.seconds,
        "inversion_seconds": edit.inversion.cost["seconds"],
        "peak_memory_mb": cost.peak_memory_mb,
        "blended_words": words,
    }
    return row, pictures


def blended_words(pipe, item) -> tuple[str, str] | None:
    """The item's words for LocalBlend, or None, with a warning, where one of them is not in its prompt."""
    from spdinv.engines.alignment import word_mask

    if item.blended_words:
        try:
            word_mask(pipe.tokenizer, [item.source_prompt, item.target_prompt], item.blended_words)
        except InputError as problem:
            log.warning("item %s runs without LocalBlend and reweighting: %s", item.id, problem)
            return None
    return item.blended_words


def scores(item, pictures: dict, encoders, folder: Path | None) -> dict[str, float]:
    """All scores of one edit: on the picturebook edit success and nearness to the true edit first, then PIE-Bench's."""
    import torch.nn.functional as F

    from common.images import load_image, to_tensor
    from common.metrics import PIE_PROTOCOLS, Score, lpips_distance, pie_scores, psnr

    source, reconstruction, edited = (to_tensor(pictures[name]) for name in ("source", "reconstruction", "edited"))
    result = {}
    if "edit" in item.extras and source.shape[-2:] == item.mask_size:  # a picturebook item at its own size
        from common.picturebook.benchmarks import edit_success

        result["edit_success (picturebook)"] = float(edit_success(item, edited))
        if folder:
            truth = to_tensor(load_image(folder / item.extras["truth_path"]))
            result["psnr_truth"] = psnr(truth, edited).item()
            lpips = lpips_distance(truth, edited, encoders.lpips).item()
            result[Score("lpips_truth", lpips, encoders.lpips.label).key] = lpips
    side = min(item.mask_size)
    top, left = ((length - side) // 2 for length in item.mask_size)  # its central square, as of the picture
    mask = item.mask[None, None, top : top + side, left : left + side]
    mask = F.interpolate(mask, source.shape[-2:])  # nearest; as it is where sizes agree
    for protocol in PIE_PROTOCOLS:
        result |= pie_scores(source, edited, mask, item.source_prompt, item.target_prompt, encoders, protocol)
    result["psnr_reconstruction"] = psnr(source, reconstruction).item()
    return result


def find_dataset(args: argparse.Namespace) -> Path:
    if args.dataset != "picturebook":
        return Path(args.dataset)
    from common.picturebook.benchmarks import ensure_pie_bench

    return ensure_pie_bench(split=args.split, quick=not args.full)


def read_items(folder: Path, args: argparse.Namespace) -> list:
    """The items to run; the published one-pixel border of the masks is kept for 512-pixel masks only (on a picture of
    64 pixels it would be 6 % of it)."""
    from common.data import PIE_SIZE, read_pie_bench

    items = read_pie_bench(folder, args.edit_types, args.limit)
    return [item if item.mask_size == PIE_SIZE else replace(item, border=0) for item in items]


def check_same_settings(output_dir: Path, args: argparse.Namespace) -> None:
    """Raises InputError if the folder holds rows that were made with other settings."""
    if not (output_dir / "rows.jsonl").exists():
        return
    before = read_json(output_dir / "config.json")
    changed = [name for name, value in vars(args).items() if name not in FREE and before.get(name) != value]
    if changed:
        raise InputError(
            f"{output_dir} holds results with another --{changed[0]} ({before.get(changed[0])}); "
            f"take the same one, or another --output_dir"
        )


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output = Path(args.output_dir)
    pairs = dict.fromkeys((inversion, engine) for engine in args.engines for inversion in args.inversions)  # each once
    methods = [options.method_of(args, *pair) for pair in pairs]
    settings = {method.name: asdict(method) for method in methods}
    if args.print_config:
        print(json.dumps({**vars(args), "methods": settings}, indent=2))
        return
    check_same_settings(output, args)

    from tqdm import tqdm

    from common.encoders import load_encoders
    from common.images import save_png

    folder = find_dataset(args)
    items = read_items(folder, args)
    pipe, resolution = options.load(args)
    encoders = load_encoders(args.metric_encoders, args.device)
    write_config(output, args, methods=settings)
    done = {name: done_items(output / "rows.jsonl", name) for name in settings}
    for item in tqdm(items, "items", disable=None):
        for method in methods:
            if item.id in done[method.name]:
                continue
            row, pictures = run_item(pipe, item, method, encoders, folder, resolution, args.seed)
            place = output / "pictures" / item.id
            save_png(place / "source.png", pictures["source"])
            save_png(place / f"{method.name}_reconstruction.png", pictures["reconstruction"])
            save_png(place / f"{method.name}.png", pictures["edited"])
            append_row(output / "rows.jsonl", row)
    report(args, items, list(settings), "picturebook" if args.dataset == "picturebook" else folder.name)


def report(args: argparse.Namespace, items: list, methods: list[str], dataset: str) -> None:
    """results.csv, results.json and grid.png of the items and methods at hand, and the tables on the screen."""
    from common.images import grid, load_image, save_png
    from spdinv import tables

    output = Path(args.output_dir)
    found = {(row["item"], row["method"]): row for row in read_rows(output / "rows.jsonl")}
    rows = [found[item.id, method] for item in items for method in methods]
    summary = tables.summarise(rows)
    tables.write_csv(output / "results.csv", rows)
    write_json(output / "results.json", summary)
    columns = ["source", *methods]
    sheet = [[load_image(output / "pictures" / item.id / f"{name}.png") for name in columns] for item in items[:12]]
    labels = [f"{item.source_prompt} -> {item.target_prompt}" for item in items[:12]]
    save_png(output / "grid.png", grid(sheet, labels, columns))

    wanted = ("edit_success", "psnr_truth", "structure/pie_official", "psnr/pie_official", "clip_whole/pie_official")
    print(tables.edit_type_table(summary["by_edit_type"], wanted), end="\n\n")
    print(tables.overall_table(summary["overall"]), end="\n\n")
    if args.table:
        measured_on = f"measured: {dataset}, {args.metric_encoders} encoders"
        print(tables.beside_published(args.table, summary["overall"], measured_on), end="\n\n")
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


if __name__ == "__main__":
    main()
