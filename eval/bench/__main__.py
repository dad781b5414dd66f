"""Speed and memory against what a user would run instead: a module per part, pairs measured in turn, medians told with
the least and the most, and goals with whether they are met.

    python -m eval.bench --items 3
    python -m eval.bench --parts shifts --training_shapes sd15
"""

import argparse
import importlib
from pathlib import Path

from common.flags import number
from common.runs import InputError, make_parser, script, write_config, write_json

# modules with run(pipe, args) -> rows; commands is run when it is named, for it takes a quarter of an hour
PARTS = ("inversions", "sampling", "surgery", "penalty", "shifts", "training", "inpainting", "rows", "commands")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="what to measure; by default "
        "all but commands")  # fmt: skip
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--dataset", default="picturebook", help="picturebook, or a PIE-Bench folder; its first pictures are used")
    add("--items", type=number(int, 1), default=3, help="pictures to invert")
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="DDIM steps")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of sampling; inversion has none")
    add("--repeats", type=number(int, 1), default=5, help="pairs of samplings, ours and diffusers' in turn")
    add("--training_shapes", choices=("model", "sd15"), default="model", help="network of the parts penalty and "
        "shifts: the model's, or random ones of Stable Diffusion 1.5's shapes (penalty: some 20 GB)")  # fmt: skip
    add("--output_dir", default="outputs/bench", help="folder for bench.json")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    args = parser.parse_args(argv)
    if args.dataset != "picturebook" and not (Path(args.dataset) / "mapping_file.json").is_file():
        raise InputError(f"--dataset {args.dataset} holds no mapping_file.json; give a PIE-Bench folder")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from common.pipelines import load_pipeline
    from eval.experiments import machine

    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    output, found = Path(args.output_dir), {"machine": machine()}
    print(found["machine"])
    for part in args.parts:
        found |= importlib.import_module(f"eval.bench.{part}").run(pipe, args)
        write_json(output / "bench.json", found)  # after each, so that an interrupted run has measured something
    write_config(output, args)
    print(f"written to {output / 'bench.json'}")


if __name__ == "__main__":
    main()
