"""From a caption to a target prompt: one rule per edit type of PIE-Bench (paper, Sec. 4.1; the rules are ours)."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PEOPLE = ("man", "woman", "boy", "girl", "person", "child", "lady")  # what captions call COCO's "person"
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black", "golden")
MATERIALS = ("wooden", "golden", "glass", "stone", "paper", "knitted")
STYLES = ("a watercolor painting of", "an oil painting of", "a pencil sketch of", "a cartoon of")
STATES = {"person": ("smiling", "crying"), "animal": ("sleepy", "angry"), "vehicle": ("rusty", "muddy"),
          "food": ("burnt", "frozen")}  # fmt: skip
OTHER_STATES = ("broken", "dusty")
POSES = {"sitting": "standing", "standing": "sitting", "laying": "standing", "lying": "standing",
         "walking": "running", "running": "walking", "jumping": "sitting"}  # fmt: skip
PLACES = {"beach": "on a beach", "snow": "in the snow", "field": "in a field", "street": "on a street",
          "forest": "in a forest", "desert": "in a desert", "room": "in a room", "park": "in a park",
          "road": "on a road", "kitchen": "in a kitchen", "grass": "in the grass", "ocean": "in the ocean"}  # fmt: skip
PREPOSITIONS = ("in", "on", "at", "by", "near", "along", "through", "across")


@dataclass(frozen=True)
class Thing:
    """A category that is outlined in the picture and named in its caption, by words[start:stop]."""

    category: dict[str, Any]  # COCO's: id, name, supercategory
    start: int
    stop: int


@dataclass(frozen=True)
class Change:
    """target: words of the target prompt. blended_words: as PIE-Bench has them. region: what the mask covers, "thing",
    the "box" around it, the "rest" of the picture beside everything outlined, or "all"."""

    target: list[str]
    blended_words: tuple[str, str] | None
    region: str
    thing: Thing | None
    instruction: str


def find_things(words: list[str], categories: list[dict]) -> list[Thing]:
    """The categories that the caption names in the singular, in its order."""
    found = []
    for category in categories:
        names = [(name,) for name in PEOPLE] if category["name"] == "person" else [tuple(category["name"].split())]
        for name in names:
            places = [i for i in range(len(words)) if tuple(words[i : i + len(name)]) == name]
            found += [Thing(category, i, i + len(name)) for i in places[:1]]
    return sorted(found, key=lambda thing: thing.start)


def plain_words(caption: str) -> list[str]:
    """Lower case, no punctuation: words to blend are looked up as they stand."""
    kept = "".join(letter if letter.isalnum() or letter in "'-" else " " for letter in caption.lower())
    return kept.split()


# rule(words of the caption, things in it, names by supercategory, rng) -> Change, or None where it does not apply.

Names = dict[str, list[str]]  # of COCO's categories, by supercategory
Rule = Callable[[list[str], list[Thing], Names, random.Random], Change | None]


def put(words: list[str], start: int, stop: int, new: str) -> list[str]:
    """words[start:stop] replaced by `new`, with the article before it to match."""
    changed = words[:start] + new.split() + words[stop:]
    if start and changed[start - 1] in ("a", "an"):
        changed[start - 1] = "an" if changed[start][0] in "aeiou" else "a"
    return changed


def another(thing: Thing, words: list[str], names: Names, rng: random.Random) -> str | None:
    """The name of another category of the thing's kind that the caption does not speak of."""
    taken = {thing.category["name"], *words}
    free = [name for name in names[thing.category["supercategory"]] if not taken & {name, *name.split()}]
    return rng.choice(free) if free else None


def change_object(words, things, names, rng):
    for thing in things:
        if new := another(thing, words, names, rng):
            old = words[thing.stop - 1]
            target = put(words, thing.start, thing.stop, new)
            return Change(target, (old, new.split()[-1]), "thing", thing, f"change the {old} into a {new}")


def add_object(words, things, names, rng):
    for thing in things:
        if new := another(thing, words, names, rng):
            target = put([*words[: thing.stop], "and", "a", *words[thing.stop :]], thing.stop + 2, thing.stop + 2, new)
            return Change(target, (words[thing.stop - 1], new.split()[-1]), "rest", thing, f"add a {new}")


def delete_object(words, things, names, rng):
    for thing in things:
        ends = thing.stop == len(words) or words[thing.stop] in PREPOSITIONS
        starts = [i for i in range(max(1, thing.start - 3), thing.start) if words[i] in ("and", "with")]
        kept = [other for other in things if other.category != thing.category
                and (other.stop <= min(starts, default=0) or other.start >= thing.stop)]  # fmt: skip
        if ends and starts and kept:
            target = words[: starts[-1]] + words[thing.stop :]
            gone, left = words[thing.stop - 1], words[kept[0].stop - 1]
            return Change(target, (gone, left), "thing", thing, f"delete the {gone}")


def describe(words, thing, adjective, after=""):
    """The thing with a further adjective in front, and perhaps a word behind."""
    target = put([*words[: thing.stop], *after.split(), *words[thing.stop :]], thing.start, thing.start, adjective)
    noun = words[thing.stop - 1]
    return Change(target, (noun, noun), "thing", thing, f"make the {noun} {adjective}")


def change_content(words, things, names, rng):
    for thing in things:
        states = STATES.get(thing.category["supercategory"], OTHER_STATES)
        if not set(states) & set(words):
            return describe(words, thing, rng.choice(states))


def change_pose(words, things, names, rng):
    for thing in things:
        if thing.category["supercategory"] in ("person", "animal"):
            verbs = [i for i in range(thing.stop, min(thing.stop + 3, len(words))) if words[i] in POSES]
            if verbs:
                new, noun = POSES[words[verbs[0]]], words[thing.stop - 1]
                target = put(words, verbs[0], verbs[0] + 1, new)
                return Change(target, (noun, noun), "box", thing, f"let the {noun} be {new}")


def change_color(words, things, names, rng):
    for thing in things:
        new = rng.choice([color for color in COLORS if color not in words])
        if thing.start and words[thing.start - 1] in COLORS:
            target, noun = put(words, thing.start - 1, thing.start, new), words[thing.stop - 1]
            return Change(target, (noun, noun), "thing", thing, f"make the {noun} {new}")
        if thing.category["supercategory"] != "person":
            return describe(words, thing, new)


def change_material(words, things, names, rng):
    for thing in things:
        new = rng.choice([material for material in MATERIALS if material not in words])
        alive = thing.category["supercategory"] in ("person", "animal")
        return describe(words, thing, new, after="sculpture" if alive else "")


def change_background(words, things, names, rng):
    for i in range(len(words) - 1, 0, -1):  # from a preposition to the end
        if words[i] in PREPOSITIONS and (here := set(words[i + 1 : i + 5]) & set(PLACES)):
            if all(thing.stop <= i for thing in things):
                new = rng.choice([place for name, place in PLACES.items() if name not in here])
                return Change(words[:i] + new.split(), None, "rest", None, f"move it {new}")
            return None


def change_style(words, things, names, rng):
    if words[1:3] not in (["picture", "of"], ["photo", "of"], ["painting", "of"], ["drawing", "of"]):
        new = rng.choice(STYLES)
        return Change(new.split() + words, None, "all", None, f"make it {new.removesuffix(' of')}")


RULES: dict[str, Rule] = {
    "1": change_object, "2": add_object, "3": delete_object, "4": change_content, "5": change_pose,
    "6": change_color, "7": change_material, "8": change_background, "9": change_style,
}  # fmt: skip
