"""Track "your pictures": methods of every track, by name, on a list of pictures.

Every edit is scored by the same functions, those of text-driven editing; what no truth or mask is given for is left
out. A method runs on the pictures that have what it needs.
"""

import argparse
import difflib
import shlex
from pathlib import Path

from common.flags import is_picturebook_folder, weights_of
from common.joining import digest_of_data
from common.runs import InputError, append_row, joined_config, measure, progress, read_json, read_rows, write_config
from eval.tracks import exemplar_editing, svdiff_editing, text_editing
from eval.tracks.own_pictures.editors import EXEMPLAR, INPAINT, SVDIFF, TEXT
from eval.tracks.own_pictures.picture_list import FILES, Entry, read_list, write_pie_bench_folder
from eval.tracks.track import Item, Picture, Run, Track, date_of, given

NAME = "own_pictures"
PICTUREBOOK_SIDE = 64
COLUMNS = [
    "psnr_truth", "clip_whole/pie_official", "structure/pie_official", "psnr/pie_official", "lpips/pie_official",
    "clip_edited/pie_official", "lpips_truth", "seconds",
]  # fmt: skip
# Every method that edits a picture: its title on the page, and its kind.
TITLES = {**text_editing.METHODS, **exemplar_editing.METHODS, "untuned": "Image-guided inpainting, untuned"}
KINDS = dict.fromkeys(text_editing.METHODS, TEXT) | dict.fromkeys(svdiff_editing.METHODS, SVDIFF)
KINDS |= dict.fromkeys(exemplar_editing.METHODS, EXEMPLAR) | {"untuned": INPAINT}
LACKING = {  # what an entry may lack -> why something cannot be scored then
    "mask": "no mask: nothing can be said of their background",
    "truth": "no true edit: nearness to it cannot be scored, and no score says whether the edit is the one meant",
    "target_prompt": "no target prompt: CLIP cannot be asked for it",
}


def chosen_methods(names: list[str], entries: list[Entry]) -> list[str]:
    """These methods, each once. InputError suggests the nearest for one that is not known, and names what no picture
    has for one that is."""
    from eval.tracks.personalization.methods import METHODS as TRAINED

    for name in names:
        if name in TRAINED and name not in KINDS:
            raise InputError(f"--methods {name}: it learns a subject from several pictures; python -m eval.personalize "
                             "--subjects_dir runs it")  # fmt: skip
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else "such as ddim+p2p, spd+p2p, svdiff, pixels"
            raise InputError(f"--methods {name}: there is no such method; {hint}")
        if not any(KINDS[name].suits(entry) for entry in entries):
            lacking = " and ".join(KINDS[name].needs)
            raise InputError(f"--methods {name} needs {lacking}, which no entry of --pictures has")
    return list(dict.fromkeys(names))


# -------------------------------------------------------------------------------------------------------------- running


def run(args: argparse.Namespace) -> Track:
    """Run what is missing. args: the flags of eval.compare."""
    entries = read_list(args.pictures)
    methods = chosen_methods(args.methods, entries)
    output = Path(args.output_dir) / NAME
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    config = {
        "pretrained_model_name_or_path": args.pretrained_model_name_or_path,
        "metric_encoders": args.metric_encoders or ("picturebook" if on_picturebook else "pie"),
        "weights": weights_of(args.pretrained_model_name_or_path), "num_inference_steps": args.num_inference_steps,
    }  # fmt: skip
    pictures = {}
    for entry in entries:
        files = {key: entry[key] for key in FILES if key in entry}
        told = [entry["source_prompt"], entry["target_prompt"], entry["words"], *files]
        pictures[entry["name"]] = digest_of_data(told, files.values())
    config = joined_config(output, config, config, pictures=pictures)
    notice = notice_of(args.pretrained_model_name_or_path, entries)
    print(notice)
    done = {(row["method"], row["item"], row["seed"]) for row in read_rows(output / "rows.jsonl")}
    wanted = [(method, entry["name"], seed) for method in methods  # method by method: one model is loaded at a time
              for seed in dict.fromkeys(args.seeds if KINDS[method].random else args.seeds[:1])
              for entry in entries if KINDS[method].suits(entry)]  # fmt: skip
    write_pie_bench_folder(entries, output / "pie_bench")
    write_config(output, {**config, "seeds": args.seeds})
    if missing := [one for one in wanted if one not in done]:
        run_missing(args, output, config["metric_encoders"], missing)
    return track_of(args, output, methods, entries, notice)


def notice_of(model: str, entries: list[Entry]) -> str:
    """Which model made the pictures, and that a photograph went through the drawn world."""
    from common.images import load_image

    if not is_picturebook_folder(model):
        return f"Model: {model}."
    strange = [entry["name"] for entry in entries if load_image(entry["picture"]).size != (PICTUREBOOK_SIDE,) * 2]
    if not strange:
        return "Model: the picturebook."
    return (f"Model: the picturebook, a drawn world of {PICTUREBOOK_SIDE} pixels, which knows no photographs: what "
            f"became of {', '.join(strange[:5])} says nothing about the methods. For photographs give "
            "--pretrained_model_name_or_path.")  # fmt: skip


def run_missing(args: argparse.Namespace, output: Path, encoders: str, missing: list[tuple[str, str, int]]) -> None:
    """Edit and score, one row and one picture at a time."""
    from common.data import read_pie_bench
    from common.encoders import load_encoders
    from common.images import save_png

    items = {item.id: item for item in read_pie_bench(output / "pie_bench", border=0)}
    seen_by, editing, edit = load_encoders(encoders, args.device), None, None
    for method, name, seed in progress(missing, "edits"):
        if method != editing:
            editing, edit = method, KINDS[method].load(args, output, method)
        with measure() as cost:
            pictures = edit(items[name], seed)
        save_png(output / "pictures" / name / "source.png", pictures["source"])
        save_png(output / "pictures" / name / f"{method}_{seed}.png", pictures["edited"])
        append_row(output / "rows.jsonl", {
            "paper": "eval", "method": method, "item": name, "seed": seed,
            "metrics": scores(items[name], pictures, seen_by, output / "pie_bench"), "seconds": cost.seconds,
            "peak_memory_mb": cost.peak_memory_mb,
        })  # fmt: skip


def scores(item, pictures: dict, encoders, folder: Path) -> dict[str, float]:
    """Those of text-driven editing, and nearness to the truth where it is given. Without a mask nothing is said of what
    lies outside of it, and without a prompt nothing of the prompt."""
    from common.images import load_image, to_tensor
    from common.metrics import truth_scores
    from spdinv.reproduction import items

    size = pictures["edited"].size
    seen = {"source": pictures["source"].resize(size), "edited": pictures["edited"]}
    needed = {"clip_edited": item.extras["masked"] and item.target_prompt, "clip_whole": item.target_prompt,
              "clip_source": item.source_prompt}  # fmt: skip
    found = {key: value for key, value in items.scores(item, seen, encoders, None).items()
             if needed.get(key.partition("/")[0], True) and value == value}  # fmt: skip
    if "truth_path" in item.extras:
        truth = to_tensor(load_image(folder / item.extras["truth_path"]).resize(size))
        found |= truth_scores(truth, to_tensor(seen["edited"]), encoders.lpips)
    return found


# ------------------------------------------------------------------------------------------------------------ the page


def track_of(args: argparse.Namespace, output: Path, methods: list[str], entries: list[Entry], notice: str) -> Track:
    """What the folder's rows show of these methods and pictures."""
    names, wanted = {method: TITLES[method] for method in methods}, {entry["name"] for entry in entries}
    rows = [row for row in read_rows(output / "rows.jsonl") if row["method"] in names and row["item"] in wanted]
    config = read_json(output / "config.json") | {"date": date_of(output / "rows.jsonl")}
    flags = given(args, "pictures", "pretrained_model_name_or_path", "num_inference_steps", "metric_encoders",
                  "output_dir")  # fmt: skip
    command = "python -m eval.compare " + shlex.join([*flags, "--methods", *names, "--seeds", *map(str, args.seeds)])
    return Track(
        name=NAME, title="Your pictures", methods=names, columns=COLUMNS, runs=[Run("this run", rows, config)],
        about=f"{len(entries)} picture{'s' * (len(entries) > 1)}, edited by {len(names)} methods.",
        items=[shown(entry, output, methods, args.seeds[0]) for entry in entries],
        commands=dict.fromkeys(names, command), notes=unscored(entries), notices=[notice],
    )  # fmt: skip


def shown(entry: Entry, output: Path, methods: list[str], seed: int) -> Item:
    """One picture with what was given beside it, and every method's edit."""
    place, folder, name = output / "pictures" / entry["name"], output / "pie_bench", entry["name"]
    pictures = [Picture("source", folder / "annotation_images" / f"{name}.png")]
    pictures += [Picture(label, folder / key / f"{name}.png") for key, label in
                 (("exemplar", "exemplar"), ("edit_map", "map"), ("truth", "true edit")) if key in entry]  # fmt: skip
    pictures += [Picture("edit", place / f"{method}_{seed}.png", method)
                 for method in methods if KINDS[method].suits(entry)]  # fmt: skip
    return Item(name, name, entry["source_prompt"], entry["target_prompt"], pictures)


def unscored(entries: list[Entry]) -> list[str]:
    """What cannot be scored, and why."""
    notes = ["Pictures were cut to their central squares first, so that all methods see the same frame."]
    for key, why in LACKING.items():
        if names := [entry["name"] for entry in entries if not entry.get(key)]:
            who = "All pictures" if len(names) == len(entries) else ", ".join(names[:6]) + ", …" * (len(names) > 6)
            notes.append(f"{who} have {why}." if len(names) > 1 else f"{who} has {why.replace('their', 'its')}.")
    return [*notes, "Few pictures make wide intervals, and a page of pictures that one chose proves nothing: look."]
