"""Scenes, drawings, captions and their vocabulary: deterministic, exact masks, words that mean what is drawn."""

import random

import numpy as np
import pytest
from scipy import ndimage

from common.picturebook import scenes
from common.picturebook.drawing import draw
from common.picturebook.scenes import COLORS, KINDS, Scene, Thing, caption, sample_scene
from common.picturebook.tokenizer import MAX_LENGTH, build_tokenizer, words


def pixels(scene: Scene) -> np.ndarray:
    return np.asarray(draw(scene).picture).astype(int)


def test_a_scene_draws_the_same_bytes_from_its_description_alone():
    for seed in range(8):
        scene = sample_scene(seed)
        again = Scene.from_dict(scene.to_dict())
        assert again == scene
        assert (pixels(scene) == pixels(again)).all()


def test_training_sees_every_pair_but_those_held_out_and_never_two_things_of_a_kind():
    drawn = [sample_scene(seed) for seed in range(3000)]
    pairs = {(thing.color, thing.kind) for scene in drawn for thing in scene.things}
    assert not pairs & scenes.HELD_OUT and len(pairs) == len(COLORS) * len(KINDS) - len(scenes.HELD_OUT)
    unseen = {(thing.color, thing.kind) for seed in range(300) for thing in sample_scene(seed, held_out=True).things}
    assert unseen == scenes.HELD_OUT
    assert all(len({thing.kind for thing in scene.things}) == len(scene.things) for scene in drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_cover_exactly_what_a_thing_changes_of_its_background(kind):
    """Remove the thing from the scene: outside its mask and shadow nothing changes, inside nearly everything does."""
    scene, empty = (Scene(things, background="snow", seed=3)
                    for things in ((Thing(kind, "purple", x=0.5, ground=0.8, size=0.25),), ()))  # fmt: skip
    changed, mask = np.abs(pixels(scene) - pixels(empty)).sum(2) > 12, draw(scene).masks[0] > 0
    shadow = np.abs(np.arange(64)[:, None] / 64 - 0.8) < 0.06
    assert changed[mask].mean() > 0.9
    assert not (changed & ~ndimage.binary_dilation(mask, np.ones((3, 3))) & ~shadow).any()


def test_a_thing_in_front_takes_the_mask_of_the_one_behind():
    behind, front = Thing("ball", "red", x=0.4), Thing("star", "blue", x=0.55)
    masks = draw(Scene((behind, front))).masks
    assert (masks[0] * masks[1]).sum() == 0
    assert masks[0].sum() < draw(Scene((behind,))).masks[0].sum()
    assert (masks[1] == draw(Scene((front,))).masks[0]).all()


@pytest.mark.parametrize("name, value", [("light", "night"), ("style", "sketch"),
                                         *(("background", other) for other in scenes.BACKGROUNDS[1:])])  # fmt: skip
def test_every_scene_attribute_shows(name, value):
    base = dict(things=(Thing("house", "green"),), background="meadow", seed=5)
    assert np.abs(pixels(Scene(**base)) - pixels(Scene(**(base | {name: value})))).mean() > 8


@pytest.mark.parametrize("change", [
    {"color": "blue"}, {"material": "striped"}, {"material": "spotted"}, {"hat": True}, {"facing": "left"},
    {"pose": "lying"}, {"marking": 7}, {"kind": "dog"},
])  # fmt: skip
def test_every_thing_attribute_shows_inside_its_mask(change):
    scene = Scene((Thing("cat", "red", size=0.3),), seed=5)
    other = scene.with_thing(0, **change)
    union = np.maximum(draw(scene).masks[0], draw(other).masks[0]) > 0
    assert np.abs(pixels(scene) - pixels(other))[union].mean() > 4


def test_an_individual_looks_the_same_wherever_it_stands_and_unlike_another():
    looks = ((11, "meadow", 1), (11, "room", 2), (12, "meadow", 1))
    one, moved, other = (Scene((Thing("cat", "red", marking=marking),), background=place, seed=seed)
                         for marking, place, seed in looks)  # fmt: skip
    inner = ndimage.binary_erosion((draw(one).masks[0] * draw(moved).masks[0] * draw(other).masks[0]) > 0)
    assert np.abs(pixels(one) - pixels(moved))[inner].mean() < 2
    assert np.abs(pixels(one) - pixels(other))[inner].mean() > 20


def test_random_captions_say_only_what_is_true_and_sometimes_leave_things_out():
    lengths = set()
    for seed in range(200):
        scene = sample_scene(seed)
        text = caption(scene, random.Random(seed))
        words = text.replace(",", "").split()
        lengths.add(len(words))
        assert all(word in {t.color for t in scene.things} for word in words if word in COLORS)
        assert all(word in {t.kind for t in scene.things} for word in words if word in KINDS)
        assert all(phrase not in text for place, phrase in scenes.BACKGROUND_WORDS.items() if place != scene.background)
        assert ("pencil sketch" in text) <= (scene.style == scenes.STYLES[1])
        assert ("at night" in text) <= (scene.light == "night")
        for thing in scene.things:
            if f"{thing.kind} facing" in text:
                assert thing.kind in scenes.FACING_KINDS and f"{thing.kind} facing {thing.facing}" in text
        if " on the left" in text:
            left = text.split(" on the left")[0].split(" and ")[-1]
            assert any(name in left for name in (scene.things[0].kind, "thing"))
    assert len(lengths) > 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_known_words_are_one_token_each_also_in_captions(tokenizer):
    assert [word for word in words() if len(tokenizer.tokenize(word)) != 1] == []
    for seed in range(200):
        text = caption(sample_scene(seed), random.Random(seed))
        assert tokenizer.tokenize(text) == [word + "</w>" for word in text.replace(",", " ,").split()]
        assert len(tokenizer(text).input_ids) <= MAX_LENGTH


@pytest.mark.parametrize("text", ["sks", "a cat, two dogs!", "café", "猫", "x" * 40, "Zürich 2026"])
def test_any_text_survives_without_an_end_in_the_middle(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_padding_is_the_end_token_up_to_77(tokenizer):
    ids = tokenizer("a cat", padding="max_length").input_ids
    assert len(ids) == 77 and set(ids[4:]) == {tokenizer.eos_token_id} and ids[0] == tokenizer.bos_token_id
