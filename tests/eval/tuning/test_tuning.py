"""Tuning of text-driven editing: the same number of settings for all, the published one among them, the least taken."""

import pytest

from eval.tuning import text_editing, tuner
from spdinv import options


def test_a_grid_is_every_combination_and_the_first_of_equals_is_taken():
    settings = tuner.grid(a=(1, 2), b=(3, 4))
    assert settings == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    scores = {0: (5, 1), 1: (1, 1), 2: (0, 2), 3: (0, 9)}  # means 3, 1, 1, 4.5
    found = [{"method": tuner.label("m", settings[n]), "metrics": {"x": value}} for n in scores for value in scores[n]]
    assert tuner.least(found, {"m": settings}, "x") == {"m": ({"a": 1, "b": 4}, 1.0)}


@pytest.mark.parametrize("name", text_editing.GRIDS)
def test_every_method_has_eight_settings_that_differ_and_the_published_one_is_among_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "PICTUREBOOK_PRESET", {})  # the published values, not those tuned from here
    tried = [text_editing.method_of(name, setting) for setting in text_editing.GRIDS[name]]
    assert len(tried) == 8 and all(tried.count(method) == 1 for method in tried)
    assert text_editing.method_of(name, {}) in tried
