"""The page of a user study tells no names; its answers are read whole or refused in one sentence."""

import copy
import json

import pytest
from PIL import Image

from common.runs import InputError
from common.user_study import Group, ranks_of, read_answers, write_study


@pytest.fixture
def key(tmp_path):
    files = {name: tmp_path / f"{name}.png" for name in ("source", "ours", "theirs", "rival")}
    for number, path in enumerate(files.values()):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    group = Group({"source": files.pop("source")}, files)
    page = write_study(tmp_path, "Look.", {"alike": "Which <one> is it?"}, [group] * 20)
    text, key = page.read_text(), json.loads((tmp_path / "study_key.json").read_text())
    assert not any(name in text for name in files) and "Which &lt;one&gt; is it?" in text and key["study"] in text
    assert text.count("<section") == 20 and text.count("<select") == 60 and text.count("<option>3<") == 60
    assert 1 < len({tuple(methods.items()) for methods in key["groups"].values()}) <= 6  # an order of its own each
    return key


def answer(key, ranks):
    answers = {number: {"alike": {letter: ranks[method] for letter, method in methods.items()}}
               for number, methods in key["groups"].items()}  # fmt: skip
    return {"who": "a", "study": key["study"], "answers": answers}


def test_ranks_go_back_to_their_methods(key):
    ranks = {"ours": 1, "theirs": 3, "rival": 2}
    assert ranks_of(answer(key, ranks), key) == {name: {"alike": [rank] * 20} for name, rank in ranks.items()}


def test_the_same_order_of_other_pictures_is_another_study(key, tmp_path):
    files = {name: tmp_path / f"{name}.png" for name in ("ours", "theirs", "rival")}
    Image.new("RGB", (4, 4), "blue").save(files["ours"])
    group = Group({"source": tmp_path / "source.png"}, files)
    write_study(tmp_path, "Look.", {"alike": "Which <one> is it?"}, [group] * 20)
    other = json.loads((tmp_path / "study_key.json").read_text())
    assert other["groups"] == key["groups"] and other["study"] != key["study"]
    (tmp_path / "a.json").write_text(json.dumps(answer(other, {"ours": 1, "theirs": 3, "rival": 2})))
    assert len(read_answers([tmp_path / "a.json"], tmp_path)) == 1
    with pytest.raises(InputError, match="twice"):
        read_answers([tmp_path / "a.json", str(tmp_path / "a.json")], tmp_path)


def test_other_answers_are_refused(key):
    good = answer(key, {"ours": 1, "theirs": 3, "rival": 2})
    for damaged in ([], {"who": "f"}, good | {"answers": []}):
        with pytest.raises(InputError, match="no answer file"):
            ranks_of(damaged, key)
    for other in (good | {"study": "x"}, good | {"answers": {"1": good["answers"]["1"]}}):
        with pytest.raises(InputError, match="another study page"):
            ranks_of(other, key)
    for wrong in ({"A": 1, "B": 1, "C": 2}, {"A": 1, "B": 2}, {"A": 1.0, "B": 2, "C": 3}, 5):
        bad = copy.deepcopy(good)
        bad["answers"]["7"]["alike"] = wrong
        with pytest.raises(InputError, match="group 7, are no ranking by alike"):
            ranks_of(bad, key)
