"""The linear probe finds what is written into noise, and nothing where nothing is."""

import numpy as np

from common.data import EditItem
from common.picturebook.benchmarks import write_edit_item
from spdinv.reproduction.experiments import probe


def test_what_is_written_in_is_read_off_and_pure_noise_is_not():
    rng = np.random.default_rng(0)
    labels = [("sea", "snow", "room")[i] for i in rng.integers(0, 3, 240)]
    noise = rng.standard_normal((240, 4, 8, 8))
    direction = {name: rng.standard_normal((4, 8, 8)) for name in set(labels)}
    marked = noise + 0.5 * np.stack([direction[label] for label in labels])
    found = probe.probe_all({"noise": noise, "marked": marked}, [{"background": label} for label in labels])
    assert list(found) == ["background"] and found["background"]["n"] == 240
    right = {name: values.mean() for name, values in found["background"]["right"].items()}
    assert right["marked"] > 0.9 and abs(right["noise"] - 1 / 3) < 4 * (2 / 9 / 240) ** 0.5
    assert found["background"]["chance"] == max(labels.count(name) for name in direction) / 240


def test_labels_are_only_learned_from_other_items():
    """Every item a class mark of its own would be read off perfectly by a probe that saw it in training."""
    rng = np.random.default_rng(1)
    labels = np.array([str(i % 2) for i in range(60)])
    assert probe.read_off(np.eye(60) * 10 + rng.normal(0, 1e-3, (60, 60)), labels).mean() < 0.7


def test_rare_classes_are_left_out():
    codes, labels = np.random.default_rng(0).standard_normal((39, 4)), ["cat"] * 12 + ["dog"] * 10 + ["fish"] * 9
    found = probe.probe_all({"a": codes[:31]}, [{"kind": label} for label in labels])["kind"]
    assert found["kept"].tolist() == [True] * 22 + [False] * 9 and found["n"] == 22
    for others in (0, 9):  # one class says nothing
        said = [{"kind": "cat"}] * 30 + [{"kind": "dog"}] * others
        assert probe.probe_all({"a": codes[: 30 + others]}, said) == {}


def test_attributes_are_those_of_the_source_prompt(tmp_path):
    for kind in "1268":
        key, entry = write_edit_item(tmp_path, "validation", kind, 0)
        item = EditItem(key, None, "", "", "", kind, None, (), extras=entry)
        said, prompt = probe.attributes(item), entry["original_prompt"].replace("[", "").replace("]", "")
        assert said["kind"] in prompt.split() and said["color"] in prompt.split()
        assert (said["material"] in prompt.split()) == (said["material"] != "plain" and "thing" not in prompt)
        assert (" and " in prompt) == (said["number of things"] == "2")
    assert probe.attributes(EditItem("0", None, "a cat", "a dog", "", "1", None, ())) == {}
