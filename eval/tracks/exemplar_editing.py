"""Track "exemplar editing": PIXELS, its controls and the baselines that run on the same model, under grey maps."""

import argparse
import shlex
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.flags import local_folder
from common.runs import done_items, read_rows, write_config
from eval import compare
from eval.tracks.track import Item, Track, given, judged, pictures_of, runs_of
from pixels import eval as pixels_eval
from pixels import options

NAME = "exemplar_editing"
REFERENCES = {
    "truth": "The true edit", "truth_vae": "The true edit through the VAE", "nothing": "The source as it is",
    "paste": "Paste", "alpha": "Alpha blending", "poisson": "Poisson blending",
}  # fmt: skip
METHODS = REFERENCES | {
    "latent_paste": "Latents replaced", "perturbed": "Latents replaced, noised",
    "noise_scaling": "Noise scaled by the map", "sdedit": "SDEdit", "blended_latent": "Blended latent diffusion",
    "differential_diffusion": "Differential Diffusion (text)", "pixels": "PIXELS",
}  # fmt: skip
# On the picturebook its image-guided inpainting model takes part, which is Paint-by-Example in miniature.
INPAINTING = {"paint_by_example": "Paint-by-Example (picturebook)"}
COLUMNS = [
    "edit_success", "psnr_truth", "lpips_truth", "CLIP-I/same_box", "seam_gap", "transition_gap", "sharpness", "seam",
    "contrast", "psnr_kept", "lpips_kept", "seconds", "peak_memory_mb",
]  # fmt: skip
TUNING = Path(__file__).parents[1] / "tuning"  # settings of each method, tuned on the validation split
SETTINGS = {"picturebook": TUNING / "exemplar_editing.toml", "compositions": TUNING / "compositions.toml"}
NOTES = [
    "Pasting copies the exemplar's own pixels: it wins every likeness to the exemplar by construction and keeps the "
    "rest to the bit. It stands here as the control; read likeness and seam together.",
    "Methods without grey maps are given the map binarised at 0.5, as in the paper; the controls of the algorithm "
    "(latents replaced, noised, noise scaled) start from the very latents that PIXELS starts from, the exemplar's "
    "where the map is wholly black. Differential Diffusion knows no exemplar and is "
    "told the target prompt instead; all others run with an empty prompt, as in the paper.",
    "Blended latent diffusion starts its region from the exemplar here (published: from text alone). For every method "
    "the same number of settings was tried on the validation split (eval/tuning/exemplar_editing.py).",
    "Changes of style are left out: their map is black all over, and there is nothing to blend.",
]


def command(args: argparse.Namespace) -> list[str]:
    """The arguments of pixels.eval for the flags of eval.compare; flags left at None stay at its defaults."""
    encoders = "paper" if args.metric_encoders == "pie" else args.metric_encoders
    return given(args, "pretrained_model_name_or_path", "num_inference_steps", "seed", "device", limit=args.items,
                 metric_encoders=encoders, output_dir=Path(args.output_dir) / NAME)  # fmt: skip


def flags_behind(words: list[str]) -> argparse.Namespace:
    """The flags of pixels.eval behind a command of eval.compare."""
    return pixels_eval.parse(command(compare.parse(words)))


def methods_of(model: str) -> dict[str, str]:
    """Name -> title of what runs on a model; the paper's own is last."""
    paints = options.is_picturebook_folder(model) and (local_folder(model) / "inpaint_unet").is_dir()
    *others, own = METHODS.items()
    return dict([*others, *(INPAINTING.items() if paints else ()), own])


def image_guided_inpainting(model: str, device: str | None):
    """The picturebook's Paint-by-Example as a method of this track: shown the exemplar's part under the map's region,
    it fills that region of the source."""
    import torch

    from eval.tracks.pretrained_exemplar import as_method
    from image_inpaint.loading import load
    from image_inpaint.masks import box_of
    from image_inpaint.painting import paint

    pipe = load(model, device)

    def edit(pipe, source, exemplar, mask, generator):
        fill = torch.from_numpy(np.asarray(mask) > 127).float()
        if not fill.any():
            return source
        seed = int(torch.randint(2**62, (), generator=generator))
        return paint(pipe, [source], [fill], [exemplar.crop(box_of(fill))], [seed], composite=False)[0]

    return as_method(edit, pipe)


def own_settings(on_picturebook: bool, dataset: str = "picturebook") -> dict[str, dict[str, Any]]:
    """What each method runs with in place of the model's preset: the tuned settings on the picturebook, none elsewhere;
    Differential Diffusion's prompt everywhere."""
    from pixels.reproduction.scoring import ITEM_PROMPT

    file = SETTINGS.get(dataset, SETTINGS["picturebook"])
    tuned = tomllib.loads(file.read_text(encoding="utf-8")) if on_picturebook else {}
    text = {"prompt": ITEM_PROMPT} | ({} if on_picturebook else {"guidance_scale": 7.5})
    return {**tuned, "differential_diffusion": tuned.get("differential_diffusion", {}) | text}


def make_bench(settings: argparse.Namespace, own: dict[str, dict[str, Any]]):
    """Model, encoders, settings, and every method that runs on the model, loaded."""
    from eval.baselines.exemplar_loops import METHODS as OTHERS
    from pixels.reproduction.baselines import METHODS as OWN
    from pixels.reproduction.scoring import load_bench

    model, every = settings.pretrained_model_name_or_path, OWN | OTHERS
    if "paint_by_example" in (wanted := methods_of(model)):
        every["paint_by_example"] = image_guided_inpainting(model, settings.device)
    return load_bench(settings, {name: every[name] for name in wanted if name in every}, own)  # not the true edit


def run(args: argparse.Namespace) -> Track | None:
    """Run what is missing and gather rows and pictures; None for a dataset without exemplars.

    args: the flags of eval.compare. InputError for input that pixels.eval refuses.
    """
    from pixels.reproduction.pairs import find_pairs
    from pixels.reproduction.scoring import load_pair

    pairs = find_pairs(args.dataset, limit=args.items)
    if not pairs:
        return None
    output = Path(args.output_dir) / NAME
    settings = pixels_eval.parse(command(args))
    methods = methods_of(settings.pretrained_model_name_or_path)
    if not all(pair.truth for pair in pairs):
        methods = {name: title for name, title in methods.items() if name not in pixels_eval.OF_TRUTH}
    settings.methods, settings.dataset = list(methods), args.dataset
    pixels_eval.config_of(output, settings, pairs)
    wanted = {pair.id for pair in pairs}
    if not all(wanted <= done_items(output / "rows.jsonl", method) for method in methods):  # else no model is loaded
        own = own_settings(options.is_picturebook_folder(settings.pretrained_model_name_or_path), args.dataset)
        bench = make_bench(settings, own)
        resolved = {name: {**asdict(bench.sampling), **asdict(bench.surgery), **own.get(name, {})} for name in methods}
        config = pixels_eval.config_of(output, settings, pairs, methods=resolved)
        for pair in pairs:  # what is refused is refused before anything is written
            load_pair(pair, bench.size)
        write_config(output, config)
        pixels_eval.run_all(bench, pairs)
    rows = [row for row in read_rows(output / "rows.jsonl") if row["item"] in wanted and row["method"] in methods]
    whole = "python -m eval.compare --tracks exemplar_editing --items " + str(args.items)
    own_command = "python -m pixels.eval " + shlex.join(command(args))
    return Track(
        name=NAME,
        title="Exemplar editing",
        about="A part of one picture is to become like another picture, under a grey map: black takes from the "
        "exemplar, white keeps the source, grey is in between. PIXELS puts the noised source back at every step where "
        "the map is still above a rising threshold.",
        methods=methods,
        references=tuple(REFERENCES),
        columns=COLUMNS,
        runs=runs_of(NAME, output, rows, flags_behind),
        own="pixels",
        fronts=[("seam", "CLIP-I/same_box"), ("seam_gap", "lpips_truth"), ("psnr_kept", "lpips_truth")],
        items=[shown(pair, output, rows, methods) for pair in pairs],
        commands={
            name: f"{own_command} --methods {name}" if name in pixels_eval.METHOD_NAMES else whole for name in methods
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


def shown(pair, output: Path, rows: list[dict], methods: dict[str, str]) -> Item:
    """One pair for the picture grid: source, exemplar, map, true edit where there is one, and each method's edit."""
    success, place = judged(rows, pair.id, "edit_success"), output / "pictures" / pair.id
    known = {"source": place / "source.png", "exemplar": place / "exemplar_1.png", "map": place / "map.png"}
    known |= {"true edit": pair.truth} if pair.truth else {}
    pictures = pictures_of(known, place, success, methods)
    source_prompt = pair.item.source_prompt if pair.item else ""
    return Item(pair.id, pair.kind, source_prompt, pair.prompt, pictures)
