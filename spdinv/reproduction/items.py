"""One item of a PIE-Bench folder: read, edited by a method, scored. Nothing heavy is imported before it is needed."""

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

from common.files import check_file_name
from common.runs import InputError, measure
from spdinv import options

log = logging.getLogger(__name__)

EQUALIZER = 2.0  # PIE-Bench's factor on the blended word of the target prompt


def run_item(
    pipe,
    item,
    method: options.Method,
    encoders,
    folder: Path | None = None,
    resolution: int | None = None,
    seed: int = 0,
    name: str | None = None,
    inverted: dict | None = None,
):
    """Edit one EditItem and score it.

    Returns (row, pictures): a result row (common.runs), and {"source", "reconstruction", "edited"} as PIL pictures.
    method: an editing.Method; PIE-Bench's words for LocalBlend and reweighting are put in here. encoders: see
    common.metrics.load_encoders. folder: where the paths in item.extras start, for the true edit if there is one.
    name: of the method in the row; its own by default. inverted: what this function leaves there of one item is used by
    its next call for the same item, so that methods which differ after the inversion share one; the row counts its
    seconds and memory all the same.
    """
    from common.images import center_crop_resize, load_image, to_pil, to_tensor
    from common.pipelines import native_resolution
    from spdinv.editing import edit_picture

    image = center_crop_resize(load_image(item.image_path), resolution or native_resolution(pipe))
    words = blended_words(pipe, item)
    method = options.with_words(method, words, {words[1]: EQUALIZER} if words and words[1] else None)
    source_prompt = "" if method.null_source_prompt else item.source_prompt
    key = json.dumps([source_prompt, method.inversion, method.inversion_options, method.num_inference_steps,
                      method.inversion_steps])  # fmt: skip
    before, memory = (inverted or {}).get(key, (None, 0.0))
    with measure() as cost:
        edit = edit_picture(
            pipe, to_tensor(image).to(pipe.device), source_prompt, item.target_prompt, method, inversion=before
        )
    memory = max(memory, cost.peak_memory_mb)
    if inverted is not None:
        inverted[key] = edit.inversion, memory
    pictures = {"source": image, "reconstruction": to_pil(edit.reconstruction), "edited": to_pil(edit.edited)}
    metrics = {
        **scores(item, pictures, encoders, folder),
        "latent_mse": edit.latent_mse,
        "rounds": edit.inversion.rounds.float().mean().item(),
        "inversion_forward": edit.inversion.cost["forward"],
        "inversion_backward": edit.inversion.cost["backward"],
    }
    seconds = cost.seconds + (before.cost["seconds"] if before else 0.0)
    row = row_of(item, name or method.name, seed, metrics, seconds, edit.inversion.cost["seconds"], memory)
    return row | {"blended_words": words}, pictures


def row_of(item, name: str, seed: int, metrics: dict, seconds: float, inversion_seconds: float, memory: float) -> dict:
    """A result row (common.runs); seconds of everything, and of the inversion alone (NaN where there is none)."""
    return {
        "paper": "spdinv", "method": name, "item": item.id, "edit_type": item.edit_type, "seed": seed,
        "metrics": metrics, "seconds": seconds, "inversion_seconds": inversion_seconds, "peak_memory_mb": memory,
    }  # fmt: skip


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
    from common.metrics import PIE_PROTOCOLS, Score, lpips_distance, pie_scores, psnr

    source, edited = to_tensor(pictures["source"]), to_tensor(pictures["edited"])
    result = {}
    if "edit" in item.extras and source.shape[-2:] == item.mask_size:  # a picturebook item at its own size
        from common.picturebook.benchmarks import edit_success

        result["edit_success (picturebook)"] = float(edit_success(item, edited))
        if folder:
            truth = to_tensor(load_image(folder / item.extras["truth_path"]))
            result["psnr_truth"] = psnr(truth, edited).item()
            lpips = lpips_distance(truth, edited, encoders.lpips).item()
            result[Score("lpips_truth", lpips, encoders.lpips.label).key] = lpips
    mask = square_mask(item, source.shape[-2:])
    for protocol in PIE_PROTOCOLS:
        result |= pie_scores(source, edited, mask, item.source_prompt, item.target_prompt, encoders, protocol)
    if "reconstruction" in pictures:
        result["psnr_reconstruction"] = psnr(source, to_tensor(pictures["reconstruction"])).item()
    return result


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
