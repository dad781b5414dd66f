"""Table 1, the paper's figures and its analyses, with the claims that they support.

    python -m svdiff.eval                        Table 1: counted on Stable Diffusion's UNet, beside the published sizes
    python -m svdiff.eval --figure 5 6 7         trains what is missing, draws, scores, judges the claims
    python -m svdiff.eval --figure study         the user study of Sec. 4.2 as a page to fill in

An interrupted run goes on where it stopped: start it again with the same flags. --shard 1/8 to 8/8 share a run.
"""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path

from common.files import InputError, locked, read_json, read_rows, write_json
from common.flags import is_picturebook_folder, number, say_unheeded, show_config
from common.runs import joined_config, make_parser, script, write_config
from common.shards import add_shard_flag
from svdiff import options
from svdiff.reproduction import FIGURES, folder_name

PICTUREBOOK = ("picturebook", "picturebook-twins")
# What all rows of an output folder have in common.
SAME = ("pretrained_model_name_or_path", "weights", "dataset", "split", "metric_encoders", "seed", "max_train_steps",
        "learning_rate", "num_inference_steps", "guidance_scale", "eta", "negative_prompt",
        "inversion_timestep", "geometry_layers")  # fmt: skip


def rate(text: str) -> tuple[str, float]:
    """An argparse type: a parameter space and its learning rate, "svdiff=1e-3"."""
    space, _, value = text.partition("=")
    if space not in options.PARAMETER_SPACES:
        raise argparse.ArgumentTypeError(f"{text!r} names no parameter space; svdiff=1e-3 is one with its rate")
    return space, number(float, 0)(value)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    one = parser.add_mutually_exclusive_group().add_argument
    one("--table", choices=("1",), help="print this table; the default, without --figure")
    one("--figure", nargs="+", choices=FIGURES, default=[], help="figures of the paper; ablation (the subsets of Table "
        "1), rank and scaling (Sec. 4.4); study (Sec. 4.2)")  # fmt: skip
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--dataset", default="picturebook", help="picturebook, picturebook-twins (eight pairs of one class) or a "
        "DreamBooth-dataset folder")  # fmt: skip
    add("--split", choices=("test", "validation"), default="test", help="of the picturebook; tune on validation only")
    add("--subjects", nargs="+", help="take these of the dataset; by default the first --limit")
    add("--limit", type=number(int, 1), default=4, help="how many subjects (the paper: 5)")
    add("--pairs", nargs="+", type=number(int, 0), default=[2], metavar="N", help="similar pairs of subjects, and "
        "dissimilar ones: two numbers, or one for both")  # fmt: skip
    add("--prompts", type=number(int, 1), default=4, help="prompts per subject or pair")
    add("--images_per_prompt", type=number(int, 1), default=2, help="seeds per prompt")
    add("--items", type=number(int, 1), default=8, help="pictures to edit, for figure 7")
    add("--items_dir", help="a PIE-Bench folder for figure 7; by default the picturebook's")
    add("--max_train_steps", type=number(int, 1), help="of every training; the model's preset by default")
    add("--learning_rate", nargs="+", type=rate, metavar="SPACE=RATE", help="of every training in svdiff, full or "
        "lora; the model's preset by default")  # fmt: skip
    add("--rates", nargs="+", type=rate, metavar="SPACE=RATE", help="of --figure tuning, in place of its grid: several "
        "of a space, to follow a winner beyond an edge")  # fmt: skip
    add("--num_class_images", type=number(int, 1), help="of every training; the model's preset by default")
    add("--gate", type=number(float, 0, 1), default=0.8, help="of figure 6: the share of pictures in which the untuned "
        "model, told the colours, has to show all of a pair, or it is left out")  # fmt: skip
    add("--unmix_weight", type=number(float, 0), default=0.1, help="of the rows with the unmix regularisation")
    options.add_sampling_flags(parser)
    add("--answers", nargs="+", metavar="FILE", help="answers to the user study's page, to be counted")
    add("--metric_encoders", help="picturebook, pie, or a folder; by default those that suit the model")
    add_shard_flag(parser, "lines of a figure")
    add("--output_dir", default="outputs/svdiff_eval", help="folder for trainings, pictures, rows, results.json")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of trainings, and of the first picture")
    add("--device", choices=("cpu", "cuda"), help="a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    args = parser.parse_args(argv)
    options.resolve_sampling(args)
    known = is_picturebook_folder(args.pretrained_model_name_or_path)
    args.metric_encoders = args.metric_encoders or ("picturebook" if known else "pie")
    spaces = [space for space, _ in args.learning_rate or []]
    if twice := [space for space in spaces if spaces.count(space) > 1]:
        raise InputError(f"--learning_rate names {twice[0]} twice, with a rate each: give one of them")
    if len(args.pairs) > 2 or not any(args.pairs):
        raise InputError("--pairs takes one number, of 1 or more, or two: of similar pairs and of dissimilar ones")
    if args.answers and args.figure != ["study"]:
        raise InputError("--answers are counted by --figure study")
    for path in args.answers or []:
        if not Path(path).is_file():
            raise InputError(f"--answers {path} is no file; give what the page saved")
    if args.dataset not in PICTUREBOOK and not (Path(args.dataset) / "prompts_and_classes.txt").is_file():
        raise InputError(f"--dataset {args.dataset} holds no prompts_and_classes.txt; give a DreamBooth-dataset folder")
    if args.items_dir and not (Path(args.items_dir) / "mapping_file.json").is_file():
        raise InputError(f"--items_dir {args.items_dir} holds no mapping_file.json; give a PIE-Bench folder")
    if not args.figure:  # Table 1 is counted
        counted = {"table", "output_dir", "print_config"}
        say_unheeded(parser, args, dict.fromkeys(sorted(parser.given - counted), ("figure", True)))
    return args


def table_1() -> tuple[str, dict[str, dict[str, int]]]:
    """Table 1 with our counts on Stable Diffusion's UNet beside it; and per subset tensors, numbers, bytes as
    torch.save and as our file."""
    from common.tables import published_table, text_table
    from svdiff.subsets import cost, stable_diffusion_unet

    unet, found, printed = stable_diffusion_unet(), {}, published_table("svdiff", "1")
    lines = [["Subset", "tensors", "numbers", "KB published", "KB as torch.save", "KB as our file"]]
    for subset, kilobytes in ((row["subset"], row["values"][0]) for row in printed["rows"]):
        one = found[subset] = cost(unet, subset)
        sizes = (f"{one[name] / 1024:.1f}" for name in ("torch_bytes", "file_bytes"))
        lines.append([subset, str(one["tensors"]), f"{one['values']:,}", f"{kilobytes:g}", *sizes])
    doubts = "\n".join(f"- {doubt}" for doubt in printed["doubts"])
    head = f"{printed['title']}\n({printed['place']})"
    return f"{head}\n\n{text_table(lines)}\n\nOn the published numbers:\n{doubts}", found


def open_study(args: argparse.Namespace):
    """Model, subjects, prompts and encoders, loaded once for all figures."""
    from common.data import edit_digest, read_pie_bench, read_subject_prompts, read_subjects
    from common.encoders import load_encoders
    from common.joining import digest_of_data
    from common.picturebook.benchmarks import ensure_subjects, ensure_twins
    from common.pipelines import load_pipeline, native_resolution
    from svdiff.basis import Bases
    from svdiff.editing import Sampling
    from svdiff.reproduction.study import Study

    made = {"picturebook": ensure_subjects, "picturebook-twins": ensure_twins}.get(args.dataset)
    folder = made(args.split) if made else Path(args.dataset)
    every = read_subjects(folder, needed=args.subjects)
    wanted = read_subjects(folder, args.subjects) if args.subjects else every[: args.limit]
    kinds = read_subject_prompts(folder)
    templates = {subject.name: kinds[subject.prompt_kind] for subject in every}
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    bases = Bases(pipe, args.basis_dir)
    args.weights = bases.base("unet")[:12]
    rows = [row for file in Path(args.output_dir).glob("*/rows.jsonl") for row in read_rows(file)]
    told = {one.name: digest_of_data([one.class_name, templates[one.name]], one.paths) for one in every if one.paths}
    if args.items_dir and "7" in args.figure:
        told |= {item.id: edit_digest(item, Path(args.items_dir)) for item in read_pie_bench(args.items_dir)}
    args.pictures = joined_config(args.output_dir, vars(args), SAME, rows, pictures=told)["pictures"]
    encoders = load_encoders(args.metric_encoders, args.device)
    return Study(args, pipe, wanted, every, templates, encoders, bases, Path(args.output_dir),
                 Sampling(**options.sampling_of(args)), native_resolution(pipe))  # fmt: skip


def run_figure(study, name: str) -> dict:
    """Run one figure in a folder of its own; prints its scores and claims, and returns both."""
    from common import claims
    from common.tables import by_method, by_subject, score_table

    folder, (module, _, function) = folder_name(name), FIGURES[name].partition(".")
    study = replace(study, output=Path(study.args.output_dir) / folder)
    study.output.mkdir(parents=True, exist_ok=True)
    getattr(importlib.import_module(f"svdiff.reproduction.{module}"), function)(study)
    rows = read_rows(study.rows)
    summary, found = by_method(by_subject(rows), costs=()), claims.tried("svdiff", rows, f"svdiff.{folder}")
    if summary:
        print(f"\n{name}, {study.args.metric_encoders} encoders\n\n{score_table(summary, 'subjects')}\n")
    if found:
        print(claims.report(found), end="\n\n")
    return {"summary": summary, "claims": [claims.as_json(one) for one in found]}


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if show_config(args):
        return
    output = Path(args.output_dir)
    if not args.figure:
        text, found = table_1()
        print(text)
        write_json(output / "table1.json", found)
        return
    study = open_study(args)
    write_config(output, args)
    from svdiff.reproduction.study import Unfinished

    for name in args.figure:
        try:
            found = run_figure(study, name)
        except Unfinished:
            continue
        with locked(output / "results.json"):
            results = read_json(output / "results.json") if (output / "results.json").is_file() else {}
            write_json(output / "results.json", {**results, name: found})
    print(json.dumps({name: str(output / folder_name(name)) for name in args.figure}))


if __name__ == "__main__":
    main()
