"""Fig. 7: single-image editing with shifts, full weights and LoRA, with and without DDIM inversion."""

import argparse
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from common.data import EDIT_TYPES, EditItem, read_pie_bench
from common.images import center_crop_resize, load_image, to_tensor
from common.metrics import clip_text_similarity, psnr, score_key
from svdiff import editing
from svdiff.reproduction.study import SPACES, Maker, Method, Panel, Scorer, Study


def read_items(study: Study) -> tuple[Path, list[EditItem]]:
    """Items of a PIE-Bench folder, or of the picturebook's, spread over the kinds of edit that change a thing."""
    from common.picturebook.benchmarks import ensure_pie_bench

    folder = ensure_pie_bench(study.args.split) if study.args.items_dir is None else Path(study.args.items_dir)
    by_type: dict[str, list[EditItem]] = {}
    for item in read_pie_bench(folder, "123456789", border=0):
        by_type.setdefault(item.edit_type, []).append(item)
    rounds = [item for turn in zip_longest(*by_type.values()) for item in turn if item]
    return folder, rounds[: study.args.items]


def scores(study: Study, folder: Path, item: EditItem, source) -> Scorer:
    """Whether the edit is there, its distance to the true edit and to what should stay, CLIP-T."""
    mask = item.mask[None, None]

    def score(picture) -> dict[str, float]:
        clip = study.encoders.clip
        told = clip_text_similarity(picture.to(study.pipe.device), [item.target_prompt], clip).item()
        found = {score_key("CLIP-T", clip.label): told}
        if mask.shape[-2:] == picture.shape[-2:]:
            found["psnr_kept"] = psnr(source, picture, 1 - mask).item()
        if "edit" in item.extras and picture.shape[-1] == 64:
            from common.picturebook.benchmarks import edit_success

            found["edit_success"] = float(edit_success(item, picture))
            truth = to_tensor(load_image(folder / item.extras["truth_path"]))
            found["psnr_truth"] = psnr(truth, picture).item()
        return found

    return score


def unchanged(source: Tensor, target: str) -> Maker:
    """Nothing is done."""
    return lambda seeds: source.expand(len(seeds), -1, -1, -1)


def edits(study: Study) -> None:
    """One edit per item and method: an inverted edit draws no random number, so that more seeds would say nothing."""
    study, panels = replace(study, args=argparse.Namespace(**{**vars(study.args), "images_per_prompt": 1})), []
    folder, items = read_items(study)
    for item in items:
        picture = center_crop_resize(load_image(item.image_path), study.resolution)
        source = to_tensor(picture)

        def edited(target: str, inversion: bool, source=source) -> Maker:
            at = source.to(study.pipe.device)
            return lambda seeds: editing.edit(study.pipe, at, target, study.how, inversion, 0.0, seeds)

        told = ["--image_path", str(item.image_path), "--instance_prompt", item.source_prompt]
        methods = [
            Method(f"{space}{way}", partial(study.trained, f"edit-{item.id}-{space}", [], *SPACES[space], *told),
                   make=partial(edited, inversion=bool(way)))
            for space in ("svdiff", "full", "lora") for way in ("", "+inversion")
        ]  # fmt: skip
        methods += [Method("base+inversion", make=partial(edited, inversion=True)),  # what costs no training
                    Method("source", make=partial(unchanged, source), shown=False)]  # fmt: skip
        label = f"{EDIT_TYPES[item.edit_type]}: {item.source_prompt} -> {item.target_prompt}"
        drawn = [(item.id, item.target_prompt, scores(study, folder, item, source))]
        panels.append(Panel(label, {"source": picture}, methods, drawn, {"edit_type": item.edit_type}))
    study.compare(panels, "figure7.png")
