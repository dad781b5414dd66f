"""Draw with tuned weights: one training, several added up, two interpolated or mixed, or an edit of one picture.

    python -m svdiff.infer --prompt "a sks dog in the snow" --spectral_shifts outputs/svdiff
    python -m svdiff.infer --prompt "a sks dog beside a qwe cup" --spectral_shifts dog/ cup/:0.8
    python -m svdiff.infer --prompt "photo of a sks thing" --interpolate dog/ cup/ --alpha 0 0.25 0.5 0.75 1
    python -m svdiff.infer --prompt "photo of a crown" --spectral_shifts crown/ --image_path crown.jpg
    python -m svdiff.infer --spectral_shifts outputs/svdiff --export_merged merged/

A training is named by its folder or its file of weights; folders of full fine-tunings and of LoRAs by svdiff.train do
as well. Without arguments: what python -m svdiff.train, without arguments, has trained.
"""

import argparse
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from common.files import InputError, atomic_path, read_object, write_json
from common.flags import MARKER, number, say_unheeded, show_config
from common.runs import make_parser, measure, remove_stale, script, write_config
from svdiff import options

PICTURE = re.compile(r"(tuned|mixed|alpha_[^_]+)(_scale_[^_]+)?_\d+\.png")  # what is written, by label and seed
# flag -> the flag without which it does nothing
ONLY_WITH = {"alpha": "interpolate", "geometry_layers": "style_mix", "ddim_inversion": "image_path",
             "inversion_timestep": "image_path", "slerp_alpha": "image_path"}  # fmt: skip


def weighted(text: str) -> tuple[str, float]:
    """An argparse type: FILE or FILE:WEIGHT; what is there under the whole text, colon and number, is that file."""
    path, _, weight = text.rpartition(":")
    try:
        value = float(weight)
    except ValueError:  # no colon, or one inside of the path
        return text, 1.0
    if not path or os.path.exists(text):
        return text, 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} has a weight that is no finite number")
    return path, value


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="picturebook", help="the base model that was tuned")
    add("--prompt", help="what to draw; by default what the training's grid.png shows")
    way = parser.add_mutually_exclusive_group().add_argument
    way("--spectral_shifts", nargs="+", type=weighted, metavar="TRAINING[:WEIGHT]", help="added up, then one ReLU (Eq. "
        "4); folders or files")  # fmt: skip
    way("--interpolate", nargs=2, metavar=("A", "B"), help="alpha A + (1 - alpha) B (Eq. 5)")
    way("--style_mix", nargs=2, metavar=("APPEARANCE", "GEOMETRY"), help="GEOMETRY's shifts in --geometry_layers, "
        "APPEARANCE's elsewhere; both trained on UNet-2D (Sec. 4.4)")  # fmt: skip
    add("--alpha", nargs="+", type=number(float, 0, 1), help="of --interpolate; by default 0 0.25 0.5 0.75 1")
    add("--scale", nargs="+", type=number(float, -10, 10), default=[1.0], help="of the shifts, inside of the ReLU")
    add("--export_merged", metavar="DIR", help="write an ordinary diffusers pipeline with the tuned weights, float32")
    add = parser.add_argument_group("single-image editing (Sec. 3.4)").add_argument
    add("--image_path", help="edit this picture, on which the model was tuned; --prompt is the target")
    add("--ddim_inversion", action=argparse.BooleanOptionalAction, help="start from the picture's own noise (Eq. 6), "
        "the default; for edits that change the structure leave it out, or add noise")  # fmt: skip
    add("--slerp_alpha", type=number(float, 0, 1), help="how far that is drawn towards noise (Eq. 7); by default 0")
    options.add_sampling_flags(parser)
    add = parser.add_argument
    add("--num_images", type=number(int, 1, 10000), help="pictures, with seeds from --seed on; 4 by default, 1 for an "
        "edit that draws no random number")  # fmt: skip
    add("--seed", type=number(int, 0, 2**31), default=0, help="of the first picture")
    add("--resolution", type=number(int, 16), help="side of the pictures; the model's own by default")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="of the networks while drawing")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--output_dir", default="outputs/svdiff_infer", help="folder for pictures, grid.png, config.json, metrics.json")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    args = parser.parse_args(argv)
    check(args)
    drawn = ("prompt", "image_path", "num_images", "seed", "negative_prompt", "guidance_scale", "num_inference_steps")
    say_unheeded(parser, args, dict.fromkeys(drawn, ("export_merged", [None])))
    return args


def check(args: argparse.Namespace) -> None:
    """Raises InputError for what does not go together, before anything is loaded; fills in what then is by default."""
    if not paths_of(args):
        if not Path(options.OUTPUT_DIR).is_dir() and not args.print_config:
            raise InputError(f"nothing is trained in {options.OUTPUT_DIR} yet: run python -m svdiff.train, or name a "
                             "training with --spectral_shifts")  # fmt: skip
        args.spectral_shifts = [(options.OUTPUT_DIR, 1.0)]
    for path in paths_of(args):
        if not os.path.exists(os.path.expanduser(path)) and not args.print_config:
            raise InputError(f"{path} is missing; give the folder of a training, or its file of weights")
    for name, other in ONLY_WITH.items():
        if getattr(args, name) is not None and not getattr(args, other):
            flag = f"no-{name}" if getattr(args, name) is False else name
            raise InputError(f"--{flag} does nothing without --{other}: give that as well, or leave --{flag} out")
    if args.image_path and not args.prompt and not args.export_merged:
        raise InputError("--image_path needs --prompt, which says what the edited picture should show")
    if args.slerp_alpha is not None and args.ddim_inversion is False:
        raise InputError("--slerp_alpha draws an inverted picture's noise towards fresh noise: leave "
                         "--no-ddim_inversion out")  # fmt: skip
    args.ddim_inversion, args.slerp_alpha = args.ddim_inversion is not False, args.slerp_alpha or 0.0
    args.alpha = args.alpha or [0.0, 0.25, 0.5, 0.75, 1.0]
    certain = bool(args.image_path) and args.ddim_inversion and not (args.eta or args.slerp_alpha)
    if certain and (args.num_images or 1) > 1:
        raise InputError("--num_images has to be 1 where an edit draws no random number: leave it out, or add noise "
                         "with --slerp_alpha, --eta or --no-ddim_inversion")  # fmt: skip
    args.num_images = args.num_images or (1 if certain else 4)
    if args.export_merged and (len(args.scale) > 1 or (args.interpolate and len(args.alpha) > 1)):
        raise InputError("--export_merged writes one model: give one --scale and one --alpha")
    if args.export_merged and Path(args.export_merged).exists():
        raise InputError(f"--export_merged {args.export_merged} is there already; name a new folder")
    options.resolve_sampling(args)


def paths_of(args: argparse.Namespace) -> list[str]:
    return [path for path, _ in args.spectral_shifts or []] + [*(args.interpolate or []), *(args.style_mix or [])]


def written(value: float) -> str:
    """As short as it can be, and of this number alone: 1, 0.5, 0.5000001."""
    return repr(value).removesuffix(".0")


def changes(args: argparse.Namespace, pipe, bases) -> dict:
    """label -> (merging.Change, scale): every model that is to draw."""
    from svdiff import combine, merging

    loaded = [merging.load(pipe, path, bases) for path in paths_of(args)]
    if args.interpolate:
        made = {f"alpha {written(alpha)}": combine.interpolate(*loaded, alpha) for alpha in args.alpha}
    elif args.style_mix:
        made = {"mixed": merging.style_mix(pipe, *loaded, *args.geometry_layers)}
    else:
        made = {"tuned": combine.add(loaded, [weight for _, weight in args.spectral_shifts])}
    if args.scale == [1.0]:
        return {label: (change, 1.0) for label, change in made.items()}
    return {f"{label}, scale {written(scale)}": (change, scale) for label, change in made.items()
            for scale in args.scale}  # fmt: skip


def default_prompt(args: argparse.Namespace) -> str:
    """What the first training's grid.png shows."""
    folder = Path(os.path.expanduser(paths_of(args)[0]))
    config = (folder if folder.is_dir() else folder.parent) / "config.json"
    prompt = read_object(config).get("validation_prompt") if config.is_file() else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"give --prompt: beside {paths_of(args)[0]} there is no config.json that says what it shows")
    return prompt


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args):
        return
    if args.prompt is None and not args.export_merged:
        args.prompt = default_prompt(args)
    import torch

    from common.images import grid, load_image, save_png, to_pil
    from common.pipelines import PRECISIONS, chosen_resolution, load_pipeline
    from svdiff import editing, merging
    from svdiff.basis import Bases

    source = load_image(args.image_path) if args.image_path else None
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    resolution, bases = chosen_resolution(pipe, args.resolution), Bases(pipe, args.basis_dir)
    models, how = changes(args, pipe, bases), editing.Sampling(**options.sampling_of(args))
    if args.export_merged:
        export(pipe, *next(iter(models.values())), bases, Path(args.export_merged))
        return
    picture = source and editing.fitted(pipe, source, resolution)
    dtype = PRECISIONS[args.mixed_precision]
    half = torch.autocast(pipe.device.type, dtype, enabled=args.mixed_precision != "no")
    seeds, sheet, output = [args.seed + k for k in range(args.num_images)], [], Path(args.output_dir)
    made = set()
    with measure() as cost:
        for label, (change, scale) in models.items():
            with merging.applied(pipe, change, scale, bases), half:
                if picture is None:
                    drawn = editing.draw(pipe, args.prompt, seeds, how, resolution)
                else:
                    drawn = editing.edit(pipe, picture, args.prompt, how, args.ddim_inversion, args.slerp_alpha, seeds)
            for seed, one in zip(seeds, drawn, strict=True):
                made.add(path := output / f"{label.replace(', ', '_').replace(' ', '_')}_{seed}.png")
                save_png(path, one, "nearest")
            sheet.append([to_pil(one, "nearest") for one in (drawn if picture is None else [picture, *drawn])])
    remove_stale(output, {path for path in output.glob("*.png") if PICTURE.fullmatch(path.name)} - made)
    save_png(output / "grid.png", grid(sheet, list(models)))
    write_config(output, args)
    write_json(output / "metrics.json", {"seconds": cost.seconds, "peak_memory_mb": cost.peak_memory_mb,
                                         "pictures": len(models) * len(seeds)})  # fmt: skip
    print(f"{args.prompt!r}: {cost.seconds:.1f} s; pictures in {output}, look at {output / 'grid.png'}")


def edit(
    picture: str | Path, caption: str, prompt: str, output_dir: str = "outputs/svdiff_edit", steps: int | None = None,
    model: str = "picturebook", **how: Any,
):  # fmt: skip
    """Sec. 3.4 in one call: tune on a picture and its caption, then draw it under `prompt` from its own noise. PIL.
    steps: of the training, by default the model's preset. how: of editing.Sampling."""
    from common.images import load_image, to_pil
    from common.pipelines import load_pipeline
    from svdiff import editing, merging, train

    given = ["--max_train_steps", str(steps)] if steps else []
    train.main(["--image_path", str(picture), "--instance_prompt", caption, "--output_dir", output_dir, *given,
                "--pretrained_model_name_or_path", model, "--num_validation_images", "1"])  # fmt: skip
    pipe = load_pipeline(model)
    with merging.applied(pipe, merging.load(pipe, output_dir)):
        source = editing.fitted(pipe, load_image(picture))
        return to_pil(editing.edit(pipe, source, prompt, editing.Sampling(**how))[0], "nearest")


def export(pipe, change, scale: float, bases, folder: Path) -> None:
    """Write the tuned model as an ordinary pipeline, float32; a picturebook stays one, by its marker."""
    from common.pipelines import is_picturebook
    from svdiff import merging

    merging.write_into(pipe, change, scale, bases)
    with atomic_path(folder) as temporary:
        pipe.save_pretrained(temporary)
        if is_picturebook(pipe):
            shutil.copy(Path(pipe.name_or_path) / MARKER, temporary)
    print(f"a diffusers pipeline with the tuned weights is in {folder}")


if __name__ == "__main__":
    main()
