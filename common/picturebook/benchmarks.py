"""Benchmarks drawn from the picturebook in the published formats: PIE-Bench folders and DreamBooth-dataset folders.

Splits: validation (for tuning) and test (for reported numbers only) use scenes that training never draws; both are
deterministic. A folder is drawn at its first use and found again afterwards, until the code that draws it changes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from common.picturebook import compositions
from common.picturebook import subjects as people
from common.picturebook.classifier import load_classifier
from common.picturebook.drawing import draw
from common.picturebook.drawn import cache_folder, write_folder
from common.picturebook.edits import (
    EDIT_NAMES,
    changed_mask,
    edit_from_dict,
    edit_map,
    make_edit,
    runs_of,
    successes,
    with_brackets,
)
from common.picturebook.hashes import data_hash
from common.picturebook.scenes import BACKGROUNDS, Scene
from common.picturebook.subjects import grey, save, subject_of

# PIE-Bench's types and numbers of items (its folder names end in them), and a quick subset of 40 in the same shares.
PIE_TYPES = {
    "0": ("0_random_140", 140, 8), "1": ("1_change_object_80", 80, 5), "2": ("2_add_object_80", 80, 5),
    "3": ("3_delete_object_80", 80, 5), "4": ("4_change_attribute_content_40", 40, 2),
    "5": ("5_change_attribute_pose_40", 40, 2), "6": ("6_change_attribute_color_40", 40, 2),
    "7": ("7_change_attribute_material_40", 40, 2), "8": ("8_change_background_80", 80, 5),
    "9": ("9_change_style_80", 80, 4),
}  # fmt: skip


def write_edit_item(folder: Path, split: str, type_id: str, number: int) -> tuple[str, dict]:
    """Draws one item: source, true edit, exemplar, edit map and reference subject; returns its id and mapping entry.

    exemplar: another scene with the thing wanted (or the background or style wanted) where the edit needs it.
    edit map: grey, white = change, see `edits.edit_map`. subject: an individual of the changed kind.
    """
    rng = random.Random(f"pie {split} {type_id} {number}")
    edit = make_edit(EDIT_NAMES[rng.choice("123456789") if type_id == "0" else type_id], rng)
    source, target = draw(edit.source), draw(edit.target)
    mask = changed_mask(edit, source.masks, target.masks)
    wanted = edit.target
    if edit.index is not None and edit.kind != "delete":
        wanted = replace(wanted, things=(wanted.things[edit.index],), background=rng.choice(BACKGROUNDS))
    elif edit.kind == "delete":
        wanted = replace(wanted, things=())
    exemplar = draw(replace(wanted, seed=rng.randrange(1 << 30)))
    changed = (edit.target if edit.kind != "delete" else edit.source).things[edit.index or 0]
    subject = Scene((subject_of(rng, changed.kind),), rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))
    key, place = f"{type_id}{number:011d}", PIE_TYPES[type_id][0]
    files = {
        "image_path": source.picture, "truth_path": target.picture, "exemplar_path": exemplar.picture,
        "edit_map_path": grey(edit_map(edit, mask)), "subject_path": draw(subject).picture,
    }  # fmt: skip
    paths = {name: f"{name.removesuffix('_path')}/{place}/{key}.png" for name in files}
    paths["image_path"] = f"annotation_images/{place}/{key}.png"
    for name, path in paths.items():
        save(files[name], folder / path)
    original, editing = with_brackets(edit.source_caption, edit.target_caption)
    return key, {
        **paths,
        "image_path": f"{place}/{key}.png",
        "original_prompt": original,
        "editing_prompt": editing,
        "editing_instruction": edit.instruction,
        "editing_type_id": type_id,
        "blended_word": " ".join(edit.words) if edit.words else "",
        "mask": runs_of(mask),
        "picture_size": [64, 64],
        "edit": edit.to_dict(),
        "subject_scene": subject.to_dict(),
    }


def pie_bench(folder: Path, split: str = "test", quick: bool = True) -> None:
    """Writes a PIE-Bench folder of 700 items, or of the quick subset's 40 (the first of each type)."""
    mapping = {}
    for type_id, (_, full, few) in PIE_TYPES.items():
        for number in range(few if quick else full):
            key, entry = write_edit_item(folder, split, type_id, number)
            mapping[key] = entry
    (folder / "mapping_file.json").write_text(json.dumps(mapping))


def subjects(folder: Path, split: str = "test") -> None:
    """Twelve individuals of the test split, four of the validation split, in mixed places."""
    people.write_subjects(folder, people.individuals(split))


def twins(folder: Path, split: str = "test") -> None:
    """Two individuals of each of eight kinds."""
    people.write_subjects(folder, people.twin_individuals(split))


def drawn_once(name: str, write: Callable[[Path], None]) -> Path:
    """The cached folder of that name, written by `write(folder)` if it is not there; never half there, and drawn anew
    where the code that draws it has changed."""
    return write_folder(cache_folder() / f"{name}-{data_hash()}", write)


def ensure_pie_bench(split: str = "test", quick: bool = True) -> Path:
    """The folder of the PIE-Bench-style items of a split, drawn if need be (a second for 40, half a minute for 700)."""
    return drawn_once(f"pie_bench-{split}-{'quick' if quick else 'full'}", lambda f: pie_bench(f, split, quick))


def ensure_compositions(split: str = "test") -> Path:
    """The PIE-Bench folder of the sixty compositions of a split for exemplar editing (`compositions`)."""
    return drawn_once(f"compositions-{split}", lambda folder: compositions.write_compositions(folder, split))


def ensure_subjects(split: str = "test") -> Path:
    """The folder of the twelve subjects (validation: four) of a split, photographed in mixed places."""
    return drawn_once(f"subjects-{split}", lambda folder: subjects(folder, split))


def ensure_lawn(split: str = "test") -> Path:
    """The folder of the same subjects, each photographed five times in one meadow by day."""
    return drawn_once(f"lawn-{split}", lambda f: people.write_subjects(f, people.individuals(split), lawn=True))


def ensure_truths(split: str = "test") -> Path:
    """The folder of the true pictures of all prompts of these subjects, with and without their marking, in marked/ and
    unmarked/ (`subjects.write_truths`)."""
    return drawn_once(f"truths-{split}", lambda folder: people.write_truths(folder, split))


def ensure_rooms(split: str = "test") -> Path:
    """The folder of twenty scenes with a hole for each of these subjects, and their true pictures
    (`subjects.write_rooms`)."""
    return drawn_once(f"rooms-{split}", lambda folder: people.write_rooms(folder, split))


def ensure_twins(split: str = "test") -> Path:
    """The folder of the sixteen subjects, pairs of one class, of a split, drawn if need be."""
    return drawn_once(f"twins-{split}", lambda folder: twins(folder, split))


def edit_success(item, picture: torch.Tensor, classifier=None) -> bool:
    """Whether the attribute classifier sees in `picture` ([1, 3, 64, 64] or [3, 64, 64], in [0, 1]) what the item of a
    picturebook PIE-Bench folder asks for. item: has the mapping entry's further keys in `extras`."""
    pictures = picture.reshape(1, 3, 64, 64).float().cpu()
    return successes([edit_from_dict(item.extras["edit"])], pictures, classifier or load_classifier())[0]
