"""Track "your pictures": methods of every track, by name, on a list of pictures (eval.own_pictures).

Every edit is scored by the same functions, those of text-driven editing; what no truth or mask is given for is left
out. A method runs on the pictures that have what it needs.
"""

import argparse
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.flags import is_picturebook_folder, weights_of
from common.runs import InputError, append_row, measure, progress, read_json, read_rows, write_config
from eval import own_pictures
from eval.tracks import exemplar_editing, svdiff_editing
from eval.tracks.editors import EDITORS, given
from eval.tracks.track import Item, Picture, Run, Track, date_of

NAME = "own_pictures"
PICTUREBOOK_SIDE = 64
COLUMNS = [
    "psnr_truth", "clip_whole/pie_official", "structure/pie_official", "psnr/pie_official", "lpips/pie_official",
    "clip_edited/pie_official", "lpips_truth", "seconds",
]  # fmt: skip
# What text-driven editing and the others need of an entry
NEEDS = {
    "text": ("source_prompt", "target_prompt"),
    "svdiff": ("source_prompt", "target_prompt"),
    "exemplar": ("exemplar", "edit_map"),
    "inpaint": ("exemplar", "mask"),
}
INPAINTING = {"untuned": "Image-guided inpainting, untuned"}
RANDOM = ("svdiff", "exemplar", "inpaint")  # kinds that draw random numbers: these are run once per seed


@dataclass(frozen=True)
class Method:
    """kind: a key of editors.EDITORS."""

    name: str
    title: str
    kind: str


def known_methods() -> dict[str, Method]:
    """Every method that edits a picture, by name."""
    from spdinv.reproduction import rows

    found = {name: Method(name, rows.title(name), "text") for name in rows.every()}
    for name in svdiff_editing.METHODS:
        found[name] = Method(name, "SVDiff, tuned on the picture" + ", DDIM inversion" * ("+" in name), "svdiff")
    for name, title in exemplar_editing.METHODS.items():
        found[name] = Method(name, title, "exemplar")
    return found | {name: Method(name, title, "inpaint") for name, title in INPAINTING.items()}


def chosen_methods(names: list[str]) -> list[Method]:
    """The methods called so; InputError suggests the nearest for one that is not known."""
    from eval.tracks.personalization.methods import METHODS as TRAINED

    known = known_methods()
    for name in names:
        if name in TRAINED and name not in known:
            raise InputError(f"--methods {name}: it learns a subject from several pictures; python -m eval.personalize "
                             "--subjects_dir runs it")  # fmt: skip
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else "such as ddim+p2p, spd+p2p, svdiff, pixels"
            raise InputError(f"--methods {name}: there is no such method; {hint}")
    return [known[name] for name in dict.fromkeys(names)]


def check_needs(methods: list[Method], entries: list[dict[str, Any]]) -> None:
    """Raises InputError for a method that no picture has all for."""
    for method in methods:
        if not any(suits(method, entry) for entry in entries):
            lacking = " and ".join(NEEDS[method.kind])
            raise InputError(f"--methods {method.name} needs {lacking}, which no entry of --pictures has")


def suits(method: Method, entry: dict[str, Any]) -> bool:
    return all(entry.get(key) for key in NEEDS[method.kind])


# -------------------------------------------------------------------------------------------------------------- running


def run(args: argparse.Namespace) -> tuple[Track, list[str]]:
    """Run what is missing; the track, and what its reader has to be told first. args: the flags of eval.compare."""
    methods, entries = chosen_methods(args.methods), own_pictures.read_list(args.pictures)
    check_needs(methods, entries)
    output = Path(args.output_dir) / NAME
    on_picturebook = is_picturebook_folder(args.pretrained_model_name_or_path)
    encoders = args.metric_encoders or ("picturebook" if on_picturebook else "pie")
    config = {
        "pretrained_model_name_or_path": args.pretrained_model_name_or_path, "metric_encoders": encoders,
        "weights": weights_of(args.pretrained_model_name_or_path), "num_inference_steps": args.num_inference_steps,
        "pictures": own_pictures.digests(entries),
    }  # fmt: skip
    check_same(output, config)
    own_pictures.write_pie_bench_folder(entries, output / "pie_bench")
    notices = notices_of(args, entries, on_picturebook)
    for notice in notices:
        print(notice)
    wanted = runs_of(methods, entries, args.seeds)
    done = {(row["method"], row["item"], row["seed"]) for row in read_rows(output / "rows.jsonl")}
    missing = [one for one in wanted if (one[0].name, one[1]["name"], one[2]) not in done]
    write_config(output, {**config, "seeds": args.seeds})
    if missing:
        run_missing(args, output, encoders, missing)
    return track_of(args, output, methods, entries), notices


def runs_of(methods: list[Method], entries: list[dict], seeds: list[int]) -> list[tuple[Method, dict, int]]:
    """Method by method, so that one model is loaded at a time."""
    return [(method, entry, seed) for method in methods
            for seed in (seeds if method.kind in RANDOM else seeds[:1])
            for entry in entries if suits(method, entry)]  # fmt: skip


def notices_of(args: argparse.Namespace, entries: list[dict], on_picturebook: bool) -> list[str]:
    """Which model made the pictures, and that a photograph went through the drawn world."""
    from common.images import load_image

    if not on_picturebook:
        return [f"Model: {args.pretrained_model_name_or_path}."]
    side = (PICTUREBOOK_SIDE, PICTUREBOOK_SIDE)
    strange = [entry["name"] for entry in entries if load_image(entry["picture"]).size != side]
    if not strange:
        return ["Model: the picturebook."]
    return [f"Model: the picturebook, a drawn world of {PICTUREBOOK_SIDE} pixels, which knows no photographs: what "
            f"became of {', '.join(strange[:5])} says nothing about the methods. For photographs give "
            "--pretrained_model_name_or_path."]  # fmt: skip


def check_same(output: Path, config: dict) -> None:
    """Raises InputError if the folder's rows are of another model, other settings, or other pictures of these names."""
    if not (output / "rows.jsonl").is_file():
        return
    before = read_json(output / "config.json")
    changed = [name for name in config if name != "pictures" and before.get(name) != config[name]]
    then = before.get("pictures", {})
    changed += [name for name, digest in config["pictures"].items() if then.get(name, digest) != digest]
    if changed:
        raise InputError(f"{output} holds results with another {changed[0]}; take the same one, or another "
                         "--output_dir")  # fmt: skip
    config["pictures"] = then | config["pictures"]


def run_missing(args: argparse.Namespace, output: Path, encoders: str, missing: list) -> None:
    """Edit and score, one row and one picture at a time."""
    from common.data import read_pie_bench
    from common.encoders import load_encoders
    from common.images import save_png

    items = {item.id: item for item in read_pie_bench(output / "pie_bench", border=0)}
    seen_by = load_encoders(encoders, args.device)
    name, edit = None, None
    for method, entry, seed in progress(missing, "edits"):
        if method.name != name:
            name, edit = method.name, EDITORS[method.kind](args, output, method.name)
        item = items[entry["name"]]
        with measure() as cost:
            pictures = edit(item, seed)
        place = output / "pictures" / item.id
        save_png(place / "source.png", pictures["source"])
        save_png(place / f"{method.name}_{seed}.png", pictures["edited"])
        append_row(output / "rows.jsonl", {
            "paper": "eval", "method": method.name, "item": item.id, "seed": seed,
            "metrics": scores(item, pictures, seen_by, output / "pie_bench"), "seconds": cost.seconds,
            "peak_memory_mb": cost.peak_memory_mb,
        })  # fmt: skip


def scores(item, pictures: dict, encoders, folder: Path) -> dict[str, float]:
    """Those of text-driven editing, and nearness to the truth where it is given. Without a mask nothing is said of what
    lies outside of it, and without a prompt nothing of the prompt."""
    from common.images import load_image, to_tensor
    from common.metrics import Score, lpips_distance, psnr
    from spdinv.reproduction import items

    edited = to_tensor(pictures["edited"])
    source = pictures["source"].resize(pictures["edited"].size)
    found = items.scores(item, {"source": source, "edited": pictures["edited"]}, encoders, None)
    left_out = () if item.extras["masked"] else ("clip_edited",)
    left_out += () if item.target_prompt else ("clip_whole", "clip_edited")
    left_out += () if item.source_prompt else ("clip_source",)
    found = {key: value for key, value in found.items() if key.partition("/")[0] not in left_out and value == value}
    if "truth_path" in item.extras:
        truth = to_tensor(load_image(folder / item.extras["truth_path"]).resize(pictures["edited"].size))
        lpips = lpips_distance(truth, edited, encoders.lpips).item()
        found["psnr_truth"] = psnr(truth, edited).item()
        found[Score("lpips_truth", lpips, encoders.lpips.label).key] = lpips
    return found


# ------------------------------------------------------------------------------------------------------------ the page


def track_of(args: argparse.Namespace, output: Path, methods: list[Method], entries: list[dict]) -> Track:
    """What the folder's rows show of these methods and pictures."""
    names, wanted = {method.name: method.title for method in methods}, {entry["name"] for entry in entries}
    rows = [row for row in read_rows(output / "rows.jsonl") if row["method"] in names and row["item"] in wanted]
    config = read_json(output / "config.json") | {"date": date_of(output / "rows.jsonl")}
    own = ("pictures", "pretrained_model_name_or_path", "num_inference_steps", "metric_encoders", "output_dir")
    command = " ".join(["python -m eval.compare", *given(args, *own), "--methods", *names,
                        "--seeds", *map(str, args.seeds)])  # fmt: skip
    return Track(
        name=NAME, title="Your pictures", methods=names, columns=COLUMNS, runs=[Run("this run", rows, config)],
        about=f"{len(entries)} picture{'s' * (len(entries) > 1)}, edited by {len(names)} methods.",
        items=[shown(entry, output, methods, args.seeds[0]) for entry in entries],
        commands={name: command for name in names}, keep=False, notes=unscored(entries),
    )  # fmt: skip


def shown(entry: dict, output: Path, methods: list[Method], seed: int) -> Item:
    """One picture with what was given beside it, and every method's edit."""
    place, folder, name = output / "pictures" / entry["name"], output / "pie_bench", entry["name"]
    pictures = [Picture("source", folder / "annotation_images" / f"{name}.png")]
    pictures += [Picture(label, folder / key / f"{name}.png") for key, label in
                 (("exemplar", "exemplar"), ("edit_map", "map"), ("truth", "true edit")) if key in entry]  # fmt: skip
    pictures += [Picture("edit", place / f"{method.name}_{seed}.png", method.name)
                 for method in methods if suits(method, entry)]  # fmt: skip
    return Item(name, name, entry["source_prompt"], entry["target_prompt"], pictures)


def unscored(entries: list[dict]) -> list[str]:
    """What cannot be scored, and why."""
    notes = ["Pictures were cut to their central squares first, so that all methods see the same frame."]
    lacking = [
        ("mask", "no mask: nothing can be said of their background"),
        ("truth", "no true edit: nearness to it cannot be scored, and no score says whether the edit is the one meant"),
        ("target_prompt", "no target prompt: CLIP cannot be asked for it"),
    ]
    for key, why in lacking:
        names = [entry["name"] for entry in entries if not entry.get(key)]
        if names:
            who = "All pictures" if len(names) == len(entries) else ", ".join(names[:6]) + ", …" * (len(names) > 6)
            notes.append(f"{who} have {why}." if len(names) > 1 else f"{who} has {why.replace('their', 'its')}.")
    return [*notes, "Few pictures make wide intervals, and a page of pictures that one chose proves nothing: look."]
