"""One item of a PIE-Bench folder: read, edited by a method, scored. Nothing heavy is imported before it is needed."""

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.files import check_file_name, refused_as
from common.runs import InputError, measure
from spdinv import options

log = logging.getLogger(__name__)

EQUALIZER = 2.0  # PIE-Bench's factor on the blended word of the target prompt


@dataclass(frozen=True)
class Bench:
    """What the edits of a run share. encoders: of common.encoders.load_encoders. folder: where the paths in item.extras
    start, for the true edit if there is one. resolution: of the square pictures; the model's own by default."""

    pipe: Any
    encoders: Any
    folder: Path | None = None
    resolution: int | None = None
    seed: int = 0

    def row(self, item, name: str, pictures: dict, seconds: float, memory: float, inversion_seconds: float, **metrics):
        """A result row (common.runs) with the scores of the pictures, and further metrics. seconds: of everything;
        inversion_seconds: NaN where there is no inversion."""
        return {
            "paper": "spdinv", "method": name, "item": item.id, "edit_type": item.edit_type, "seed": self.seed,
            "metrics": scores(item, pictures, self.encoders, self.folder) | metrics, "seconds": seconds,
            "inversion_seconds": inversion_seconds, "peak_memory_mb": memory,
        }  # fmt: skip


def run_item(
    bench: Bench, item, method: options.Method | Callable, name: str | None = None, inverted: dict | None = None
) -> tuple[dict, dict]:
    """Edit one EditItem and score it: its row, and {"source", "reconstruction", "edited"} as PIL pictures.

    method: PIE-Bench's words for LocalBlend and reweighting are put in here. Or a baseline of baselines.run.load, which
    reconstructs nothing. name: of the method in the row; its own by default. inverted: what this function leaves there
    of one item is used by its next call for the same item, so that methods which differ after the inversion share one;
    the row counts its seconds and memory all the same.
    """
    from common.images import center_crop_resize, load_image, to_pil, to_tensor
    from common.pipelines import native_resolution
    from spdinv.editing import edit_picture

    image = center_crop_resize(load_image(item.image_path), bench.resolution or native_resolution(bench.pipe))
    picture = to_tensor(image).to(bench.pipe.device)
    if callable(method):
        with measure() as cost:
            edited = method(item, picture, square_mask(item, picture.shape[-2:]).to(picture.device))
        pictures = {"source": image, "edited": to_pil(edited)}
        return bench.row(item, name, pictures, cost.seconds, cost.peak_memory_mb, float("nan")), pictures
    method = with_words(bench.pipe, item, method)
    source_prompt = "" if method.null_source_prompt else item.source_prompt
    key = json.dumps([source_prompt, method.inversion, method.inversion_options, method.num_inference_steps,
                      method.inversion_steps])  # fmt: skip
    before, memory = (inverted or {}).get(key, (None, 0.0))
    with measure() as cost:
        edit = edit_picture(bench.pipe, picture, source_prompt, item.target_prompt, method, inversion=before)
    memory, found = max(memory, cost.peak_memory_mb), edit.inversion
    if inverted is not None:
        inverted[key] = found, memory
    pictures = {"source": image, "reconstruction": to_pil(edit.reconstruction), "edited": to_pil(edit.edited)}
    row = bench.row(
        item, name or method.name, pictures, cost.seconds + (before.cost["seconds"] if before else 0.0), memory,
        found.cost["seconds"], latent_mse=edit.latent_mse, rounds=found.rounds.float().mean().item(),
        inversion_forward=found.cost["forward"], inversion_backward=found.cost["backward"],
    )  # fmt: skip
    return row | {"blended_words": method.engine_options.get("blended_words")}, pictures


def with_words(pipe, item, method: options.Method) -> options.Method:
    """The method with the item's words for LocalBlend and reweighting, as PIE-Bench's runs have them (p2p only)."""
    if method.engine != "p2p":
        return method
    words = blended_words(pipe, item)
    equalizer = {words[1]: EQUALIZER} if words and words[1] else None
    return replace(method, engine_options={**method.engine_options, "blended_words": words, "equalizer": equalizer})


def blended_words(pipe, item) -> tuple[str | None, str | None] | None:
    """The item's words for LocalBlend; None, with a warning, for one that is not in its prompt. As released, the other
    then says alone where to blend; where both are missing nothing is blended (the released code edits nothing)."""
    from spdinv.engines.alignment import find_word

    if not item.blended_words:
        return None
    found = []
    for prompt, word in zip((item.source_prompt, item.target_prompt), item.blended_words, strict=True):
        try:
            find_word(pipe.tokenizer, prompt, word)
            found.append(word)
        except InputError as problem:
            log.warning("item %s: LocalBlend and reweighting do without a word: %s", item.id, problem)
            found.append(None)
    return tuple(found) if any(found) else None


def scores(item, pictures: dict, encoders, folder: Path | None) -> dict[str, float]:
    """All scores of one edit: on the picturebook edit success and nearness to the true edit first, then PIE-Bench's."""
    from common.images import load_image, to_tensor
    from common.metrics import PIE_PROTOCOLS, pie_scores, psnr, truth_scores

    source, edited = to_tensor(pictures["source"]), to_tensor(pictures["edited"])
    result = success(item, edited)
    if result and folder:
        result |= truth_scores(to_tensor(load_image(folder / item.extras["truth_path"])), edited, encoders.lpips)
    mask = square_mask(item, source.shape[-2:])
    for protocol in PIE_PROTOCOLS:
        result |= pie_scores(source, edited, mask, item.source_prompt, item.target_prompt, encoders, protocol)
    if "reconstruction" in pictures:
        result["psnr_reconstruction"] = psnr(source, to_tensor(pictures["reconstruction"])).item()
    return result


def success(item, picture, name: str = "edit_success") -> dict[str, float]:
    """Whether a picture [1,3,H,W] shows the edit, {} where the item is none of the picturebook's at its own size."""
    if "edit" not in item.extras or picture.shape[-2:] != item.mask_size:
        return {}
    from common.picturebook.benchmarks import edit_success

    return {f"{name} (picturebook)": float(edit_success(item, picture))}


def save_grid(output: Path, items: list, columns: list[str]) -> None:
    """grid.png of these pictures of the first items: what a person can look at."""
    from common.images import grid, load_image, save_png

    sheet = [[load_image(output / "pictures" / item.id / f"{name}.png") for name in columns] for item in items[:12]]
    labels = [f"{item.source_prompt} -> {item.target_prompt}" for item in items[:12]]
    save_png(output / "grid.png", grid(sheet, labels, columns))


def square_mask(item, size: tuple[int, int]):
    """The item's mask [1,1,height,width]: its central square, as of the picture, resized by nearest neighbour."""
    import torch.nn.functional as F

    return F.interpolate(options.central_square(item.mask)[None, None], size)


def read_items(args: argparse.Namespace) -> tuple[Path, list]:
    """The benchmark's folder, and the items to run; the published one-pixel border of the masks is kept for 512-pixel
    masks only (on a picture of 64 pixels it would be 6 % of it)."""
    from common.data import PIE_SIZE, read_pie_bench
    from common.picturebook.benchmarks import ensure_pie_bench
    from common.picturebook.edits import edit_from_dict

    on_book = args.dataset == "picturebook"
    folder = ensure_pie_bench(split=args.split, quick=not args.full) if on_book else Path(args.dataset)
    items = read_pie_bench(folder, args.edit_types, args.limit)
    for item in items:
        check_file_name(item.id, f"an item of {folder}")
        if "edit" in item.extras:
            with refused_as(f"item {item.id} of {folder} has the picturebook's key edit, and not what belongs to it"):
                edit_from_dict(item.extras["edit"])
                if not (truth := folder / item.extras["truth_path"]).is_file():
                    raise InputError(f"item {item.id} of {folder} names a true edit that is not there: {truth}")
    return folder, [item if item.mask_size == PIE_SIZE else replace(item, border=0) for item in items]
