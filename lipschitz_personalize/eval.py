"""Train the folder's methods on subjects, sample DreamBench's prompts, score: tables and figures of the paper.

    python -m lipschitz_personalize.eval --table 1                  # own rows inside the whole published table
    python -m lipschitz_personalize.eval --figure 2 4 5 --drift     # lambda against drift and scores

Without arguments: DreamBooth, plain, with prior preservation and with the penalty, on one picturebook subject.
"""

import argparse
import json
from pathlib import Path

from common.flags import is_picturebook_folder, number, weights_of
from common.runs import (
    InputError,
    append_row,
    make_parser,
    methods_in,
    read_json,
    read_rows,
    script,
    write_config,
    write_json,
)
from lipschitz_personalize import options
from lipschitz_personalize.reproduction import plan

NEVER = 10**9  # a training that is interrupted is begun anew
SETTINGS = ("weights", "dataset", "split", "num_images", "num_inference_steps", "guidance_scale", "metric_encoders",
            "prompts", "held_out_classes")  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--table", choices=("1", "2"), help="run the rows of this table that this folder owns")
    add("--figure", nargs="+", type=int, choices=(1, 2, 3, 4, 5), default=[], help="1: the toy; 2: drift over lambda; "
        "3: methods side by side; 4: scores over lambda; 5: pictures over lambda")  # fmt: skip
    add("--drift", action="store_true", help="also measure drift of samples and held-out classes")
    add("--held_out_classes", nargs="+", metavar="NAME", help="what drift is measured on; by default the dataset's "
        "classes but the subject's own")  # fmt: skip
    add(
        "--methods", nargs="+", metavar="NAME", help=f"instead: {', '.join(plan.methods())}, each with @flag=value, ..."
    )
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--backbone", choices=options.BACKBONES, help="by default that of the model")
    add("--dataset", default="picturebook", help="picturebook, or a DreamBench folder with prompts_and_classes.txt")
    add("--split", choices=("validation", "test"), default="test", help="of the picturebook's subjects")
    add("--subjects", nargs="+", metavar="NAME", help="by default the first one; with --full all")
    add("--full", action="store_true", help="all subjects, all prompts, four pictures each (DreamBench's protocol)")
    add("--seeds", nargs="+", type=number(int, 0, 2**62), default=[0], help="one training per subject and seed")
    add("--prompts", type=number(int, 1), default=5, help="the first so many prompts; with --full all")
    add("--num_images", type=number(int, 1), default=1, help="pictures per prompt; with --full 4")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of sampling; by default as released: 50, SD3 28")
    add(
        "--guidance_scale", type=number(float, 0), help="by default as released: 7.5; SD3 and SDXL's Custom Diffusion 5"
    )
    add("--metric_encoders", help="picturebook, or a folder with clip-vit-base-patch32/ and dino-vits16/, and for "
        "the FID inception-2015-12-05.pt; by default the picturebook's for the picturebook, the published ones for "
        "other models")  # fmt: skip
    add("--keep_weights", action="store_true", help="keep every training's weights")
    add("--output_dir", default="outputs/lipschitz_personalize/eval", help="folder for results; what is done is kept")
    add("--device", choices=("cpu", "cuda"), help="a GPU if there is one by default")
    add("--print_config", action="store_true", help="print what every training resolves to, and stop")
    add("--train_args", nargs=argparse.REMAINDER, default=[], help="everything after it goes to every training")
    args = parser.parse_args(argv)
    if args.full:
        args.prompts, args.num_images = 10**6, 4
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    args.metric_encoders = args.metric_encoders or ("picturebook" if on_picturebook else "published")
    args.weights = weights_of(args.pretrained_model_name_or_path)
    if args.dataset == "picturebook" and not on_picturebook:
        raise InputError("--dataset picturebook is for the picturebook; give a DreamBench folder for other models")
    if args.dataset != "picturebook" and not (Path(args.dataset) / "prompts_and_classes.txt").is_file():
        raise InputError(f"--dataset {args.dataset} holds no prompts_and_classes.txt; give a DreamBench folder")
    if args.dataset == "picturebook" and args.held_out_classes:
        from common.picturebook.scenes import KINDS

        if unknown := [name for name in args.held_out_classes if name not in KINDS]:
            raise InputError(f"--held_out_classes {unknown[0]}: the picturebook knows {', '.join(KINDS)}")
    return args


def training_flags(args: argparse.Namespace, name: str, subject=None, seed: int = 0) -> list[str]:
    """The flags of one training: the method's, the subject's, then those of --train_args."""
    model = args.pretrained_model_name_or_path
    flags = ["--pretrained_model_name_or_path", model, *plan.flags_of(name, model), "--seed", str(seed)]
    if args.backbone:
        flags += ["--backbone", args.backbone]
    if args.device:
        flags += ["--device", args.device]
    if subject is not None:
        flags += ["--instance_data_dir", str(subject.paths[0].parent), "--checkpointing_steps", str(NEVER)]
        flags += ["--instance_prompt", f"{start_of(args)} {token_of(args, name)} {subject.class_name}"]
        flags += ["--class_prompt", f"{start_of(args)} {subject.class_name}"]
        # one folder of class pictures for all methods, subjects and seeds of a class would save time, and then the
        # price of prior preservation could not be measured: every training draws its own
        flags += ["--output_dir", str(folder_of(args, name, subject, seed))]
    return [*flags, *args.train_args]


def start_of(args: argparse.Namespace) -> str:
    """How a training's prompts begin; no caption of the picturebook says "photo"."""
    return "a" if is_picturebook_folder(args.pretrained_model_name_or_path) else "a photo of a"


def token_of(args: argparse.Namespace, name: str) -> str:
    """The word for the subject: Custom Diffusion's new one (of SD3 none is trained), else the rare "sks"."""
    backbone = args.backbone or options.guess_backbone(args.pretrained_model_name_or_path)
    return "<new1>" if "custom_diffusion" in name and backbone != "sd3" else "sks"


def folder_of(args: argparse.Namespace, name: str, subject, seed: int) -> Path:
    return Path(args.output_dir) / "trained" / name / f"{subject.name}-{seed}"


def read_data(args: argparse.Namespace):
    """(subjects, prompts by kind, all class names)."""
    from common.data import read_subject_prompts, read_subjects
    from common.picturebook.benchmarks import ensure_subjects

    folder = ensure_subjects(args.split) if args.dataset == "picturebook" else Path(args.dataset)
    everyone = read_subjects(folder, needed=args.subjects)
    named = read_subjects(folder, args.subjects) if args.subjects else everyone if args.full else everyone[:1]
    return named, read_subject_prompts(folder), sorted({subject.class_name for subject in everyone})


def load_eyes(args: argparse.Namespace):
    """(CLIP, DINO, Inception) of the scores: ViT-B/32 and ViT-S/16, as in the DreamBooth paper, or the picturebook's;
    with --drift the FID's Inception, else None, as on the picturebook and for a folder that has none."""
    from common.encoders import INCEPTION_FILE, load_clip, load_dino, load_inception

    if args.metric_encoders == "picturebook":
        return load_clip("picturebook", args.device), load_dino("picturebook", args.device), None
    if args.metric_encoders == "published":
        clip, dino, folder = "openai/clip-vit-base-patch32", "facebook/dino-vits16", None
    else:
        folder = Path(args.metric_encoders)
        clip, dino = folder / "clip-vit-base-patch32", folder / "dino-vits16"
    with_fid = args.drift and (folder is None or (folder / INCEPTION_FILE).is_file())
    inception = load_inception(folder, args.device) if with_fid else None
    return load_clip(clip, args.device), load_dino(dino, args.device), inception


def run_item(args: argparse.Namespace, name: str, subject, seed: int, templates: list[str], classes: list[str], eyes,
             base, kept: dict) -> dict:  # fmt: skip
    """Train (unless that is done), sample, score; returns the result row. kept: of drift.draw_both."""
    import shutil

    import torch

    from common.data import fill_prompt
    from common.images import center_crop_resize, load_image, save_png, to_tensor
    from common.training import draw_pictures, step_generator
    from lipschitz_personalize import train
    from lipschitz_personalize.loading import load_trained
    from lipschitz_personalize.reproduction import drift, scores

    folder = folder_of(args, name, subject, seed)
    if not (folder / "metrics.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted: the time is to be that of one piece
        train.main(training_flags(args, name, subject, seed))
    cost, config = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    pipe = load_trained(folder, args.pretrained_model_name_or_path, args.device)
    wanted = [(p, template, n) for p, template in enumerate(templates) for n in range(args.num_images)]
    steps, guidance = options.SAMPLING.get((config["backbone"], config["parameter_space"]), (50, 7.5))
    pictures, sampling = (
        [],
        {
            "resolution": config["resolution"],
            "num_inference_steps": args.num_inference_steps or steps,
            "guidance_scale": guidance if args.guidance_scale is None else args.guidance_scale,
        },
    )
    for start in range(0, len(wanted), 8):
        part = wanted[start : start + 8]
        prompts = [fill_prompt(template, token_of(args, name), subject.class_name) for _, template, _ in part]
        generators = [step_generator(seed, p, n) for p, _, n in part]
        for (p, _, n), image in zip(part, draw_pictures(pipe, prompts, generators, **sampling), strict=True):
            save_png(picture_path(args, name, subject, seed, p, n), image)
            pictures.append(to_tensor(image))
    drawn, clip, dino, inception = torch.cat(pictures), *eyes
    real = torch.cat([to_tensor(center_crop_resize(load_image(path), config["resolution"])) for path in subject.paths])
    metrics = scores.fidelity(drawn, real, clip, dino)
    metrics |= scores.adherence(drawn, [template for _, template, _ in wanted], subject.class_name, clip)
    others = [other for other in args.held_out_classes or classes if other != subject.class_name]
    more = {}
    if args.drift:
        # among the subject's own class too: what drifted towards the subject is to be seen as such
        every = list(dict.fromkeys([*classes, *others]))
        recognise = drift.classifier_eye(args.device) if args.dataset == "picturebook" else drift.clip_eye(clip, every)
        more = {"classes": others, "recognise": recognise, "dino": dino, "clip": clip, "ratios": True}
        more |= {"inception": inception} if inception else {}
    more["class_prompt"] = start_of(args) + " {}"
    held_out = [f"{start_of(args)} {other}" for other in others[:4]] or list(drift.HELD_OUT_PROMPTS)
    count = max(2, args.num_images)  # a Frechet distance of one picture there is not
    metrics |= drift.measure_drift(pipe, base, held_out, count=count, seed=seed, sampling=sampling, kept=kept, **more)
    return {
        "paper": "lipschitz_personalize",
        "method": name,
        "item": f"{subject.name}/{seed}",
        "seed": seed,
        "l2_reg_weight": config["l2_reg_weight"],
        "metrics": metrics,
        "seconds": cost["seconds"] + cost["class_seconds"],
        "train_seconds": cost["seconds"],
        "class_seconds": cost["class_seconds"],
        "peak_memory_mb": cost["peak_memory_mb"],
        "trainable_parameters": cost["trainable_parameters"],
        "file_bytes": cost["file_bytes"],
    }


def drop_weights(folder: Path) -> None:
    """Once a training's row is written: all but its settings, costs and pictures."""
    import shutil

    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in ("metrics.json", "config.json", "grid.png"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def picture_path(args: argparse.Namespace, name: str, subject, seed: int, prompt: int, number: int) -> Path:
    return Path(args.output_dir) / "pictures" / name / f"{subject.name}-{seed}" / f"{prompt:02d}-{number}.png"


def resolved(args: argparse.Namespace, names: list[str]) -> dict[str, dict]:
    """Every training's settings, by method."""
    return {name: vars(options.parse([*training_flags(args, name), "--print_config"])) for name in names}


def keep_config(args: argparse.Namespace, settings: dict[str, dict]) -> None:
    """config.json with the settings of every method in the folder. InputError if it holds rows of other settings."""
    path = Path(args.output_dir) / "config.json"
    before = read_json(path) if path.exists() else {}
    now = json.loads(json.dumps(settings))
    if (Path(args.output_dir) / "rows.jsonl").exists():
        changed = [f"--{key}" for key in ("pretrained_model_name_or_path", *SETTINGS)
                   if before.get(key) != vars(args)[key]]  # fmt: skip
        for name, own in now.items():
            then = methods_in(before, path).get(name, own)
            changed += [f"{key} of {name}" for key in own if then.get(key) != own[key]]
        if changed:
            raise InputError(f"{args.output_dir} holds results with another {changed[0]}; take the same one, or "
                             "another --output_dir")  # fmt: skip
    write_config(args.output_dir, args, methods=methods_in(before, path) | now)


def report(args: argparse.Namespace, names: list[str], rows: list[dict]) -> None:
    """results.json, and tables and claims on the screen."""
    from common import claims
    from common.tables import by_method, score_table
    from lipschitz_personalize.reproduction import tables

    summary = by_method(rows, tables.COSTS)
    findings = claims.tried("lipschitz_personalize", rows)
    print(score_table(summary, "subjects x seeds"), end="\n\n")
    if args.table:
        backbone = args.backbone or options.guess_backbone(args.pretrained_model_name_or_path)
        called = f"measured, {args.dataset}, {args.metric_encoders} encoders"
        measured = {called: tables.of_methods(args.table, summary, backbone)}
        print(tables.beside_published(args.table, measured), end="\n\n")
    print(claims.report(findings), end="\n\n")
    write_json(Path(args.output_dir) / "results.json",
               {"overall": summary, "claims": [claims.as_json(one) for one in findings]})  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    names = plan.wanted(args)
    settings = resolved(args, names)
    if args.print_config:
        print(json.dumps({**vars(args), "methods": settings}, indent=2))
        return
    output = Path(args.output_dir)
    if 1 in args.figure:
        from lipschitz_personalize.reproduction import toy

        toy.main(["--output_dir", str(output / "figure_1")])
    if not names:
        return
    keep_config(args, settings)

    from tqdm import tqdm

    from lipschitz_personalize.objectives import load_backbone
    from lipschitz_personalize.reproduction import figures

    subjects, prompts, classes = read_data(args)
    eyes, base = load_eyes(args), load_backbone(args.pretrained_model_name_or_path, args.device)
    done = {(row["method"], row["item"]) for row in read_rows(output / "rows.jsonl")}
    items = [(name, subject, seed) for subject in subjects for seed in args.seeds for name in names]
    kept, last = {}, None
    for name, subject, seed in tqdm(items, "trainings", disable=None):
        if (subject.class_name, seed) != last:  # the base's pictures for drift are the same for all methods
            kept, last = {}, (subject.class_name, seed)
        if (name, f"{subject.name}/{seed}") not in done:
            templates = prompts["live" if subject.live else "object"][: args.prompts]
            row = run_item(args, name, subject, seed, templates, classes, eyes, base, kept)
            append_row(output / "rows.jsonl", row)
        if not args.keep_weights:
            drop_weights(folder_of(args, name, subject, seed))
    at_hand = {(name, f"{subject.name}/{seed}") for name, subject, seed in items}
    rows = [row for row in read_rows(output / "rows.jsonl") if (row["method"], row["item"]) in at_hand]
    report(args, names, rows)
    figures.draw(args, names, rows, subjects, prompts, output, picture_path)
    print(f"{len(rows)} rows; everything in {output}, pictures in {output / 'grid.png'}")


if __name__ == "__main__":
    main()
