"""The benchmark folders: published formats, true edits, masks that hold the change, splits that stay apart."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from common.data import read_pie_bench, read_subject_prompts, read_subjects
from common.picturebook.benchmarks import PIE_TYPES, drawn_once, pie_bench, subjects, twins
from common.picturebook.classifier import Reading
from common.picturebook.drawing import draw
from common.picturebook.edits import EDIT_NAMES, edit_from_dict, make_edit, shows, with_brackets
from common.picturebook.scenes import KINDS, Scene


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pie")
    pie_bench(folder, "test", quick=True)
    return folder


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def true_reading(scene: Scene) -> Reading:
    """What a perfect classifier would read: the kinds that are there, in order of presence, then one that is not."""
    things = [
        {"kind": t.kind, "color": t.color, "material": t.material, "hat": t.hat, "facing": t.facing, "pose": t.pose,
         "presence": 1.0}
        for t in scene.things
    ]  # fmt: skip
    absent = [kind for kind in KINDS if kind not in {t.kind for t in scene.things}]
    blank = {"color": "red", "material": "plain", "hat": False, "facing": "right", "pose": "standing", "presence": 0.0}
    return Reading(scene.background, scene.light, scene.style, things + [blank | {"kind": kind} for kind in absent])


def test_the_quick_subset_has_the_published_proportions(quick):
    items = read_pie_bench(quick)
    assert Counter(item.edit_type for item in items) == {key: few for key, (_, _, few) in PIE_TYPES.items()}
    assert len(items) == 40 and sum(full for _, full, _ in PIE_TYPES.values()) == 700


def test_outside_the_mask_the_true_edit_equals_the_source_but_for_the_shadow(quick):
    for item in read_pie_bench(quick, border=0):
        edit = edit_from_dict(item.extras["edit"])
        if edit.index is None:
            continue
        changed = (edit.source if edit.kind == "delete" else edit.target).things[edit.index]
        shadow = np.abs(np.arange(64)[:, None] / 64 - changed.ground) < 0.07
        difference = np.abs(read(item.image_path) - read(quick / item.extras["truth_path"])).sum(2) > 30
        assert difference.any(), item.id
        outside = difference & (item.mask.numpy() < 0.5) & ~shadow
        assert outside.mean() < 0.001, item.id


def test_captions_differ_and_blended_words_are_in_their_captions(quick):
    for item in read_pie_bench(quick):
        assert item.source_prompt != item.target_prompt
        assert "[" not in item.source_prompt + item.target_prompt
        if item.blended_words:
            assert item.blended_words[0] in item.source_prompt.split()
            assert item.blended_words[1] in item.target_prompt.split()


def test_every_track_finds_its_pictures(quick):
    for item in read_pie_bench(quick):
        for key in ("truth_path", "exemplar_path", "edit_map_path", "subject_path"):
            assert Image.open(quick / item.extras[key]).size == (64, 64)


@pytest.mark.parametrize("kind", EDIT_NAMES.values())
def test_success_is_seen_on_the_true_edit_and_not_on_the_source(kind):
    for seed in range(30):
        edit = make_edit(kind, random.Random(seed))
        assert shows(edit, true_reading(edit.target)), edit
        assert not shows(edit, true_reading(edit.source)), edit
        assert edit_from_dict(edit.to_dict()) == edit
        assert (np.asarray(draw(edit.source).picture) != np.asarray(draw(edit.target).picture)).any()


def test_brackets_mark_the_words_that_differ():
    assert with_brackets("a red cat in a room", "a blue cat in a room") == (
        "a [red] cat in a room",
        "a [blue] cat in a room",
    )
    assert with_brackets("a red cat", "a red cat with a hat") == ("a red cat", "a red cat [with a hat]")


def test_splits_share_no_item(tmp_path):
    pie_bench(tmp_path / "validation", "validation", quick=True)
    pie_bench(tmp_path / "test", "test", quick=True)
    one, two = ({item.extras["edit"]["source"]["seed"] for item in read_pie_bench(tmp_path / split)}
                for split in ("validation", "test"))  # fmt: skip
    assert not one & two


def test_twelve_subjects_with_pairs_of_one_class(tmp_path):
    subjects(tmp_path)
    found = read_subjects(tmp_path)
    assert len(found) == 12 and all(len(subject.paths) == 5 for subject in found)
    classes = Counter(subject.class_name for subject in found)
    assert classes["cat"] == classes["dog"] == 2
    assert {subject.class_name for subject in found if subject.live} == {"cat", "dog", "bird"}
    prompts = read_subject_prompts(tmp_path)
    assert len(prompts["object"]) == len(prompts["live"]) == 15


def test_twins_are_of_one_class_and_of_two_colours(tmp_path):
    twins(tmp_path, "test")
    individuals = read_subjects(tmp_path)
    scenes = json.loads((tmp_path / "scenes.json").read_text())
    colors = {name: scenes[f"{name}/00.png"]["things"][0]["color"] for name in (one.name for one in individuals)}
    assert len(individuals) == 16 and all(len(one.paths) == 5 for one in individuals)
    for one, two in zip(individuals[::2], individuals[1::2], strict=True):
        assert one.class_name == two.class_name and colors[one.name] != colors[two.name]
    (tmp_path / "validation").mkdir()
    twins(tmp_path / "validation", "validation")
    assert (tmp_path / "validation" / "scenes.json").read_text() != (tmp_path / "scenes.json").read_text()


def test_a_folder_is_drawn_once_and_never_half(tmp_path, monkeypatch):
    monkeypatch.setattr("common.picturebook.benchmarks.CACHE", tmp_path)
    calls = []

    def broken(folder):
        (folder / "part").write_text("")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        drawn_once("x", broken)
    for _ in range(2):
        folder = drawn_once("x", lambda folder: (calls.append(1), (folder / "whole").write_text("")))
    assert calls == [1] and [path.name for path in folder.iterdir()] == ["whole"]
