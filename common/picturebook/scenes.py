"""What a picture-book scene is: its description, its captions, and how scenes are sampled.

A scene is plain data. `drawing.draw` turns it into a 64x64 picture with one exact mask per thing; `caption` into words.
Everything is deterministic in the description, which holds its own seed for the details that no caption mentions.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace

KINDS = ("cat", "dog", "bird", "fish", "car", "boat", "house", "tree", "mushroom", "ball", "star", "cup")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
MATERIALS = ("plain", "striped", "spotted")
FACINGS = ("left", "right")
POSES = ("standing", "lying")
BACKGROUNDS = ("meadow", "beach", "snow", "sea", "desert", "room")
LIGHTS = ("day", "night")
STYLES = ("plain", "sketch")

ANIMALS = ("cat", "dog", "bird")  # the kinds that have a pose
FACING_KINDS = ("cat", "dog", "bird", "fish", "car", "boat", "cup")
BACKGROUND_WORDS = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "snow": "in the snow",
    "sea": "by the sea",
    "desert": "in a desert",
    "room": "in a room",
}

MENTION_RATES = {
    "color": 0.95, "kind": 0.97, "material": 0.85, "hat": 0.85, "pose": 0.85, "facing": 0.25, "side": 0.25,
    "background": 0.9, "light": 0.9, "style": 0.95,
}  # fmt: skip

NAMES_EVERYTHING = 0.7

# Combinations never drawn for training (14 of 120 pairs of colour and kind; every colour and kind is seen elsewhere),
# so that success on them is compositional.
HELD_OUT = frozenset(
    {
        ("red", "fish"), ("orange", "boat"), ("yellow", "dog"), ("green", "house"), ("blue", "mushroom"),
        ("purple", "car"), ("pink", "bird"), ("brown", "ball"), ("white", "cup"), ("black", "star"),
        ("blue", "cat"), ("red", "tree"), ("green", "bird"), ("purple", "cat"),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One thing in a scene.

    x, ground: where it touches the ground, as a fraction of the picture; size: half its height, likewise.
    marking: 0 for an ordinary thing; any other number draws an individual that no caption can describe
    (an unusual pattern in a second colour, and an accessory), always the same for the same number.
    """

    kind: str
    color: str
    material: str = "plain"
    hat: bool = False
    facing: str = "right"
    pose: str = "standing"
    x: float = 0.5
    ground: float = 0.85
    size: float = 0.27
    marking: int = 0


@dataclass(frozen=True)
class Scene:
    """Things from left to right on a background. `seed` fixes clouds, tufts, stars and the like."""

    things: tuple[Thing, ...]
    background: str = "meadow"
    light: str = "day"
    style: str = "plain"
    seed: int = 0

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict) -> Scene:
        return Scene(**{**data, "things": tuple(Thing(**thing) for thing in data["things"])})

    def with_thing(self, index: int, **changes) -> Scene:
        """The same scene with attributes of one thing changed."""
        things = list(self.things)
        things[index] = replace(things[index], **changes)
        return replace(self, things=tuple(things))


def layout(rng: random.Random, count: int) -> list[dict]:
    """Positions and sizes for `count` things side by side: dicts of x, ground, size."""
    places = []
    for index in range(count):
        center = (index + 0.5) / count + (rng.uniform(-0.1, 0.1) if count == 1 else rng.uniform(-0.015, 0.015))
        size = rng.uniform(*{1: (0.27, 0.36), 2: (0.205, 0.245), 3: (0.13, 0.155)}[count])
        places.append({"x": round(center, 3), "ground": round(rng.uniform(0.84, 0.94), 3), "size": round(size, 3)})
    return places


def sample_thing(rng: random.Random, place: dict, kinds=KINDS, held_out: bool = False) -> Thing:
    """A random thing at a place; its (colour, kind) is from HELD_OUT if asked for, and never otherwise."""
    while True:
        kind, color = rng.choice(kinds), rng.choice(COLORS)
        if ((color, kind) in HELD_OUT) == held_out:
            break
    return Thing(
        kind=kind,
        color=color,
        material=rng.choices(MATERIALS, (0.6, 0.2, 0.2))[0],
        hat=rng.random() < 0.15,
        facing=rng.choice(FACINGS),
        pose=rng.choices(POSES, (0.7, 0.3))[0] if kind in ANIMALS else "standing",
        **place,
    )


def sample_scene(seed: int, counts=(0.5, 0.48, 0.02), held_out: bool = False, marked: float = 0.1) -> Scene:
    """A random scene of one to three things of different kinds, deterministic in `seed`.

    counts: probabilities of one, two and three things. held_out: colours and kinds never trained on.
    marked: how often a thing is an individual with a marking.
    """
    rng = random.Random(f"scene {seed}")
    count = rng.choices((1, 2, 3), counts)[0]
    things: list[Thing] = []
    for place in layout(rng, count):
        free = [kind for kind in KINDS if kind not in {thing.kind for thing in things}]
        thing = sample_thing(rng, place, free, held_out)
        if rng.random() < marked:
            thing = replace(thing, marking=rng.randrange(1, 1 << 30), material="plain", hat=False)
        things.append(thing)
    return Scene(
        things=tuple(things),
        background=rng.choice(BACKGROUNDS),
        light=rng.choices(LIGHTS, (0.75, 0.25))[0],
        style=rng.choices(STYLES, (0.85, 0.15))[0],
        seed=seed,
    )


def thing_words(thing: Thing, mention=lambda attribute: True, token: str = "") -> str:
    """A thing in words, such as "a lying red striped cat with a hat facing left".

    mention: says of "color", "kind", "material", "hat", "facing" and "pose" whether to name it (a kind not named is a
    "thing"). A plain material, a bare head and a standing pose go without saying. token: a rare word put before the
    kind for an individual.
    """
    words = []
    if thing.pose == "lying" and mention("pose"):
        words.append("lying")
    if mention("color"):
        words.append(thing.color)
    if thing.material != "plain" and mention("material"):
        words.append(thing.material)
    words += [token] if token else []
    words.append(thing.kind if mention("kind") else "thing")
    if thing.hat and mention("hat"):
        words.append("with a hat")
    if thing.kind in FACING_KINDS and mention("facing"):
        words.append(f"facing {thing.facing}")
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def join_words(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def caption(scene: Scene, rng: random.Random | None = None, facing: bool = False, token: str = "") -> str:
    """The scene in words. Without `rng` every attribute is named (facing only on request); with it, all of them in
    seven captions of ten, facing included, and a random part in the others:

    colour 95 %, kind 97 %, material, hat and pose 85 %, facing 25 %, background 90 %, night 90 %, style 95 %. Sides of
    two things are named in 25 % of all; one plain picture in ten is called "a picture of".
    """
    everything = rng is not None and rng.random() < NAMES_EVERYTHING

    def mention(attribute: str) -> bool:
        if rng is None:
            return facing if attribute == "facing" else attribute != "side"
        if everything and attribute != "side":
            return True
        return rng.random() < MENTION_RATES[attribute]

    phrases = [thing_words(thing, mention, token if index == 0 else "") for index, thing in enumerate(scene.things)]
    if len(phrases) == 2:
        if mention("side"):
            phrases = [f"{phrases[0]} on the left", f"{phrases[1]} on the right"]
        if rng is not None and rng.random() < 0.5:
            phrases.reverse()
    text = join_words(phrases)
    if mention("background"):
        text += " " + BACKGROUND_WORDS[scene.background]
    if scene.light == "night" and mention("light"):
        text += " at night"
    if scene.style == "sketch" and mention("style"):
        text = "a pencil sketch of " + text
    elif rng is not None and rng.random() < 0.1:
        text = "a picture of " + text
    return text
