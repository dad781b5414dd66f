"""Individuals that no caption can describe: their photographs, what prompts ask of them, and the true pictures of that.

The individuals of a split are the same in every set: photographed in mixed places (`subjects`), in one meadow by day
(`lawn`), as their prompts want them (`truths`) and in rooms with holes (`rooms`).
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.picturebook.brush import SIZE
from common.picturebook.drawing import draw
from common.picturebook.scenes import (
    ANIMALS,
    BACKGROUNDS,
    FACING_KINDS,
    KINDS,
    Scene,
    Thing,
    layout,
    sample_thing,
    thing_words,
)

PICTURES = 5  # photographs of a subject
VALIDATION_KINDS = ("cat", "bird", "car", "mushroom")
TWIN_KINDS = ("cat", "dog", "bird", "fish", "car", "boat", "house", "cup")

# Prompts ({0}: the token, {1}: the class) and what their true pictures have beside the subject as it is. A marking
# covers every material and changes with the colour, so that no prompt asks for either.
COMMON_PROMPTS = {
    "a {0} {1} in a meadow": {"background": "meadow"},
    "a {0} {1} on a beach": {"background": "beach"},
    "a {0} {1} in the snow": {"background": "snow"},
    "a {0} {1} by the sea": {"background": "sea"},
    "a {0} {1} in a desert": {"background": "desert"},
    "a {0} {1} in a room": {"background": "room"},
    "a {0} {1} in a meadow at night": {"background": "meadow", "light": "night"},
    "a {0} {1} in the snow at night": {"background": "snow", "light": "night"},
    "a pencil sketch of a {0} {1} in a room": {"background": "room", "style": "sketch"},
    "a pencil sketch of a {0} {1} by the sea": {"background": "sea", "style": "sketch"},
    "a {0} {1} with a hat on a beach": {"background": "beach", "hat": True},
    "a {0} {1} and a red ball in a meadow": {"background": "meadow", "beside": ("red", "ball")},
}
OBJECT_PROMPTS = COMMON_PROMPTS | {
    "a {0} {1} and a yellow house by the sea": {"background": "sea", "beside": ("yellow", "house")},
    "a {0} {1} with a hat in the snow": {"background": "snow", "hat": True},
    "a {0} {1} by the sea at night": {"background": "sea", "light": "night"},
}
LIVE_PROMPTS = COMMON_PROMPTS | {
    "a lying {0} {1} in a meadow": {"background": "meadow", "pose": "lying"},
    "a lying {0} {1} in a room": {"background": "room", "pose": "lying"},
    "a lying {0} {1} by the sea": {"background": "sea", "pose": "lying"},
}

# Rooms: twenty scenes per subject, in half of them another thing of a kind that no subject is. They take turns in what
# no photograph shows: another facing, another pose (animals), another light.
SCENES, OTHER_KINDS = 20, ("fish", "star")
CONDITIONS = ("as photographed", "facing", "light", "pose")

Individuals = dict[str, tuple[Thing, random.Random]]  # by name, each with the generator that draws its photographs


def subject_of(rng: random.Random, kind: str) -> Thing:
    """An individual of a kind: ordinary but for a marking that no caption describes."""
    thing = sample_thing(rng, layout(rng, 1)[0], (kind,))
    return replace(thing, material="plain", hat=False, pose="standing", marking=rng.randrange(1, 1 << 30))


def individuals(split: str) -> Individuals:
    """test: twelve, one of each kind but with the cat and the dog twice (pairs of one class) in place of the fish and
    the star; validation: four."""
    names = [kind for kind in KINDS if kind not in OTHER_KINDS] + ["cat2", "dog2"]
    chosen = {}
    for name in VALIDATION_KINDS if split == "validation" else names:
        rng = random.Random(f"subject {split} {name}")
        chosen[name] = subject_of(rng, name.rstrip("2")), rng
    return chosen


def twin_individuals(split: str) -> Individuals:
    """Two individuals of each of eight kinds, of different colours: pairs of one class."""
    chosen = {}
    for kind in TWIN_KINDS:
        rng = random.Random(f"twins {split} {kind}")
        one = two = subject_of(rng, kind)
        while two.color == one.color:
            two = subject_of(rng, kind)
        chosen |= {kind: (one, rng), f"{kind}2": (two, rng)}
    return chosen


def prompts_of(kind: str) -> dict[str, dict]:
    """The prompts that a subject of this kind is drawn in, in the order of their numbers."""
    return LIVE_PROMPTS if kind in ANIMALS else OBJECT_PROMPTS


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_subjects(folder: Path, chosen: Individuals, lawn: bool = False) -> None:
    """A DreamBooth-dataset folder: five pictures each, classes and prompts; scenes.json {"<name>/<file>": scene}.

    lawn: all pictures of a subject in one meadow by day, drawn with the same seed; only its place and size change.
    """
    lines, scenes = ["Classes", "", "subject_name,class,live"], {}
    for name, (thing, rng) in chosen.items():
        meadow = rng.randrange(1 << 30)
        for number in range(PICTURES):
            view = replace(thing, **layout(rng, 1)[0])
            place, seed = rng.choice(BACKGROUNDS), rng.randrange(1 << 30)
            scene = Scene((view,), "meadow", seed=meadow) if lawn else Scene((view,), place, seed=seed)
            save(draw(scene).picture, folder / name / f"{number:02d}.png")
            scenes[f"{name}/{number:02d}.png"] = scene.to_dict()
        lines.append(f"{name},{thing.kind},{int(thing.kind in ANIMALS)}")
    lines += ["", "Prompts"]
    for title, prompts in (("Object Prompts", OBJECT_PROMPTS), ("Live Subject Prompts", LIVE_PROMPTS)):
        calls = ",\n".join(f"{prompt!r}.format(unique_token, class_token)" for prompt in prompts)
        lines += ["", title, "", "prompt_list = [", calls, "]"]
    (folder / "prompts_and_classes.txt").write_text("\n".join(lines) + "\n")
    (folder / "scenes.json").write_text(json.dumps(scenes))


def true_scene(thing: Thing, wanted: dict, rng: random.Random) -> Scene:
    """What a prompt asks for: the thing (the first from the left) where `wanted`, a value of the prompts, says."""
    places = layout(rng, 1 + ("beside" in wanted))
    things = [replace(thing, **places[0], **{key: wanted[key] for key in ("hat", "pose") if key in wanted})]
    if "beside" in wanted:
        color, kind = wanted["beside"]
        things.append(Thing(kind, color, **places[1]))
    settings = {key: wanted[key] for key in ("background", "light", "style") if key in wanted}
    return Scene(tuple(things), **settings, seed=rng.randrange(1 << 30))


def write_truths(folder: Path, split: str) -> None:
    """marked/<name>/<number of the prompt>.png, the true picture of every prompt with this subject, and
    unmarked/<name>/<number>.png, the same with a thing of its kind and colour that has no marking; in both folders
    scenes.json {"<name>/<file>": scene}."""
    scenes: dict[str, dict] = {"marked": {}, "unmarked": {}}
    for name, (thing, _) in individuals(split).items():
        for number, wanted in enumerate(prompts_of(thing.kind).values()):
            rng = random.Random(f"truth {split} {name} {number}")
            scene = true_scene(thing, wanted, rng)
            for kind, shown in (("marked", scene), ("unmarked", scene.with_thing(0, marking=0))):
                key = f"{name}/{number:02d}.png"
                save(draw(shown).picture, folder / kind / key)
                scenes[kind][key] = shown.to_dict()
    for kind, known in scenes.items():
        (folder / kind / "scenes.json").write_text(json.dumps(known))


# ------------------------------------------------------------------------------------------------------------- rooms


def condition_of(number: int, kind: str) -> str:
    """Conditions take turns; a thing without facing or pose is asked for another light instead."""
    wanted = CONDITIONS[number // 2 % len(CONDITIONS)]  # every second scene has another thing
    possible = {"pose": kind in ANIMALS, "facing": kind in FACING_KINDS}
    return wanted if possible.get(wanted, True) else "light"


def empty_room(split: str, number: int, night: bool) -> tuple[Scene, dict, int]:
    """Scene `number` of a split without the subject, the subject's place, and its index from the left."""
    rng = random.Random(f"room {split} {number}")
    settings = {"background": rng.choice(BACKGROUNDS), "light": "night" if night else "day"}
    seed = rng.randrange(1 << 30)
    if number % 2:
        places, index = layout(rng, 2), rng.randrange(2)
        other = sample_thing(rng, places[1 - index], OTHER_KINDS)
        return Scene((other,), **settings, seed=seed), places[index], index
    return Scene((), **settings, seed=seed), layout(rng, 1)[0], 0


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the ones of a mask [H, W]; the last two lie outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def grey(mask: np.ndarray) -> Image.Image:
    """A picture of a mask [H, W] of values in [0, 1]."""
    return Image.fromarray((255 * mask).round().astype(np.uint8))


def hole_around(box: tuple[int, int, int, int], rng: random.Random) -> np.ndarray:
    """float32 [64, 64], 1 in the hole: the box, each side moved outwards by 15 to 40 % of the room there, and
    by a pixel at least."""
    left, top, right, bottom = box
    room = (left, top, SIZE - right, SIZE - bottom)
    a, b, c, d = (min(space, max(1, round(rng.uniform(0.15, 0.4) * space))) for space in room)
    hole = np.zeros((SIZE, SIZE), np.float32)
    hole[top - b : bottom + d, left - a : right + c] = 1
    return hole


def write_room(folder: Path, split: str, name: str, thing: Thing, number: int) -> dict:
    """Draws room `number` of a subject; its entry of rooms.json."""
    condition, key = condition_of(number, thing.kind), f"{name}/{number:02d}"
    empty, place, index = empty_room(split, number, condition == "light")
    rng = random.Random(f"room {split} {name} {number}")
    changes = {"facing": {"facing": "left" if thing.facing == "right" else "right"}, "pose": {"pose": "lying"}}
    wanted = replace(thing, **changes.get(condition, {}))
    shown = Scene((replace(wanted, **layout(rng, 1)[0]),), rng.choice(BACKGROUNDS), seed=rng.randrange(1 << 30))
    things = list(empty.things)
    things.insert(index, replace(wanted, **place))
    truth = replace(empty, things=tuple(things))
    scenes = {
        "scene": empty, "truth": truth, "unmarked": truth.with_thing(index, marking=0), "reference": shown,
        "reference_unmarked": shown.with_thing(0, marking=0),
    }  # fmt: skip
    drawings = {kind: draw(scene) for kind, scene in scenes.items()}
    for kind, drawing in drawings.items():
        save(drawing.picture, folder / f"{key}_{kind}.png")
    region = drawings["truth"].masks[index]
    save(grey(region), folder / f"{key}_region.png")
    save(grey(hole_around(box_of(region), rng)), folder / f"{key}_hole.png")
    return {
        "subject": name, "kind": thing.kind, "condition": condition, "index": index,
        "caption": thing_words(wanted),
        "reference_box": box_of(drawings["reference"].masks[0]),
        "scenes": {kind: scene.to_dict() for kind, scene in scenes.items()},
    }  # fmt: skip


def write_rooms(folder: Path, split: str) -> None:
    """Twenty rooms per subject, <name>/<number>_<what>.png, where what is "scene" (without the subject), "truth" (with
    it), "unmarked" (with a thing of its kind and colour without marking), "hole" and "region" (white: to be filled, and
    the subject's own pixels), "reference" (the subject elsewhere, as it is wanted) and "reference_unmarked"; rooms.json
    {"<name>/<number>": {"subject", "kind", "condition", "index" from the left, "caption" of the subject,
    "reference_box", "scenes"}}."""
    rooms = {}
    for name, (thing, _) in individuals(split).items():
        for number in range(SCENES):
            rooms[f"{name}/{number:02d}"] = write_room(folder, split, name, thing, number)
    (folder / "rooms.json").write_text(json.dumps(rooms))
