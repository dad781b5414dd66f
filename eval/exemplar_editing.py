"""Track "exemplar editing": PIXELS, its controls and the baselines that run on the same model, under grey maps."""

import argparse
import shlex
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.runs import done_items, read_json, read_rows, write_config
from eval.measures import find
from eval.track import Item, Picture, Run, Track, date_of, earlier_results
from pixels import eval as pixels_eval
from pixels import options

NAME = "exemplar_editing"
METHODS = {
    "paste": "Paste",
    "latent_paste": "Latents replaced",
    "perturbed": "Latents replaced, noised",
    "noise_scaling": "Noise scaled by the map",
    "sdedit": "SDEdit",
    "blended_latent": "Blended latent diffusion",
    "differential_diffusion": "Differential Diffusion (text)",
    "pixels": "PIXELS",
}
COLUMNS = [
    "edit_success", "psnr_truth", "lpips_truth", "CLIP-I/same_box", "seam", "seam_truth", "contrast", "psnr_kept",
    "lpips_kept", "seconds", "peak_memory_mb",
]  # fmt: skip
SETTINGS = Path(__file__).parent / "exemplar_settings.toml"  # of each method, tuned on the validation split
NOTES = [
    "Pasting copies the exemplar's own pixels: it wins every likeness to the exemplar by construction and keeps the "
    "rest to the bit. It stands here as the control; read likeness and seam together.",
    "Methods without grey maps are given the map binarised at 0.5. Differential Diffusion knows no exemplar and is "
    "told the target prompt instead; all others run with an empty prompt, as in the paper.",
    "Blended latent diffusion starts its region from the exemplar here (published: from text alone). For every method "
    "the same number of settings was tried on the validation split (eval/tune_exemplar.py).",
    "Changes of style are left out: their map is black all over, and there is nothing to blend.",
]


def command(args: argparse.Namespace) -> list[str]:
    """The arguments of pixels.eval for the flags of eval.compare; flags left at None stay at its defaults."""
    given = {
        "pretrained_model_name_or_path": args.pretrained_model_name_or_path,
        "limit": args.items,
        "num_inference_steps": args.num_inference_steps,
        "metric_encoders": "paper" if args.metric_encoders == "pie" else args.metric_encoders,
        "seed": args.seed,
        "device": args.device,
        "output_dir": str(Path(args.output_dir) / NAME),
    }
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def functions() -> dict[str, Any]:
    """Every method of the track."""
    from eval.baselines import blended_latent, differential_diffusion, sdedit
    from pixels.baselines import METHODS as OWN

    others = {
        "sdedit": sdedit.edit,
        "blended_latent": blended_latent.edit,
        "differential_diffusion": differential_diffusion.edit,
    }
    return {name: {**OWN, **others}[name] for name in METHODS}


def own_settings(on_picturebook: bool) -> dict[str, dict[str, Any]]:
    """What each method runs with in place of the model's preset: the tuned settings on the picturebook, none elsewhere;
    Differential Diffusion's prompt everywhere."""
    from pixels.scoring import ITEM_PROMPT

    tuned = tomllib.loads(SETTINGS.read_text(encoding="utf-8")) if on_picturebook else {}
    text = {"prompt": ITEM_PROMPT} | ({} if on_picturebook else {"guidance_scale": 7.5})
    return {**tuned, "differential_diffusion": tuned.get("differential_diffusion", {}) | text}


def find_pairs(args: argparse.Namespace) -> list:
    """The pairs of the comparison's dataset; none where its items have no exemplars."""
    from pixels.pairs import benchmark_pairs, picturebook_pairs

    if args.dataset == "picturebook":
        return picturebook_pairs(limit=args.items)
    return benchmark_pairs(Path(args.dataset), args.items)


def make_bench(settings: argparse.Namespace, own: dict[str, dict[str, Any]]):
    """Model, encoders and settings, loaded."""
    from pixels.scoring import Bench, load_eyes
    from pixels.surgery import Surgery

    model, kind, size = options.load(settings)
    sampling = options.sampling_of(settings, kind)
    options.check_steps(model, sampling)
    eyes = load_eyes(settings.metric_encoders, settings.device)
    surgery = Surgery(**options.surgery_of(settings, kind))
    return Bench(settings, model, size, sampling, surgery, eyes, Path(settings.output_dir), functions(), own)


def run(args: argparse.Namespace) -> Track | None:
    """Run what is missing and gather rows and pictures; None for a dataset without exemplars.

    args: the flags of eval.compare. InputError for input that pixels.eval refuses.
    """
    pairs = find_pairs(args)
    if not pairs:
        return None
    output = Path(args.output_dir) / NAME
    settings = pixels_eval.parse(command(args))
    settings.methods, settings.dataset = list(METHODS), args.dataset
    pixels_eval.check_same_settings(output, settings)
    wanted = {pair.id for pair in pairs}
    if not all(wanted <= done_items(output / "rows.jsonl", method) for method in METHODS):  # else no model is loaded
        own = own_settings(options.is_picturebook_folder(settings.pretrained_model_name_or_path))
        bench = make_bench(settings, own)
        resolved = {name: {**asdict(bench.sampling), **asdict(bench.surgery), **own.get(name, {})} for name in METHODS}
        write_config(output, settings, methods=resolved)
        pixels_eval.run_all(bench, pairs)
    config = read_json(output / "config.json")
    rows = [row for row in read_rows(output / "rows.jsonl") if row["item"] in wanted and row["method"] in METHODS]
    config["date"] = date_of(output / "rows.jsonl")
    whole = "python -m eval.compare --tracks exemplar_editing --items " + str(args.items)
    own_command = "python -m pixels.eval " + shlex.join(command(args))
    return Track(
        name=NAME,
        title="Exemplar editing",
        about="A part of one picture is to become like another picture, under a grey map: black takes from the "
        "exemplar, white keeps the source, grey is in between. PIXELS puts the noised source back at every step where "
        "the map is still above a rising threshold.",
        methods=METHODS,
        columns=COLUMNS,
        runs=[Run("this run", rows, config), *earlier_results(NAME, config)],
        items=[shown(pair, output, rows) for pair in pairs],
        commands={
            name: f"{own_command} --methods {name}" if name in pixels_eval.METHOD_NAMES else whole for name in METHODS
        },
        papers={
            "PIXELS: Progressive Image Xemplar-based Editing with Latent Surgery (AAAI 2025)":
                "https://github.com/amazon-science/PIXELS",
            "Differential Diffusion: Giving Each Pixel Its Strength": "https://arxiv.org/abs/2306.00950",
            "Blended Latent Diffusion (SIGGRAPH 2023)": "https://arxiv.org/abs/2206.02779",
            "SDEdit (ICLR 2022)": "https://arxiv.org/abs/2108.01073",
        },
        published="pixels:1a",
        notes=NOTES,
    )  # fmt: skip


def shown(pair, output: Path, rows: list[dict]) -> Item:
    """One pair for the picture grid: source, exemplar, map, true edit where there is one, and each method's edit."""
    key = find(rows, "edit_success")
    success = {row["method"]: row["metrics"].get(key) for row in rows if row["item"] == pair.id}
    place = output / "pictures" / pair.id
    pictures = [Picture(name, place / f"{file}.png")
                for name, file in (("source", "source"), ("exemplar", "exemplar_1"), ("map", "map"))]  # fmt: skip
    if pair.truth:
        pictures.append(Picture("true edit", pair.truth))
    for method in METHODS:
        value = success.get(method)
        pictures.append(Picture("edit", place / f"{method}.png", method, None if value is None else value > 0.5))
    source_prompt = pair.item.source_prompt if pair.item else ""
    return Item(pair.id, pair.kind, source_prompt, pair.prompt, pictures)
