"""Put the subject of a reference picture into the hole of a photograph.

    python -m image_inpaint.infer --image_path room.jpg --mask_path mask.png --reference_path chair.jpg --lora TRAINED

White in the mask is what is to be filled. Without arguments: a scene and a subject of the picturebook.
"""

import argparse
from pathlib import Path

from common.flags import as_flags, is_picturebook_folder, number, show_config
from common.runs import InputError, make_parser, measure, remove_stale, script, write_config, write_json
from image_inpaint import options


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--image_path", help="the photograph, of any size")
    add("--mask_path", help="its hole, white = fill, of the same size")
    add("--reference_path", nargs="+", help="pictures of the subject; each gives a result of its own")
    add("--reference_box", nargs=4, type=number(int, 0), metavar=("L", "T", "R", "B"),
        help="where the subject is in the reference, in pixels; all of it by default")  # fmt: skip
    add("--lora", metavar="PATH", help="what train.py wrote: its --output_dir, or the file; of either tuning")
    options.add_sampling_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/image_inpaint_infer")
    args = parser.parse_args(argv)
    named = (args.image_path, args.mask_path, args.reference_path)
    if any(named) and not all(named):
        raise InputError("--image_path, --mask_path and --reference_path belong together: give all three")
    if not any(named) and not is_picturebook_folder(args.pretrained_model_name_or_path):
        raise InputError("give --image_path, --mask_path and --reference_path; only the picturebook brings its own")
    if args.reference_box and (not args.reference_path or len(args.reference_path) > 1):
        raise InputError("--reference_box is of one --reference_path")
    if args.lora and not Path(args.lora).exists():
        raise InputError(f"--lora {args.lora} is not there; python -m image_inpaint.train makes it")
    options.check_sampling(args)
    return args


def read_inputs(args: argparse.Namespace):
    """(picture, fill [H, W], references)."""
    from common.images import load_image
    from common.masks import load_mask
    from image_inpaint.data.benchmark import crop_to
    from image_inpaint.masks import check_box

    picture = load_image(args.image_path)
    fill = load_mask(args.mask_path, picture=picture)
    if fill.all():
        raise InputError(f"--mask_path {args.mask_path} is white all over: nothing of the photograph is left")
    if min(picture.size) < 16:
        raise InputError(f"--image_path is {picture.width}x{picture.height} pixels; at least 16 a side are needed")
    references = [load_image(path) for path in args.reference_path]
    if args.reference_box:
        box = check_box(args.reference_box, references[0].size[::-1], "--reference_box")
        references = [crop_to(references[0], box)]
    return picture, fill, references


def benchmark_inputs():
    """The first subject of the picturebook in a scene of its test split."""
    from image_inpaint.data.benchmark import picturebook_items, picturebook_subjects

    item = picturebook_items(picturebook_subjects("test", 1), 1, "test")[0]
    return item.source, item.fill, [item.reference]


def inpaint(image_path: str, mask_path: str, reference_path: str, **flags):
    """The picture (PIL) with the reference's subject in its hole. flags: of this script, such as lora="…", seed=1,
    composite=False. Raises InputError."""
    given = {"image_path": image_path, "mask_path": mask_path, "reference_path": reference_path}
    args = parse(as_flags(given | flags))
    return run(args, *read_inputs(args))[0][0]


def run(args: argparse.Namespace, picture, fill, references):
    """(a result per reference, metrics, settings of the sampling)."""
    from common.images import to_tensor
    from common.metrics import psnr
    from image_inpaint.loading import load_tuned
    from image_inpaint.painting import paint
    from image_inpaint.sampling import Sampling

    pipe, kind = load_tuned(args.pretrained_model_name_or_path, args.lora, args.device, args.mixed_precision)
    settings, count = options.sampling_of(args, kind), len(references)
    with measure() as cost:
        seeds, how = [args.seed] * count, Sampling(**settings)
        painted = paint(pipe, [picture] * count, [fill] * count, references, seeds, how, progress=True,
                        composite=args.composite, feather=args.feather, context=args.context)  # fmt: skip
    source, kept = to_tensor(picture), (1 - fill)[None, None]
    metrics = {"psnr_kept": [psnr(source, to_tensor(result), kept).item() for result in painted],
               "hole_share": float(fill.mean()), "weights": kind, "seconds": cost.seconds,
               "peak_memory_mb": cost.peak_memory_mb}  # fmt: skip
    return painted, metrics, settings


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args, sampling=options.sampling_of(args)):
        return
    from common.images import save_png
    from image_inpaint.samples import comparison, with_hole

    picture, fill, references = read_inputs(args) if args.image_path else benchmark_inputs()
    painted, metrics, settings = run(args, picture, fill, references)
    folder = Path(args.output_dir)
    names = ["inpainted", *(f"inpainted_{k}" for k in range(2, len(painted) + 1))]
    shown = comparison([(picture, fill, reference) for reference in references], painted)
    pictures = {"source": picture, "hole": with_hole(picture, fill), **dict(zip(names, painted, strict=True))}
    for name, one in {**pictures, "grid": shown}.items():
        save_png(folder / f"{name}.png", one)
    remove_stale(folder, [path for path in folder.glob("inpainted*.png") if path.stem not in pictures])
    write_json(folder / "metrics.json", metrics)
    write_config(folder, args, sampling=settings)
    print(f"{len(painted)} pictures in {metrics['seconds']:.1f} s; see {folder / 'grid.png'}")
    if not args.lora:
        print("untuned: python -m image_inpaint.train learns a subject, and --lora takes what it wrote")


if __name__ == "__main__":
    main()
