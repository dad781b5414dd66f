"""Individuals: photographs, true pictures of every prompt, rooms with holes."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from common.data import read_subject_prompts, read_subjects
from common.picturebook import benchmarks, subjects
from common.picturebook.drawing import draw
from common.picturebook.scenes import Scene, caption
from tests.common.picturebook.readings import pixels


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CACHE", str(tmp_path_factory.mktemp("drawn")))
        yield


def scenes_in(folder) -> dict[str, Scene]:
    return {key: Scene.from_dict(scene) for key, scene in json.loads((folder / "scenes.json").read_text()).items()}


def test_twelve_subjects_with_pairs_of_one_class_and_four_for_validation():
    folder = benchmarks.ensure_subjects()
    found, prompts = read_subjects(folder), read_subject_prompts(folder)
    assert len(found) == 12 and all(len(subject.paths) == 5 for subject in found)
    classes = Counter(subject.class_name for subject in found)
    assert classes["cat"] == classes["dog"] == 2 and len(prompts["object"]) == len(prompts["live"]) == 15
    assert {subject.class_name for subject in found if subject.live} == {"cat", "dog", "bird"}
    validation = read_subjects(benchmarks.ensure_subjects("validation"))
    assert [subject.name for subject in validation] == ["cat", "bird", "car", "mushroom"]
    splits = (subjects.individuals(split).values() for split in ("test", "validation"))
    one, two = ({thing.marking for thing, _ in individuals} for individuals in splits)
    assert not one & two


def test_prompts_say_in_words_what_their_true_pictures_show():
    thing = subjects.individuals("validation")["cat"][0]
    for prompts in (subjects.OBJECT_PROMPTS, subjects.LIVE_PROMPTS):
        for template, wanted in prompts.items():
            scene = subjects.true_scene(thing, wanted, random.Random(0))
            assert caption(scene).replace("an orange", "a orange") == template.format(thing.color, "cat")


def test_every_prompt_has_a_true_picture_with_and_without_the_marking():
    folder, photographs = benchmarks.ensure_truths("validation"), scenes_in(benchmarks.ensure_subjects("validation"))
    marked, unmarked = (scenes_in(folder / kind) for kind in ("marked", "unmarked"))
    assert marked.keys() == unmarked.keys() and len(marked) == 4 * 15
    for key, scene in marked.items():
        subject = photographs[f"{key.split('/')[0]}/00.png"].things[0]
        assert (scene.things[0].marking, scene.things[0].color) == (subject.marking, subject.color)
        assert unmarked[key] == scene.with_thing(0, marking=0)
        assert (pixels(folder / "marked" / key) == np.asarray(draw(scene).picture)).all()
        assert (pixels(folder / "marked" / key) != pixels(folder / "unmarked" / key)).any()


def test_twins_are_of_one_class_and_of_two_colours():
    folder = benchmarks.ensure_twins()
    individuals, scenes = read_subjects(folder), scenes_in(folder)
    assert len(individuals) == 16 and all(len(one.paths) == 5 for one in individuals)
    for one, two in zip(individuals[::2], individuals[1::2], strict=True):
        colors = {scenes[f"{twin.name}/00.png"].things[0].color for twin in (one, two)}
        assert one.class_name == two.class_name and len(colors) == 2
    assert scenes_in(benchmarks.ensure_twins("validation")) != scenes


def test_rooms_ask_for_what_no_photograph_shows():
    folder, photographs = benchmarks.ensure_rooms("validation"), scenes_in(benchmarks.ensure_subjects("validation"))
    rooms = json.loads((folder / "rooms.json").read_text())
    assert len(rooms) == 4 * 20
    for kind, conditions in (("cat", {"facing", "light", "pose"}), ("car", {"facing", "light"})):
        found = {room["condition"] for room in rooms.values() if room["kind"] == kind}
        assert found == conditions | {"as photographed"}
    for key, room in rooms.items():
        truth, reference = (Scene.from_dict(room["scenes"][name]) for name in ("truth", "reference"))
        thing, photographed = truth.things[room["index"]], photographs[f"{room['subject']}/00.png"].things[0]
        assert (truth.light == "night") == (room["condition"] == "light")
        assert (thing.facing != photographed.facing) == (room["condition"] == "facing")
        assert (thing.pose != photographed.pose) == (room["condition"] == "pose")
        assert thing.marking == photographed.marking == reference.things[0].marking
        assert room["caption"].split()[-1] in (thing.facing, thing.kind)
        scene, true, twin = (pixels(folder / f"{key}_{name}.png") for name in ("scene", "truth", "unmarked"))
        hole, region = (pixels(folder / f"{key}_{name}.png")[..., 0] > 127 for name in ("hole", "region"))
        assert (region & hole).sum() == region.sum() > 100 and (~hole).sum() > 100
        assert (true != twin)[region].any() and not (true != twin)[~hole].any()
        far = ~hole & (np.abs(np.arange(64)[:, None] / 64 - thing.ground) > 0.07)  # from the shadow
        assert not (np.abs(scene - true).max(2) > 8)[far].any()
