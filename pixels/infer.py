"""Edit a photograph after one or several exemplars, each under a grey map of its own.

    python -m pixels.infer --image_path room.jpg --exemplar_path lake.jpg --edit_map_path map.png

White in a map keeps the photograph, black takes the exemplar, grey is in between. Several exemplars: repeat
--exemplar_path and --edit_map_path. Without arguments: an item of the picturebook's benchmark.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from common.flags import as_flags
from common.runs import InputError, make_parser, measure, remove_stale, script, write_config, write_json
from pixels import options

SIDES = ("left", "right", "top", "bottom")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--image_path", help="the source picture, of any size")
    add("--exemplar_path", action="extend", nargs="+", help="a picture to take from; repeat for several")
    add("--edit_map_path", action="extend", nargs="+",
        help="a grey picture, drawn on the source, or an array (.npy); or gradient:left, :right, :top or :bottom, "
        "black on that side; one per exemplar, in the same order")  # fmt: skip
    add("--map_white", choices=("keep", "edit"), help="what white means in the maps (released: keep, the default)")
    add("--map_kind", choices=("grey", "mask", "depth"), default="grey", help="grey: as it is; mask: black and white, "
        "to be grown, ramped and blurred; depth: the far part is black (near with --map_white edit)")  # fmt: skip
    add("--map_grow", type=options.number(float, 0, 10_000), default=0, help="of a mask: pixels")
    add("--map_ramp", type=options.number(float, 0, 10_000), default=0, help="of a mask: pixels from black to white")
    add("--map_blur", type=options.number(float, 0, 10_000), default=0, help="of a mask: deviation in pixels, last")
    add("--map_gamma", type=options.number(float, 0.01, 100), default=1, help="power on all greys; above 1 darkens")
    add("--exemplar_box", action="append", nargs=4, type=options.number(float, 0, 1), metavar=("L", "T", "R", "B"),
        help="place the exemplar in this part of the frame, black around it; one each (paper, App. 3)")  # fmt: skip
    add("--fit", choices=("squash", "crop"), default="squash",
        help="how source, exemplars and maps come into the frame (released: pictures squashed)")  # fmt: skip
    add("--iterative", action=argparse.BooleanOptionalAction, default=False,
        help="one exemplar after the other, not all in one pass (Appendix 2)")  # fmt: skip
    options.add_method_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/pixels")
    args = options.parse(parser, argv)
    check_inputs(args)
    return args


def check_inputs(args: argparse.Namespace) -> None:
    """What belongs together is there; on the picturebook alone, everything may be missing."""
    if args.map_kind != "mask" and (args.map_grow or args.map_ramp or args.map_blur):
        raise InputError("--map_grow, --map_ramp and --map_blur shape a --map_kind mask")
    exemplars, maps, boxes = args.exemplar_path or [], args.edit_map_path or [], args.exemplar_box or []
    if args.image_path is None:
        if exemplars or maps or boxes:
            raise InputError("exemplars, their maps and boxes change a picture: give --image_path too")
        if not options.is_picturebook_folder(args.pretrained_model_name_or_path):
            raise InputError("give --image_path, --exemplar_path and --edit_map_path; only the picturebook has some")
        return
    if not exemplars or len(exemplars) != len(maps):
        raise InputError(f"{len(exemplars)} --exemplar_path and {len(maps)} --edit_map_path: each exemplar has a map")
    if boxes and len(boxes) != len(exemplars):
        raise InputError(f"{len(boxes)} --exemplar_box for {len(exemplars)} exemplars: give one for each")
    for path in maps:
        side = path.removeprefix("gradient:")
        if side == path and not Path(path).is_file():
            raise InputError(f"--edit_map_path {path} is no file; give a picture, or gradient:right and the like")
        if side != path and side not in SIDES:
            raise InputError(f"--edit_map_path {path}: a gradient goes to one of {', '.join(SIDES)}")


def use_benchmark_item(args: argparse.Namespace) -> None:
    """Fill in source, exemplar and map from the picturebook's benchmark (the first change of an object)."""
    from common.data import read_pie_bench
    from common.picturebook.benchmarks import ensure_pie_bench

    folder = ensure_pie_bench()
    item = read_pie_bench(folder, edit_types=["1"], limit=1)[0]
    args.image_path = str(item.image_path)
    args.exemplar_path = [str(folder / item.extras["exemplar_path"])]
    args.edit_map_path = [str(folder / item.extras["edit_map_path"])]
    args.map_white = args.map_white or "edit"  # as the benchmark draws them


def read_map(path: str, args: argparse.Namespace, size: tuple[int, int], source_size: tuple[int, int]):
    """One --edit_map_path as a map over the frame, float32 [1, 1, H, W], white = keep."""
    from common.masks import read_grey
    from pixels import edit_map, frames

    white = args.map_white or "keep"
    if path.startswith("gradient:"):
        grey = edit_map.polarity(edit_map.gradient(size, path.removeprefix("gradient:")), white)
        return edit_map.histogram(grey, gamma=args.map_gamma)
    if args.map_kind == "mask":
        mask = edit_map.binarize(edit_map.read(path, white))[0, 0]
        grey = edit_map.from_mask(mask, args.map_grow, args.map_ramp, args.map_blur)
    elif args.map_kind == "depth":
        grey = edit_map.from_depth(read_grey(path, any_scale=True), "far" if white == "keep" else "near")
    else:
        grey = edit_map.read(path, white)
    frames.check_alignment(source_size, grey.shape[-2:], path)
    return frames.fit_map(edit_map.histogram(grey, gamma=args.map_gamma), size, args.fit)


def edit_pictures(image_path: str, exemplar_paths: list[str], edit_map_paths: list[str], **flags):
    """The edited picture (PIL) of one source, its exemplars and their maps. flags: of this script, such as
    threshold="log", seed=1, pretrained_model_name_or_path="…". Raises InputError."""
    given = {"image_path": image_path, "exemplar_path": exemplar_paths, "edit_map_path": edit_map_paths}
    return run(parse(as_flags(given | flags)))[0]["edited"]


def run(args: argparse.Namespace) -> tuple[dict, dict, dict]:
    """(pictures by file name, metrics, what flags and presets resolved to) of one edit."""
    import torch

    from common.images import grid, load_image, to_tensor
    from common.metrics import psnr
    from pixels import backbones, frames
    from pixels.edit_map import injections
    from pixels.preview import cells, preview
    from pixels.surgery import Surgery, edit, edit_iteratively

    image = load_image(args.image_path)
    photographs = [load_image(path) for path in args.exemplar_path]
    (model, sampling, size), surgery = options.load(args), Surgery(**options.surgery_of(args))
    source = frames.frame_tensor(image, size, args.fit)
    boxes = args.exemplar_box or [None] * len(photographs)
    exemplars = [to_tensor(frames.place(photo, box, size)) if box else frames.frame_tensor(photo, size, args.fit)
                 for photo, box in zip(photographs, boxes, strict=True)]  # fmt: skip
    maps = [read_map(path, args, size, image.size[::-1]) for path in args.edit_map_path]
    backbone = backbones.bind(model, sampling, size, seed=args.seed, exemplar=exemplars[-1])
    generator = torch.Generator().manual_seed(args.seed)
    given = backbone, source, exemplars, maps, surgery, generator
    with measure() as cost:
        edits = edit_iteratively(*given) if args.iterative else [edit(*given)]

    last = edits[-1]
    shown = {f"exemplar_{k}": exemplar for k, exemplar in enumerate(exemplars, start=1)}
    shown = {"source": source, **shown, "edited": last.edited}
    pictures = {name: frames.to_picture(picture) for name, picture in shown.items()}
    seen = to_tensor(pictures["edited"])  # scores see what the file holds
    always = cells(injections(last.mu.cpu(), last.tau) == len(last.tau), seen)
    metrics = {"cells": [asdict(one.coverage) for one in edits], "thresholds": last.tau.tolist(),
               "latent_distance": [distance for one in edits for distance in one.distances[0].tolist()],
               "psnr_kept": psnr(source, seen, always).item() if always.any() else None,
               "seconds": cost.seconds, "peak_memory_mb": cost.peak_memory_mb}  # fmt: skip
    sheet, mus = grid([list(pictures.values())], column_labels=list(pictures)), [mu for one in edits for mu in one.mus]
    pictures |= {"preview": preview(source, exemplars, mus, last.tau), "grid": sheet}
    print(*(one.coverage for one in edits), sep="\n")
    return pictures, metrics, {"sampling": asdict(sampling), "surgery": asdict(surgery)}


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if options.config_shown(args):
        return
    from common.images import save_png

    if args.image_path is None:
        use_benchmark_item(args)
    print(f"{args.image_path} <- {', '.join(args.exemplar_path)}")
    pictures, metrics, resolved = run(args)
    folder = Path(args.output_dir)
    remove_stale(folder, [path for path in folder.glob("exemplar_*.png") if path.stem not in pictures])
    for name, picture in pictures.items():
        save_png(folder / f"{name}.png", picture)
    write_config(folder, args, **resolved)
    write_json(folder / "metrics.json", metrics)
    steps = len(metrics["thresholds"])
    print(f"{metrics['seconds']:.1f} s, {steps} steps; pictures in {folder}, preview.png explains the map")


if __name__ == "__main__":
    main()
