"""Benchmarks drawn from the picturebook in the published formats: a PIE-Bench folder and a DreamBooth-dataset folder.

Splits: validation (for tuning) and test (for reported numbers only) use scenes that training never draws; both are
deterministic. A folder is drawn at its first use and found again afterwards.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from common.picturebook.classifier import load_classifier
from common.picturebook.drawing import draw
from common.picturebook.edits import EDIT_NAMES, changed_mask, edit_from_dict, make_edit, successes, with_brackets
from common.picturebook.scenes import ANIMALS, BACKGROUNDS, KINDS, Scene, Thing, layout, sample_thing

VERSION = 1  # of everything drawn here; part of the cached folders' names
CACHE = Path(__file__).parents[2] / "outputs" / "picturebook"

# PIE-Bench's types and numbers of items (its folder names end in them), and a quick subset of 40 in the same shares.
PIE_TYPES = {
    "0": ("0_random_140", 140, 8), "1": ("1_change_object_80", 80, 5), "2": ("2_add_object_80", 80, 5),
    "3": ("3_delete_object_80", 80, 5), "4": ("4_change_attribute_content_40", 40, 2),
    "5": ("5_change_attribute_pose_40", 40, 2), "6": ("6_change_attribute_color_40", 40, 2),
    "7": ("7_change_attribute_material_40", 40, 2), "8": ("8_change_background_80", 80, 5),
    "9": ("9_change_style_80", 80, 4),
}  # fmt: skip

TWIN_KINDS = ("cat", "dog", "bird", "fish", "car", "boat", "house", "cup")
SUBJECT_COUNT, PICTURES_PER_SUBJECT = 12, 5
OBJECT_PROMPTS = [
    "a {0} {1} in a meadow",
    "a {0} {1} on a beach",
    "a {0} {1} in the snow",
    "a {0} {1} by the sea",
    "a {0} {1} in a desert",
    "a {0} {1} in a room",
    "a {0} {1} in a meadow at night",
    "a {0} {1} in the snow at night",
    "a pencil sketch of a {0} {1} in a room",
    "a pencil sketch of a {0} {1} by the sea",
    "a {0} {1} with a hat on a beach",
    "a {0} {1} and a red ball in a meadow",
    "a {0} {1} and a yellow house by the sea",
    "a striped {0} {1} in a room",
    "a purple {0} {1} in a desert",
]
LIVE_PROMPTS = OBJECT_PROMPTS[:12] + [
    "a lying {0} {1} in a meadow", "a lying {0} {1} in a room", "a green {0} {1} by the sea",
]  # fmt: skip


def runs_of(mask: np.ndarray) -> list[int]:
    """A mask as PIE-Bench stores it: start and length of each run of ones over the flattened rows."""
    flat = np.concatenate([[0], mask.reshape(-1) > 0.5, [0]]).astype(int)
    edges = np.flatnonzero(np.diff(flat))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1).reshape(-1).tolist()


def subject_of(rng: random.Random, kind: str) -> Thing:
    """An individual of a kind: ordinary but for a marking that no caption describes."""
    thing = sample_thing(rng, layout(rng, 1)[0], (kind,))
    return replace(thing, material="plain", hat=False, pose="standing", marking=rng.randrange(1, 1 << 30))


def write_edit_item(folder: Path, split: str, type_id: str, number: int) -> tuple[str, dict]:
    """Draws one item: source, true edit, exemplar, edit map and reference subject; returns its id and mapping entry.

    exemplar: another scene with the thing wanted (or the background or style wanted) where the edit needs it.
    edit map: grey, white = change, soft over the mask's border. subject: an individual of the changed kind.
    """
    rng = random.Random(f"pie {VERSION} {split} {type_id} {number}")
    edit = make_edit(EDIT_NAMES[rng.choice("123456789") if type_id == "0" else type_id], rng)
    source, target = draw(edit.source), draw(edit.target)
    mask = changed_mask(edit, source.masks, target.masks)
    soft = Image.fromarray((255 * mask).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
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
        "edit_map_path": soft, "subject_path": draw(subject).picture,
    }  # fmt: skip
    paths = {name: f"{name.removesuffix('_path')}/{place}/{key}.png" for name in files}
    paths["image_path"] = f"annotation_images/{place}/{key}.png"
    for name, path in paths.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        files[name].save(folder / path)
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
    """Twelve individuals: one of each kind but with the cat and the dog twice (pairs of one class) in place of the
    fish and the star."""
    kinds = [kind for kind in KINDS if kind not in ("fish", "star")] + ["cat", "dog"]
    chosen = {}
    for number, kind in enumerate(kinds):
        rng = random.Random(f"subject {VERSION} {split} {number}")
        chosen[kind + ("2" if number >= len(KINDS) - 2 else "")] = subject_of(rng, kind), rng
    write_subjects(folder, chosen)


def twins(folder: Path, split: str = "test") -> None:
    """Two individuals of each of eight kinds, of different colours: pairs of one class."""
    chosen = {}
    for kind in TWIN_KINDS:
        rng = random.Random(f"twins {VERSION} {split} {kind}")
        one = two = subject_of(rng, kind)
        while two.color == one.color:
            two = subject_of(rng, kind)
        chosen |= {kind: (one, rng), f"{kind}2": (two, rng)}
    write_subjects(folder, chosen)


def write_subjects(folder: Path, chosen: dict[str, tuple[Thing, random.Random]]) -> None:
    """A DreamBooth-dataset folder of individuals by name, each with the generator that draws its scenes: five pictures
    each, classes and prompts."""
    lines, scenes = ["Classes", "", "subject_name,class,live"], {}
    for name, (thing, rng) in chosen.items():
        kind = thing.kind
        (folder / name).mkdir(parents=True, exist_ok=True)
        for picture in range(PICTURES_PER_SUBJECT):
            view = replace(thing, **layout(rng, 1)[0])
            scene = Scene((view,), rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))
            draw(scene).picture.save(folder / name / f"{picture:02d}.png")
            scenes[f"{name}/{picture:02d}.png"] = scene.to_dict()
        lines.append(f"{name},{kind},{int(kind in ANIMALS)}")
    lines += ["", "Prompts"]
    for title, prompts in (("Object Prompts", OBJECT_PROMPTS), ("Live Subject Prompts", LIVE_PROMPTS)):
        calls = ",\n".join(f"{prompt!r}.format(unique_token, class_token)" for prompt in prompts)
        lines += ["", title, "", "prompt_list = [", calls, "]"]
    (folder / "prompts_and_classes.txt").write_text("\n".join(lines) + "\n")
    (folder / "scenes.json").write_text(json.dumps(scenes))


def drawn_once(name: str, write) -> Path:
    """The cached folder of that name, written by `write(folder)` if it is not there; never half there."""
    folder = CACHE / f"{name}-v{VERSION}"
    if not folder.exists():
        temporary = folder.with_name(folder.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        temporary.replace(folder)
    return folder


def ensure_pie_bench(split: str = "test", quick: bool = True) -> Path:
    """The folder of the PIE-Bench-style items of a split, drawn if need be (a second for 40, half a minute for 700)."""
    return drawn_once(f"pie_bench-{split}-{'quick' if quick else 'full'}", lambda f: pie_bench(f, split, quick))


def ensure_subjects(split: str = "test") -> Path:
    """The folder of the twelve subjects of a split, drawn if need be."""
    return drawn_once(f"subjects-{split}", lambda folder: subjects(folder, split))


def ensure_twins(split: str = "test") -> Path:
    """The folder of the sixteen subjects, pairs of one class, of a split, drawn if need be."""
    return drawn_once(f"twins-{split}", lambda folder: twins(folder, split))


def edit_success(item, picture: torch.Tensor, classifier=None) -> bool:
    """Whether the attribute classifier sees in `picture` ([1, 3, 64, 64] or [3, 64, 64], in [0, 1]) what the item of a
    picturebook PIE-Bench folder asks for. item: has the mapping entry's further keys in `extras`."""
    pictures = picture.reshape(1, 3, 64, 64).float().cpu()
    return successes([edit_from_dict(item.extras["edit"])], pictures, classifier or load_classifier())[0]
