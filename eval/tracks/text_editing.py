"""Track "text-driven editing": inversions and engines, on items in PIE-Bench's format."""

import argparse
import difflib
import shlex
from pathlib import Path

from common.data import EDIT_TYPES
from common.runs import InputError, done_items, read_rows
from common.tables import by
from eval.tracks.track import Item, Picture, Track, given, judged, runs_of
from spdinv import eval as spdinv_eval
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS
from spdinv.reproduction import rows

NAME = "text_editing"
RUN = ("ddim+p2p", "spd+p2p")  # what this track runs where no --methods are given
# What it shows: these, and whatever spdinv.eval and eval.tracks.svdiff_editing have run in the same folder.
METHODS = {name: rows.title(name) for name in rows.every()} | {
    "svdiff": "SVDiff, tuned on the picture", "svdiff+inversion": "SVDiff, tuned on the picture, DDIM inversion",
}  # fmt: skip
COLUMNS = [
    "edit_success", "psnr_truth", "lpips_truth", "clip_whole/pie_official",
    "structure/pie_official", "psnr/pie_official", "lpips/pie_official", "mse/pie_official", "ssim/pie_official",
    "psnr_reconstruction", "seconds", "peak_memory_mb",
]  # fmt: skip
NOTES = [
    "Rows of one engine share everything but the inversion: no negative-prompt embedding, proximal threshold, "
    "inversion guidance or colour fix, which the released SPDInv adds to its own runs and the paper does not name; "
    "rows called as released have them.",
    "Scores of the background follow PIE-Bench's published protocol (pie_official) with its quirks; the same scores "
    "averaged over the unedited region alone (pie_corrected) are under All scores.",
]


def command(args: argparse.Namespace, *methods: str) -> list[str]:
    """The arguments of spdinv.eval for methods of one engine and preset; flags left at None stay at its defaults."""
    inversions, engines, presets = zip(*map(rows.parts, methods), strict=True)
    flags = given(args, "pretrained_model_name_or_path", "dataset", "num_inference_steps", "metric_encoders", "seed",
                  "device", preset=presets[0] or None, limit=args.items,
                  output_dir=Path(args.output_dir) / NAME)  # fmt: skip
    return ["--inversions", *inversions, "--engines", engines[0], *flags]


def whole_command(args: argparse.Namespace, method: str, settings: dict) -> str:
    """The command that makes a method's rows. settings: of the method, by the folder's config."""
    if not method.startswith("svdiff"):
        return "python -m spdinv.eval " + shlex.join(command(args, method))
    flags = given(args, "items", "pretrained_model_name_or_path", "dataset", "num_inference_steps", "metric_encoders",
                  "output_dir", "seed", "device", max_train_steps=settings.get("max_train_steps"))  # fmt: skip
    return "python -m eval.tracks.svdiff_editing " + shlex.join(flags)


def grouped(methods: list[str]) -> list[list[str]]:
    """Those of one engine and preset together, which one run of spdinv.eval takes. InputError for one that is none of
    an inversion and an engine."""
    groups: dict[str, list[str]] = {}
    for name in methods:
        if name not in METHODS or name.startswith("svdiff"):
            near = " or ".join(difflib.get_close_matches(name, rows.every(), n=3))
            known = f"there are {', '.join(INVERSIONS)} and {', '.join([*ENGINES][1:])}."
            hint = f"did you mean {near}?" if near else known
            raise InputError(f"--methods {name} is no inversion and engine, such as spd+p2p; {hint} On pictures of "
                             "your own (--pictures) methods of every kind run")  # fmt: skip
        groups.setdefault(name.partition("+")[2], []).append(name)
    return list(groups.values())


def run(args: argparse.Namespace) -> Track:
    """Run what is missing (spdinv.eval skips what is done) and gather rows and pictures.

    args: the flags of eval.compare. InputError or SystemExit(2), with a sentence, for input that spdinv.eval refuses.
    """
    output, groups = Path(args.output_dir) / NAME, grouped(args.methods)
    for names in groups:
        settings = spdinv_eval.parse(command(args, *names))
        folder, items = spdinv_eval.read_items(settings)
        spdinv_eval.config_of(output, settings, spdinv_eval.methods_of(settings), items, folder)
    wanted = {item.id for item in items}
    for names in groups:
        if not all(wanted <= done_items(output / "rows.jsonl", name) for name in names):  # else no model is loaded
            spdinv_eval.main(command(args, *names))
    # Further methods may have run on some items only; they are shown from half of them on.
    found = [row for row in read_rows(output / "rows.jsonl") if row["item"] in wanted]
    done = {name: {row["item"] for row in same} for name, same in by(found, "method").items() if name in METHODS}
    listed = [name for name in METHODS if 2 * len(done.get(name, ())) >= len(wanted)]
    kept = [row for row in found if row["method"] in listed]
    fewer = [f"{METHODS[name]} ran on {len(own)} of {len(wanted)} items{', and is left out' * (name not in listed)}."
             for name, own in done.items() if own < wanted]  # fmt: skip
    runs = runs_of(NAME, output, kept, spdinv_eval.parse)
    measured, settings = {row["method"] for run in runs for row in run.rows}, runs[0].config["methods"]
    methods = {name: called for name, called in METHODS.items() if name in measured}
    return Track(
        name=NAME,
        title="Text-driven editing",
        about="A picture is inverted to the noise that would have made it, and drawn again with a changed prompt. "
        "Methods of one engine differ in the inversion alone: DDIM inversion reads the sampler "
        "backwards; SPDInv searches at every step for the fixed point that makes the reading exact.",
        methods=methods,
        columns=COLUMNS,
        runs=runs,
        items=[shown(item, folder, output, kept, methods) for item in items],
        commands={name: whole_command(args, name, settings.get(name, {})) for name in methods},
        papers={
            "Source Prompt Disentangled Inversion for Boosting Image Editability with Diffusion Models (ECCV 2024)":
                "https://arxiv.org/abs/2403.11105",
            "Prompt-to-Prompt Image Editing with Cross Attention Control (ICLR 2023)":
                "https://arxiv.org/abs/2208.01626",
        },
        published="spdinv:1",
        breakdown=["edit_success", "psnr_truth", "psnr/pie_official", "structure/pie_official"],
        notes=[*NOTES, *fewer],
        own=RUN[-1],
        asked=tuple(args.methods),
    )  # fmt: skip


def shown(item, folder: Path, output: Path, rows: list[dict], methods: dict[str, str]) -> Item:
    """One EditItem for the picture grid: source, true edit where there is one, reconstruction and edit per method."""
    success, place = judged(rows, item.id, "edit_success"), output / "pictures" / item.id
    pictures = [Picture("source", place / "source.png")]
    if "truth_path" in item.extras:
        pictures.append(Picture("true edit", folder / item.extras["truth_path"]))
    for method in (name for name in methods if name in success):
        pictures += [Picture("reconstruction", place / f"{method}_reconstruction.png", method),
                     Picture("edit", place / f"{method}.png", method, success[method])]  # fmt: skip
    kind = EDIT_TYPES[item.edit_type]
    if item.edit_type == "0" and "edit" in item.extras:
        kind += f": {item.extras['edit']['kind']}"
    return Item(item.id, kind, item.source_prompt, item.target_prompt, pictures)
