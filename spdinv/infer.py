"""Invert one picture with a source prompt and edit it with a target prompt.

    python -m spdinv.infer --image_path cat.jpg --source_prompt "a cat" --target_prompt "a blue cat"

Without arguments: an item of the picturebook's benchmark.
"""

import argparse
from pathlib import Path

from common.flags import say_unheeded, show_config
from common.runs import InputError, atomic_path, make_parser, measure, remove_stale, script, write_config, write_json
from spdinv import options
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--image_path", help="the picture; any size and mode, its central square is used")
    add("--source_prompt", help="what the picture shows")
    add("--target_prompt", help="what it should show")
    add("--inversion", choices=tuple(INVERSIONS), default="spd", help="way from the picture to its noise: "
        + options.titled(INVERSIONS))  # fmt: skip
    add("--engine", choices=tuple(ENGINES), default="p2p", help="way back; none: invert and reconstruct only")
    options.add_method_flags(parser)
    options.add_picture_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/spdinv")
    add("--save_trajectory", action="store_true", help="write trajectory.safetensors: latents of all levels, rounds")
    add("--save_attention", action="store_true", help="write attention.png and .safetensors: where each word attends")
    args, given = options.parse(parser, argv)
    options.check(args, given, [args.engine], [args.inversion])
    if args.image_path is None:
        if args.source_prompt:
            raise InputError("--source_prompt describes a picture: give --image_path too")
        if not options.is_picturebook_folder(args.pretrained_model_name_or_path):
            raise InputError("give --image_path, --source_prompt and --target_prompt: only the picturebook has its own")
    elif args.source_prompt is None or (args.target_prompt is None and args.engine != "none"):
        raise InputError("--image_path needs --source_prompt and --target_prompt (or --engine none without a target)")
    say_unheeded(parser, args, {"target_prompt": ("engine", list(ENGINES)[1:])})  # the first is none
    return args


def use_benchmark_item(args: argparse.Namespace) -> None:
    """Fill in picture, prompts and words from the picturebook's benchmark (the first change of colour)."""
    from common.data import read_pie_bench
    from common.picturebook.benchmarks import ensure_pie_bench

    item = read_pie_bench(ensure_pie_bench(), edit_types=["6"], limit=1)[0]
    args.image_path, args.source_prompt = str(item.image_path), item.source_prompt
    if args.target_prompt is None:
        args.target_prompt = item.target_prompt
        if item.blended_words and args.blended_words is None and args.equalizer is None:
            args.blended_words, args.equalizer = list(item.blended_words), [(item.blended_words[1], 2.0)]


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = options.method_of(args, args.inversion, args.engine)
    if show_config(args, method=vars(settings)):
        return
    from common.images import center_crop_resize, load_image, to_pil, to_tensor
    from common.metrics import mse, psnr, ssim
    from spdinv.attention_maps import Recorder
    from spdinv.customised import load
    from spdinv.editing import edit_picture

    if args.image_path is None:
        use_benchmark_item(args)
    image = load_image(args.image_path)
    method = options.with_picture(settings, args, image)
    pipe, resolution, _ = load(args)
    image = center_crop_resize(image, resolution)
    prompts = [args.source_prompt, args.target_prompt]
    recorder = Recorder(args.engine) if args.save_attention else None
    print(f"{args.image_path}: {args.source_prompt!r} -> {args.target_prompt!r}, {method.name}")
    with measure() as cost:
        edit = edit_picture(pipe, to_tensor(image).to(pipe.device), *prompts, method, recorder)

    pictures = {"source": image, "reconstruction": to_pil(edit.reconstruction)}
    if edit.edited is not None:
        pictures["edited"] = to_pil(edit.edited)
    source, *others = map(to_tensor, pictures.values())  # scores see what the files hold
    metrics = {
        **{name: {score.__name__: score(source, other).item() for score in (psnr, mse, ssim)}
           for name, other in zip(list(pictures)[1:], others, strict=True)},
        "latent_mse": edit.latent_mse,
        "rounds": edit.inversion.rounds[:, 0].tolist(),
        "inversion_cost": edit.inversion.cost,
        "seconds": cost.seconds,
        "peak_memory_mb": cost.peak_memory_mb,
    }  # fmt: skip
    attention = recorder.words(pipe.tokenizer, prompts, edit.latents.shape[-2:]) if recorder else None
    write(Path(args.output_dir), args, pictures, edit, attention)
    write_config(args.output_dir, args, method=vars(settings))
    write_json(Path(args.output_dir) / "metrics.json", metrics)
    for name in list(pictures)[1:]:
        print(f"{name} against source: {metrics[name]['psnr']:.2f} dB")
    print(f"{cost.seconds:.1f} s; pictures in {args.output_dir}")


def write(folder: Path, args: argparse.Namespace, pictures: dict, edit, attention: dict | None) -> None:
    """Pictures, latents, and the attention that a Recorder found; files of an earlier run that this one does not make
    are removed."""
    from safetensors.torch import save_file

    from common.images import grid, save_png
    from spdinv import attention_maps

    shown = {**pictures, "grid": grid([list(pictures.values())], column_labels=list(pictures))}
    if attention:
        under = {"source": pictures["source"], "target": pictures.get("edited")}
        shown["attention"] = attention_maps.draw(attention, under)
        attention_maps.save(folder / "attention.safetensors", attention)
    for name, picture in shown.items():
        save_png(folder / f"{name}.png", picture)
    if args.save_trajectory:
        latents = edit.inversion.trajectory[:, 0].float().cpu().contiguous()
        with atomic_path(folder / "trajectory.safetensors") as path:
            save_file({"latents": latents, "rounds": edit.inversion.rounds[:, 0].contiguous()}, path)
    made = {"edited.png": "edited" in pictures, "trajectory.safetensors": args.save_trajectory,
            "attention.png": attention, "attention.safetensors": attention}  # fmt: skip
    remove_stale(folder, (folder / name for name, is_made in made.items() if not is_made))


if __name__ == "__main__":
    main()
