"""Draw pictures with a personalised model, beside the base model's from the same noise.

    python -m lipschitz_personalize.infer --trained_dir outputs/lipschitz_personalize/train --prompt "a sks dog in the
    snow"

Without arguments: the training that `python -m lipschitz_personalize.train` wrote, on its own prompts.
"""

import argparse
from pathlib import Path

from common.flags import number, show_config
from common.runs import InputError, make_parser, measure, read_json, remove_stale, script, write_config, write_json
from lipschitz_personalize import options


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--trained_dir", default="outputs/lipschitz_personalize/train", help="--output_dir of a finished training")
    add("--prompt", nargs="+", help="what to draw; by default the training's own prompt, and that with its class alone")
    add("--pretrained_model_name_or_path", help="the base model; by default the one that was trained on")
    add("--num_images", type=number(int, 1, 10000), default=4, help="pictures per prompt")
    options.add_sampling_flags(parser)
    add("--resolution", type=number(int, 16), help="side of the square picture; by default that of the training")
    add("--strength", type=number(float, 0, 2), default=1.0, help="share of the way from the base: W + s (W' - W)")
    add("--compare_base", action=argparse.BooleanOptionalAction, default=True, help="draw the base model's beside them")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="number format of the networks")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--seed", type=number(int, 0, 2**63 - 1), default=2025, help="of the noise (released: 2025)")
    add("--output_dir", default="outputs/lipschitz_personalize/infer", help="folder for results")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    args = parser.parse_args(argv)
    if not args.print_config and not Path(args.trained_dir).is_dir():
        raise InputError(f"--trained_dir {args.trained_dir} is no folder; lipschitz_personalize.train makes one")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args):
        return

    from common.images import grid, save_png
    from common.pipelines import PRECISIONS
    from common.training import draw_pictures, step_generator
    from lipschitz_personalize.loading import load_trained
    from lipschitz_personalize.objectives import chosen_resolution, load_backbone

    trained, output = read_json(Path(args.trained_dir) / "config.json"), Path(args.output_dir)
    fits = all(name in trained and isinstance(trained[name], kind) for name, kind in options.TRAINED.items())
    if not fits or trained["resolution"] < 16:
        raise InputError(f"{args.trained_dir} is of another script; python -m lipschitz_personalize.train makes what "
                         "is drawn with here")  # fmt: skip
    args.num_inference_steps, args.guidance_scale = options.sampling_of(trained, args)
    args.pretrained_model_name_or_path = args.pretrained_model_name_or_path or trained["pretrained_model_name_or_path"]
    args.prompt = args.prompt or list(filter(None, (trained["instance_prompt"], trained["class_prompt"])))
    dtype = PRECISIONS[args.mixed_precision]
    pipe = load_trained(args.trained_dir, args.pretrained_model_name_or_path, args.device, args.strength, dtype)
    args.resolution = chosen_resolution(pipe, args.resolution or trained["resolution"])
    base = load_backbone(args.pretrained_model_name_or_path, args.device, dtype) if args.compare_base else None

    def draw(one, number: int, prompt: str) -> list:
        generators = [step_generator(args.seed, number, picture) for picture in range(args.num_images)]
        return draw_pictures(one, [prompt] * args.num_images, generators, args.resolution, args.num_inference_steps,
                             args.guidance_scale)  # fmt: skip

    rows = {}  # what stands beside it -> pictures
    with measure() as cost:
        for number, prompt in enumerate(args.prompt):
            rows[number, prompt] = draw(pipe, number, prompt)
            for picture, image in enumerate(rows[number, prompt]):
                save_png(output / f"{number:02d}-{picture:02d}.png", image)
            if args.compare_base:
                rows[number, f"base: {prompt}"] = draw(base, number, prompt)
    made = {f"{number:02d}-{picture:02d}" for number, _ in enumerate(args.prompt) for picture in range(args.num_images)}
    remove_stale(output, [path for path in output.glob("[0-9]*-[0-9]*.png") if path.stem not in made])
    save_png(output / "grid.png", grid(list(rows.values()), [label for _, label in rows]))
    write_config(output, args)
    write_json(output / "metrics.json", {"seconds": cost.seconds, "peak_memory_mb": cost.peak_memory_mb})
    print(f"{cost.seconds:.0f} s; pictures in {output}, see {output / 'grid.png'}")


if __name__ == "__main__":
    main()
