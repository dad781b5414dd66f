"""The page of a user study tells no names; its answers are read whole or refused in one sentence."""

import copy
import json

import pytest
from PIL import Image

from common.user_study import Group, ranks_of, read_answers, write_study
from tests.refusing import refuses

ASKED = {"alike": "Which <one> is it?"}
RANKS = {"ours": 1, "theirs": 3, "rival": 2}


@pytest.fixture
def group(tmp_path):
    for number, name in enumerate(("source", *RANKS)):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{name}.png")
    return Group({"source": tmp_path / "source.png"}, {name: tmp_path / f"{name}.png" for name in RANKS})


@pytest.fixture
def key(tmp_path, group):
    text = write_study(tmp_path, "Look.", ASKED, [group] * 20).read_text()
    key = json.loads((tmp_path / "study_key.json").read_text())
    assert not any(name in text for name in RANKS) and "Which &lt;one&gt; is it?" in text and key["study"] in text
    assert text.count("<section") == 20 and text.count("<select") == 60 and text.count("<option>3<") == 60
    assert 1 < len({tuple(methods.items()) for methods in key["groups"].values()}) <= 6  # an order of its own each
    return key


def answer(key):
    answers = {number: {"alike": {letter: RANKS[method] for letter, method in methods.items()}}
               for number, methods in key["groups"].items()}  # fmt: skip
    return {"who": "a", "study": key["study"], "answers": answers}


def test_ranks_go_back_and_the_same_order_of_other_pictures_is_another_study(key, group, tmp_path):
    assert ranks_of(answer(key), key) == {name: {"alike": [rank] * 20} for name, rank in RANKS.items()}
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "ours.png")
    write_study(tmp_path, "Look.", ASKED, [group] * 20)
    other = json.loads((tmp_path / "study_key.json").read_text())
    assert other["groups"] == key["groups"] and other["study"] != key["study"]
    (tmp_path / "a.json").write_text(json.dumps(answer(other)))
    assert len(read_answers([tmp_path / "a.json"], tmp_path)) == 1
    refuses("twice", read_answers, [tmp_path / "a.json", str(tmp_path / "a.json")], tmp_path)


def test_other_answers_are_refused(key):
    good = answer(key)
    for damaged in ([], {"who": "f"}, good | {"answers": []}):
        refuses("no answer file", ranks_of, damaged, key)
    for other in (good | {"study": "x"}, good | {"answers": {"1": good["answers"]["1"]}}):
        refuses("another study page", ranks_of, other, key)
    for wrong in ({"A": 1, "B": 1, "C": 2}, {"A": 1, "B": 2}, {"A": 1.0, "B": 2, "C": 3}, 5):
        bad = copy.deepcopy(good)
        bad["answers"]["7"]["alike"] = wrong
        refuses("group 7, are no ranking by alike", ranks_of, bad, key)
