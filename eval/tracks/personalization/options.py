"""The arena's flags. Nothing heavy is imported here."""

import argparse
import difflib
import sys
from pathlib import Path

from common.flags import check_writable, is_picturebook_folder, number
from common.runs import InputError, make_parser
from common.shards import add_shard_flag
from eval.tracks.personalization.methods import METHODS
from eval.tracks.personalization.variants import CURVES

PICTUREBOOK_PRESET = {"num_inference_steps": 25}
PAPER = {  # Table 2 of "Preserve and Personalize": 30 subjects x 25 prompts x 4 pictures
    "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "dataset": "the dataset folder of github.com/google/dreambooth: 30 subjects, 25 prompts each",
    "metric_encoders": "paper",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser("The personalization arena: train every method on every subject, sample prompts, score.")
    add = parser.add_argument
    add("--methods", nargs="+", type=method, metavar="NAME", help=f"of {', '.join(METHODS)}; by default all that the "
        "model has weights for")  # fmt: skip
    add("--curves", nargs="*", choices=CURVES, default=list(CURVES), help="knobs turned for the comparisons at matched "
        "fidelity (Fig. 4); none: --curves alone")  # fmt: skip
    add("--subjects_dir", help="your own subjects: a folder of pictures for each, named after it and its class "
        "(rex_dog), or subjects.csv with the columns subject,class; prompts.txt for prompts of your own")  # fmt: skip
    add("--subjects", nargs="+", help="names of subjects; all by default")
    add("--limit", type=number(int, 1), help="take only so many subjects")
    add("--seeds", nargs="+", type=number(int, 0, 10**6), default=[0], help="trainings per method and subject")
    add("--images_per_prompt", type=number(int, 1, 1000), default=4, help="as in DreamBench")
    add("--held_out_images", type=number(int, 1, 90), default=2, help="pictures per held-out class, for drift")
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="of sampling (not stated in the paper for "
        "its scores; its script samples with 50)")  # fmt: skip
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of sampling, as in the paper's script")
    add("--dataset", default="picturebook", help="picturebook, or a DreamBooth-dataset folder")
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--metric_encoders", help="picturebook, paper (DreamBench's), or a folder with copies of these; by default "
        "those that suit model and dataset")  # fmt: skip
    add("--output_dir", default="outputs/personalize", help="folder for rows, pictures and index.html")
    add_shard_flag(parser, "subjects and seeds")
    add("--keep_weights", action="store_true", help="keep every training's weights (weights/ of --output_dir)")
    add("--device", help="cpu, cuda; a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what every method's flags resolve to, at the paper's scale "
        "unless a model is given, and stop")  # fmt: skip
    args = parser.parse_args(argv)
    if args.print_config and is_picturebook_folder(args.pretrained_model_name_or_path):
        parser.set_defaults(**PAPER)
        args = parser.parse_args(argv)
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    if on_picturebook:
        parser.set_defaults(**PICTUREBOOK_PRESET)
        args = parser.parse_args(argv)
    args.seeds = list(dict.fromkeys(args.seeds))
    if args.metric_encoders is None:
        args.metric_encoders = "picturebook" if on_picturebook and args.dataset == "picturebook" else "paper"
    check(args, on_picturebook)
    return args


def method(name: str) -> str:
    """An argparse type: a name of METHODS."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, 1, 0.4)
        said = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(METHODS)}"
        raise argparse.ArgumentTypeError(f"there is no method {name!r}{said}")
    return name


def check(args: argparse.Namespace, on_picturebook: bool) -> None:
    """Raises InputError, before anything heavy is imported."""
    if args.metric_encoders == "picturebook" and args.dataset != "picturebook":
        raise InputError("--metric_encoders picturebook knows the picturebook's pictures only; take paper")
    if args.print_config:
        return
    if args.subjects_dir and args.dataset != "picturebook":
        raise InputError("--subjects_dir and --dataset are two sources of subjects; leave one out")
    if args.subjects_dir and not Path(args.subjects_dir).is_dir():
        raise InputError(f"--subjects_dir {args.subjects_dir} is no folder; give one with a folder for each subject")
    if args.dataset != "picturebook" and not (Path(args.dataset) / "prompts_and_classes.txt").is_file():
        raise InputError(f"--dataset {args.dataset} holds no prompts_and_classes.txt; give a DreamBooth-dataset folder")
    if on_picturebook and (lacking := [name for name in args.methods or () if METHODS[name].needs]):
        raise InputError(f"{lacking[0]} needs weights trained for Stable Diffusion 1.5; give "
                         "--pretrained_model_name_or_path, or leave it out")  # fmt: skip
    check_writable(Path(args.output_dir))
    if args.subjects_dir and on_picturebook:
        print("the picturebook is a drawn world of 64 pixels; for photographs give --pretrained_model_name_or_path",
              file=sys.stderr)  # fmt: skip
