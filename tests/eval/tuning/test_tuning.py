"""The tuner of all tracks; of text-driven editing the same number of settings for all, the published one among them."""

import math

import pytest

from eval.tuning import text_editing, tuner
from spdinv import options
from tests.eval.conftest import make_row
from tests.refusing import refuses


def test_a_grid_is_every_combination_and_the_first_of_equals_is_taken():
    settings = tuner.grid(a=(1, 2), b=(3, 4))
    assert settings == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    scores = iter([(5, 1), (1, 1), (0, 2), (0, 9)])  # means 3, 1, 1, 4.5
    rows = lambda *any: [{"metrics": {"x": value}} for value in next(scores)]  # noqa: E731
    assert tuner.tune({"m": settings}, rows, tuner.least("x"), follow=0) == {"m": ({"a": 1, "b": 4}, -1.0)}


def test_a_winner_at_an_edge_is_followed_until_it_lies_inside(tmp_path):
    """Best at 30 steps of rate 0.1; the trainings of rate 0.001 diverge, and a word is no number to follow."""
    asked = []

    def train(setting):
        asked.append(setting)
        if setting["rate"] < 0.01:
            raise SystemExit(2)
        loss = abs(math.log(setting["rate"] / 0.1)) + abs(math.log(setting["steps"] / 30))
        return make_row("m", "cat", {"loss": loss})

    def rows_of(method, setting):
        return tuner.measured(tmp_path / "rows.jsonl", tuner.label(method, setting), {"cat": setting}, train)

    settings = tuner.grid(rate=(0.001, 0.01, 0.1), steps=(5, 10), word=("a",))
    best, score = tuner.tune({"m": settings}, rows_of, tuner.least("loss"), follow=5)["m"]
    assert best == {"rate": 0.1, "steps": 40, "word": "a"} and score == pytest.approx(-math.log(4 / 3))
    assert asked[6:] == [{"rate": 1.0, "steps": 10, "word": "a"}, {"rate": 0.1, "steps": 20, "word": "a"},
                         {"rate": 0.1, "steps": 40, "word": "a"}, {"rate": 0.1, "steps": 80, "word": "a"}]  # fmt: skip
    tuner.tune({"m": settings}, rows_of, tuner.least("loss"), follow=5)
    assert len(asked) == 10  # all was done
    refuses("all settings of m score the same", tuner.tune, {"m": settings[:2]}, rows_of, tuner.least("loss"))


@pytest.mark.parametrize("name", text_editing.GRIDS)
def test_every_method_has_eight_settings_that_differ_and_the_published_one_is_among_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "PICTUREBOOK_PRESET", {})  # the published values, not those tuned from here
    tried = [text_editing.method_of(name, setting) for setting in text_editing.GRIDS[name]]
    assert len(tried) == 8 and all(tried.count(method) == 1 for method in tried)
    assert text_editing.method_of(name, {}) in tried
