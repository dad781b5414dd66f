"""One item of a PIE-Bench folder: read, edited by a method, scored. Nothing heavy is imported before it is needed."""

import argparse
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.files import check_file_name
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

    def square(self, item):
        """The item's picture, a PIL image of the resolution, and as a tensor [1,3,H,W] in [0,1]."""
        from common.images import center_crop_resize, load_image, to_tensor
        from common.pipelines import native_resolution

        image = center_crop_resize(load_image(item.image_path), self.resolution or native_resolution(self.pipe))
        return image, to_tensor(image).to(self.pipe.device)

    def row(self, item, name: str, pictures: dict, seconds: float, memory: float, inversion_seconds: float, **metrics):
        """A result row (common.runs) with the scores of the pictures, and further metrics. seconds: of everything;
        inversion_seconds: NaN where there is no inversion."""
        return {
            "paper": "spdinv", "method": name, "item": item.id, "edit_type": item.edit_type, "seed": self.seed,
            "metrics": scores(item, pictures, self.encoders, self.folder) | metrics, "seconds": seconds,
            "inversion_seconds": inversion_seconds, "peak_memory_mb": memory,
        }  # fmt: skip


def run_item(bench: Bench, item, method: options.Method, name: str | None = None, inverted: dict | None = None):
    """Edit one EditItem and score it: its row, and {"source", "reconstruction", "edited"} as PIL pictures.

    method: PIE-Bench's words for LocalBlend and reweighting are put in here. name: of the method in the row; its own by
    default. inverted: what this function leaves there of one item is used by its next call for the same item, so that
    methods which differ after the inversion share one; the row counts its seconds and memory all the same.
    """
    from common.images import to_pil
    from spdinv.editing import edit_picture

    (image, picture), method = bench.square(item), with_words(bench.pipe, item, method)
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
    result = {}
    if "edit" in item.extras and source.shape[-2:] == item.mask_size:  # a picturebook item at its own size
        from common.picturebook.benchmarks import edit_success

        result["edit_success (picturebook)"] = float(edit_success(item, edited))
        if folder:
            truth = to_tensor(load_image(folder / item.extras["truth_path"]))
            result |= truth_scores(truth, edited, encoders.lpips)
    mask = square_mask(item, source.shape[-2:])
    for protocol in PIE_PROTOCOLS:
        result |= pie_scores(source, edited, mask, item.source_prompt, item.target_prompt, encoders, protocol)
    if "reconstruction" in pictures:
        result["psnr_reconstruction"] = psnr(source, to_tensor(pictures["reconstruction"])).item()
    return result


def save_grid(output: Path, items: list, columns: list[str]) -> None:
    """grid.png of these pictures of the first items: what a person can look at."""
    from common.images import grid, load_image, save_png

    sheet = [[load_image(output / "pictures" / item.id / f"{name}.png") for name in columns] for item in items[:12]]
    labels = [f"{item.source_prompt} -> {item.target_prompt}" for item in items[:12]]
    save_png(output / "grid.png", grid(sheet, labels, columns))


def square_mask(item, size: tuple[int, int]):
    """The item's mask [1,1,height,width]: its central square, as of the picture, resized by nearest neighbour."""
    import torch.nn.functional as F

    side = min(item.mask_size)
    top, left = ((length - side) // 2 for length in item.mask_size)
    return F.interpolate(item.mask[None, None, top : top + side, left : left + side], size)


def find_dataset(args: argparse.Namespace) -> Path:
    if args.dataset != "picturebook":
        return Path(args.dataset)
    from common.picturebook.benchmarks import ensure_pie_bench

    return ensure_pie_bench(split=args.split, quick=not args.full)


def check_extras(item, folder: Path) -> None:
    """Raises InputError for an entry that has the picturebook's key and not what belongs to it."""
    from common.picturebook.edits import edit_from_dict

    if "edit" not in item.extras:
        return
    try:
        edit_from_dict(item.extras["edit"])
        truth = folder / item.extras["truth_path"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise InputError(f"item {item.id} of {folder} has the key edit of the picturebook's items and is none of them: "
                         "take the key out of mapping_file.json") from None  # fmt: skip
    if not truth.is_file():
        raise InputError(f"item {item.id} of {folder} names a true edit that is not there: {truth}")


def read_items(folder: Path, args: argparse.Namespace) -> list:
    """The items to run; the published one-pixel border of the masks is kept for 512-pixel masks only (on a picture of
    64 pixels it would be 6 % of it)."""
    from common.data import PIE_SIZE, read_pie_bench

    items = read_pie_bench(folder, args.edit_types, args.limit)
    for item in items:
        check_file_name(item.id, f"an item of {folder}")
        check_extras(item, folder)
    return [item if item.mask_size == PIE_SIZE else replace(item, border=0) for item in items]
