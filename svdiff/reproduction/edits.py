"""Fig. 7: single-image editing with shifts, full weights and LoRA, with and without DDIM inversion."""

import argparse
from dataclasses import replace
from pathlib import Path

from common.data import EDIT_TYPES, read_pie_bench
from common.images import center_crop_resize, grid, load_image, save_png, to_tensor
from common.metrics import Score, clip_text_similarity, psnr
from common.runs import InputError, write_json
from svdiff import editing, merging
from svdiff.reproduction.study import SPACES, Study, applied, draw, read_pictures, training


def read_items(study: Study) -> list:
    """Items of a PIE-Bench folder, or of the picturebook's, spread over the kinds of edit that change a thing."""
    from common.picturebook.benchmarks import ensure_pie_bench

    folder = ensure_pie_bench(study.args.split) if study.args.items_dir is None else Path(study.args.items_dir)
    items = [item for item in read_pie_bench(folder, border=0) if item.edit_type != "0"]
    by_type: dict[str, list] = {}
    for item in items:
        by_type.setdefault(item.edit_type, []).append(item)
    if not items:
        raise InputError(f"{folder} holds no edit of a known type (1 to 9)")
    rounds = [found[k] for k in range(len(items)) for found in by_type.values() if k < len(found)]
    return [(folder, item) for item in rounds[: study.args.items]]


def scores(study: Study, folder: Path, item, source):
    """For `draw`: whether the edit is there, its distance to the true edit and to what should stay, CLIP-T."""
    mask = item.mask[None, None]

    def score(picture) -> dict[str, float]:
        clip = study.encoders.clip
        told = clip_text_similarity(picture.to(study.pipe.device), [item.target_prompt], clip).item()
        found = {Score("CLIP-T", told, clip.label).key: told}
        if mask.shape[-2:] == picture.shape[-2:]:
            found["psnr_kept"] = psnr(source, picture, 1 - mask).item()
        if "edit" in item.extras and picture.shape[-1] == 64:
            from common.picturebook.benchmarks import edit_success

            found["edit_success"] = float(edit_success(item, picture))
            truth = to_tensor(load_image(folder / item.extras["truth_path"]))
            found["psnr_truth"] = psnr(truth, picture).item()
        return found

    return score


def run(study: Study) -> None:
    """One edit per item and method: an inverted edit draws no random number, so that more seeds would say nothing."""
    study = replace(study, args=argparse.Namespace(**{**vars(study.args), "images_per_prompt": 1}))
    sheet, labels = [], []
    for folder, item in read_items(study):
        picture = center_crop_resize(load_image(item.image_path), study.resolution)
        source, row = to_tensor(picture), [picture]
        score = scores(study, folder, item, source)
        for space, flags in SPACES.items():
            told = ["--image_path", str(item.image_path), "--instance_prompt", item.source_prompt]
            folder_of = training(study, f"edit-{item.id}-{space}", [], *flags, *told)
            with applied(study, merging.load(study.pipe, folder_of, study.bases)):
                for method, inversion in ((space, False), (f"{space}+inversion", True)):

                    def make(seeds, inversion=inversion, source=source, item=item):
                        at = source.to(study.pipe.device)
                        return editing.edit(study.pipe, at, item.target_prompt, study.how, inversion, 0.0, tuple(seeds))

                    draw(study, method, item.id, make, score, edit_type=item.edit_type)
                    row.append(read_pictures(study, method, item.id)[0])
        sheet.append(row)
        labels.append(f"{EDIT_TYPES[item.edit_type]}: {item.source_prompt} -> {item.target_prompt}")
    columns = ["source", *(name for space in SPACES for name in (space, f"{space}+inversion"))]
    save_png(study.output / "figure7.png", grid(sheet, labels, columns))
    write_json(study.output / "items.json", labels)
