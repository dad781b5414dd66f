"""The paper's premise (Sec. 3.1, Fig. 3): an edit from the ideal noise succeeds where one from inverted noise fails.

A picture is drawn from known noise with the source prompt, at the editing's guidance scale, so that the ideal noise
gives exactly this picture back. Then it is edited three times: from that noise, and from what DDIM inversion and SPDInv
make of the recorded z_0. Only the inversion differs. Rows are named arm+engine@drawn, such as ideal+p2p@drawn: the
pictures are not the items' own.

Fixed before anything was run: the measure is edit success (the target's attributes, as the independent classifier
reads them) over all items, paired; the premise holds if the interval of ideal less ddim lies above zero, and SPDInv's
part of it if that of spd less ddim does (common/claims.py). Nearness to the ideal noise's edit and the noise gap are
told beside.
"""

import argparse
import math
from pathlib import Path

from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.claims import Interval, verdict
from common.ddim import make_schedule
from common.encoders import Encoders
from common.images import grid, load_image, save_png, to_pil, to_tensor
from common.metrics import Score, clip_text_similarity, lpips_distance, psnr, structure_distance
from common.pipelines import decode_latents, encode_prompt
from common.runs import append_row, measure, paired_bootstrap, read_rows, write_json
from common.tables import intervals, score_table
from spdinv.editing import edit_picture
from spdinv.inversions import INVERSIONS
from spdinv.options import Method, with_words
from spdinv.reproduction.experiments.generated import batches, generate, ideal_noise, known, pick
from spdinv.reproduction.experiments.noise_gap import noise_gap
from spdinv.reproduction.items import EQUALIZER, blended_words
from spdinv.reproduction.tables import wanted_keys

IDEAL = "ideal"


def run(
    args: argparse.Namespace,
    methods: dict[str, Method],
    pipe: DiffusionPipeline,
    resolution: int,
    items: list,
    encoders: Encoders,
    output: Path,
) -> None:
    """Rows, pictures and tables in `output`; what has a row is not run again."""
    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    arms = with_ideal(methods)
    done = {(row["method"], row["item"]) for row in read_rows(output / "rows.jsonl")}
    for batch in tqdm(batches(items, args.batch_size), "batches", disable=None):
        missing = [(i, name) for i, item in enumerate(batch) for name in arms if (name, item.id) not in done]
        if not missing:
            continue
        prompts = [item.source_prompt for item in batch]
        noise = ideal_noise(pipe, [item.id for item in batch], args.seed, resolution)
        true = generate(pipe, schedule, noise, prompts, args.guidance_scale)
        inversions = {IDEAL: known(true)}
        for method in {method.inversion: method for method in methods.values()}.values():
            invert, cond = INVERSIONS[method.inversion], encode_prompt(pipe, prompts)
            inversions[method.inversion] = invert(pipe, schedule, true[0], cond, **method.inversion_options)
        for i, name in missing:
            item, (arm, method) = batch[i], arms[name]
            inversion, drawn = pick(inversions[arm], i), decode_latents(pipe, true[0, i : i + 1])
            words = blended_words(pipe, item)
            method = with_words(method, words, {words[1]: EQUALIZER} if words and words[1] else None)
            with measure() as cost:
                edit = edit_picture(pipe, drawn, item.source_prompt, item.target_prompt, method, inversion=inversion)
            place = output / "pictures" / item.id
            pictures = {"source": drawn, f"{name}_reconstruction": edit.reconstruction, name: edit.edited}
            for called, picture in pictures.items():
                save_png(place / f"{called}.png", picture)
            shown = [to_tensor(to_pil(picture)) for picture in pictures.values()]  # scores see what the files hold
            first = next(one for one, (kind, own) in arms.items() if kind == IDEAL and own.engine == method.engine)
            ideal = to_tensor(load_image(place / f"{first}.png"))  # an item's first edit
            gap = noise_gap(true[:, i : i + 1], inversion.trajectory)[-1].item()
            append_row(output / "rows.jsonl", {
                "paper": "spdinv", "method": name, "item": item.id, "edit_type": item.edit_type, "seed": args.seed,
                "metrics": {**scores(item, *shown, ideal, encoders), "noise_gap": gap},
                "seconds": cost.seconds + inversion.cost["seconds"], "inversion_seconds": inversion.cost["seconds"],
                "peak_memory_mb": cost.peak_memory_mb,
            })  # fmt: skip
    report(items, arms, output)


def with_ideal(methods: dict[str, Method]) -> dict[str, tuple[str, Method]]:
    """{row's name: (arm, method)}, the ideal noise's first. methods: by name, which may have a tag after @."""
    ideal = {name.replace(method.inversion, IDEAL, 1): (IDEAL, method) for name, method in methods.items()}
    arms = ideal | {name: (method.inversion, method) for name, method in methods.items()}
    return {f"{name},drawn" if "@" in name else f"{name}@drawn": arm for name, arm in arms.items()}


def scores(item, drawn, reconstruction, edited, ideal, encoders: Encoders) -> dict[str, float]:
    """Of pictures [1,3,H,W]. drawn: the one that was edited. ideal: the edit from the ideal noise. There is no mask and
    no true edit here, since what was drawn is not the item's own picture."""
    found = {}
    if "edit" in item.extras and edited.shape[-2:] == item.mask_size:
        from common.picturebook.benchmarks import edit_success

        found["edit_success (picturebook)"] = float(edit_success(item, edited))
        found["shown_before (picturebook)"] = float(edit_success(item, drawn))  # the target's attributes, unedited
    clip = 100 * clip_text_similarity(edited, [item.target_prompt], encoders.clip).clamp(min=0).item()
    named = [
        Score("clip_whole", clip, encoders.clip.label),
        Score("structure", structure_distance(drawn, edited, encoders.dino).item(), encoders.dino.label),
        Score("lpips_to_ideal", lpips_distance(ideal, edited, encoders.lpips).item(), encoders.lpips.label),
        Score("psnr_to_ideal", psnr(ideal, edited).item()),
        Score("psnr_reconstruction", psnr(drawn, reconstruction).item()),
    ]
    return found | {score.key: score.value for score in named}


def report(items: list, arms: dict[str, tuple[str, Method]], output: Path) -> None:
    """grid.png, results.json, and on the screen the arms' means and all their paired differences."""
    found = {(row["method"], row["item"]): row for row in read_rows(output / "rows.jsonl")}
    ids = [item.id for item in items]
    summary = {name: intervals([found[name, item] for item in ids]) for name in arms}
    sheet = [
        [load_image(output / "pictures" / item / f"{name}.png") for name in ("source", *arms)] for item in ids[:12]
    ]
    labels = [f"{item.source_prompt} -> {item.target_prompt}" for item in items[:12]]
    save_png(output / "grid.png", grid(sheet, labels, ["source", *arms]))
    print(score_table(summary), end="\n\n")
    differences: dict[str, dict[str, dict]] = {}
    for a, b in pairs_of(arms):
        for key in summary[a]:
            values = [[found[name, item]["metrics"].get(key, math.nan) for item in ids] for name in (a, b)]
            finite = [(x, y) for x, y in zip(*values, strict=True) if math.isfinite(x) and math.isfinite(y)]
            if finite:
                interval = dict(zip(("mean", "low", "high"), paired_bootstrap(*zip(*finite, strict=True)), strict=True))
                differences.setdefault(f"{a} - {b}", {})[key] = interval | {"n": len(finite)}
    print("Paired differences")
    print(score_table(differences), end="\n\n")
    for pair, found_of in differences.items():
        for key in wanted_keys(list(found_of), ("edit_success",)):
            ruled = verdict(Interval(**found_of[key]), 1, "better")
            print(f"{pair}: edits succeed more often: {ruled}")
    write_json(output / "results.json", {"summary": summary, "differences": differences})
    print(f"{len(ids)} pictures; everything in {output}, pictures in {output / 'grid.png'}")


def pairs_of(arms: dict[str, tuple[str, Method]]) -> list[tuple[str, str]]:
    """(better by the paper's argument, worse) within each engine: ideal and each inversion, each and the first."""
    pairs = []
    for ideal in [name for name, (arm, _) in arms.items() if arm == IDEAL]:
        first, *others = [n for n, (arm, m) in arms.items() if arm != IDEAL and m.engine == arms[ideal][1].engine]
        pairs += [(ideal, first), *((ideal, other) for other in others), *((other, first) for other in others)]
    return pairs
