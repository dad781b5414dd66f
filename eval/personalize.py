"""The personalization arena: train every method on every subject, sample DreamBench's prompts, score, and write a page.

    python -m eval.personalize                                       on the picturebook's test subjects
    python -m eval.personalize --shard 1/4 & … --shard 4/4           four processes; then once more without --shard
    python -m eval.personalize --print_config                        every method at the paper's scale
    python -m eval.personalize --dataset dreambooth/dataset --metric_encoders paper \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5

An interrupted run goes on where it stopped: start it again with the same flags.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from common.flags import Shard, check_writable, is_picturebook_folder, number, shard
from common.runs import InputError, make_parser, read_json, script, write_config

PICTUREBOOK_PRESET = {"num_inference_steps": 25}
PAPER = {  # Table 2 of "Preserve and Personalize": 30 subjects x 25 prompts x 4 pictures
    "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "dataset": "the dataset folder of github.com/google/dreambooth: 30 subjects, 25 prompts each",
    "metric_encoders": "paper",
}
# What all rows of one folder have in common, beside the settings of each variant.
SAME = ("pretrained_model_name_or_path", "weights", "dataset", "split", "metric_encoders", "num_inference_steps",
        "guidance_scale", "images_per_prompt", "held_out_images")  # fmt: skip
NAMES = (  # of eval.tracks.personalization.methods, which needs torch
    "base", "textual_inversion", "oft", "ip_adapter", "blip_diffusion", "svdiff", "custom_diffusion+prior",
    "lipschitz_custom_diffusion", "lora+prior", "lipschitz_lora", "dreambooth", "dreambooth+prior", "lipschitz",
)  # fmt: skip
CURVE_NAMES = ("penalty", "prior", "early_stopping", "lower_rate", "interpolation")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=NAMES, help="each is trained; by default all that the model has weights for")
    add("--curves", nargs="*", choices=CURVE_NAMES, default=list(CURVE_NAMES), help="knobs turned for the comparisons "
        "at matched fidelity (Fig. 4); none: --curves alone")  # fmt: skip
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
    add("--shard", type=shard, metavar="I/N", help="take the I-th of N parts of subjects and seeds, for N processes")
    add("--keep_weights", action="store_true", help="keep every training's weights (weights/ of --output_dir)")
    add("--save_results", action="store_true", help="keep the rows in eval/results, to be shown by eval.compare")
    add("--device", help="cpu, cuda; a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what every method's flags resolve to, at the paper's scale "
        "unless a model is given, and stop")  # fmt: skip
    args = parser.parse_args(argv)
    if args.print_config and is_picturebook_folder(args.pretrained_model_name_or_path):
        args.__dict__.update({name: value for name, value in PAPER.items() if not given(parser, argv, name)})
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    if on_picturebook:
        for name, value in PICTUREBOOK_PRESET.items():
            if not given(parser, argv, name):
                setattr(args, name, value)
    if args.metric_encoders is None:
        args.metric_encoders = "picturebook" if on_picturebook and args.dataset == "picturebook" else "paper"
    check(args, on_picturebook)
    return args


def given(parser: argparse.ArgumentParser, argv: list[str] | None, name: str) -> bool:
    """Whether a flag stands on the command line."""
    missing = object()
    probe = parser.parse_args(argv, argparse.Namespace(**{action.dest: missing for action in parser._actions}))
    return getattr(probe, name) is not missing


def check(args: argparse.Namespace, on_picturebook: bool) -> None:
    """Raises InputError, before anything heavy is imported."""
    if args.metric_encoders == "picturebook" and args.dataset != "picturebook":
        raise InputError("--metric_encoders picturebook knows the picturebook's pictures only; take paper")
    if args.shard and args.save_results:
        raise InputError("--save_results wants all rows: run once more without --shard when all shards are done")
    if args.print_config:
        return
    if args.dataset != "picturebook" and not (Path(args.dataset) / "prompts_and_classes.txt").is_file():
        raise InputError(f"--dataset {args.dataset} holds no prompts_and_classes.txt; give a DreamBooth-dataset folder")
    if on_picturebook and (lacking := set(args.methods or ()) & {"ip_adapter", "blip_diffusion"}):
        raise InputError(f"{sorted(lacking)[0]} needs weights trained for Stable Diffusion 1.5; give "
                         "--pretrained_model_name_or_path, or leave it out")  # fmt: skip
    check_writable(Path(args.output_dir))


def plan(args: argparse.Namespace, tuned: dict[str, dict] | None = None):
    """(variants to run, variant -> flags of its training, method -> what all its flags resolve to).

    tuned: method -> flags over its script's defaults; by default those of eval/tuning/personalization.toml.
    """
    from eval.tracks.personalization import variants
    from eval.tracks.personalization.methods import METHODS

    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    names = args.methods or [name for name, method in METHODS.items() if not (method.needs and on_picturebook)]
    wanted = variants.variants(names, args.curves)
    if tuned is None:
        tuned = variants.tuned_settings() if on_picturebook else {}
    if args.device:
        tuned = {name: {**tuned.get(name, {}), "device": args.device} for name in METHODS}
    whole = {name: variants.resolved(name, args.pretrained_model_name_or_path, tuned.get(name, {}))
             for name in dict.fromkeys(variant.method for variant in wanted)}  # fmt: skip
    return wanted, {variant.name: variants.settings_of(variant, tuned, whole) for variant in wanted}, whole


def check_same_settings(output: Path, config: dict) -> dict[str, dict]:
    """The settings of all that the folder has rows of or is to have. InputError if its rows were made with others."""
    if not (output / "config.json").is_file():
        return config["methods"]
    before = read_json(output / "config.json")
    differing = [name for name in SAME if before.get(name) != config.get(name)]
    then, now = before.get("methods", {}), config["methods"]
    differing += [f"the settings of {name}" for name in then.keys() & now.keys() if then[name] != now[name]]
    if differing:
        raise InputError(f"the rows in {output} were made with another {differing[0]}: take the same, or another "
                         "--output_dir")  # fmt: skip
    return then | now


def prepare(args: argparse.Namespace, tuned: dict[str, dict] | None = None):
    """The arena with everything loaded that all subjects share, and the subjects."""
    from common.data import read_subjects
    from common.flags import weights_of
    from eval.tracks.personalization import protocol, scoring
    from eval.tracks.personalization.arena import Arena

    folder, subjects = protocol.find_subjects(args.dataset, args.split, args.subjects, args.limit)
    wanted, settings, whole = plan(args, tuned)
    args.weights = weights_of(args.pretrained_model_name_or_path)
    output = Path(args.output_dir)
    methods = {name: whole.get(name, {}) | flags for name, flags in settings.items()}
    config = {**vars(args), "methods": {name: plain(flags) for name, flags in methods.items()}}
    config["methods"] = check_same_settings(output, config)
    eyes = scoring.load_eyes(args.metric_encoders, args.device)
    how = protocol.Sampling(args.num_inference_steps, args.guidance_scale, args.images_per_prompt)
    classes = kinds() if args.dataset == "picturebook" else [one.class_name for one in read_subjects(folder)]
    part = f"-{args.shard.index}of{args.shard.count}" if args.shard else ""
    arena = Arena(args, output, folder, classes, how, wanted, settings, eyes, f"rows{part}.jsonl")
    if any(arena.missing(subject, seed) for subject in subjects for seed in args.seeds):
        arena.base()  # a model that is not there is reported before anything is written
    write_config(output, config)
    return arena, subjects


def kinds() -> list[str]:
    from common.picturebook.scenes import KINDS

    return list(KINDS)


def plain(flags: dict) -> dict:
    """Flags as they come back from config.json, without the places that every run has its own of."""
    places = {"output_dir", "instance_data_dir", "class_data_dir", "print_config", "device"}
    return json.loads(json.dumps({name: value for name, value in flags.items() if name not in places}))


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.print_config:
        _, _, whole = plan(args)
        arena = {name: value for name, value in vars(args).items() if name != "print_config"}
        print(json.dumps({"arena": arena, "methods": whole}, indent=2))
        return
    from eval.tracks.personalization.arena import run_subject

    arena, subjects = prepare(args)
    runs = [(subject, seed) for seed in args.seeds for subject in subjects]
    for subject, seed in (args.shard or Shard()).of(runs):
        run_subject(arena, subject, seed)
    if args.shard:
        print(f"shard {args.shard} is done; start without --shard for the page when all are")
        return
    from eval.report.report import write_page
    from eval.tracks.personalization.track import track_of
    from eval.tracks.track import save_results

    track = track_of(arena.output, subjects, arena.dataset, args)
    if args.save_results:
        rows = [{key: value for key, value in row.items() if key != "seen"} for row in track.runs[0].rows]
        print(f"kept {save_results(track.name, replace(track.runs[0], rows=rows))}")
    print(f"open {write_page(arena.output / 'index.html', [track])}")


if __name__ == "__main__":
    main()
