"""Rows to tables: what shares a training counts once."""

import math

import pytest

from common.runs import bootstrap_interval
from common.tables import by_method, by_subject, score_table, subject_of


def test_rows_of_one_training_become_one():
    def row(method, item, **values):
        return {"paper": "p", "method": method, "item": item, "seed": 0, "group": "similar", "seconds": 2.0,
                "metrics": values}  # fmt: skip

    rows = [
        row("a", "cat/00", x=1.0, y=5.0), row("a", "cat/01", x=2.0, y=math.nan), row("a", "dog/00", x=5.0, y=None),
        row("a", "bird|1", x=math.inf), row("b", "cat/00", x=7.0), row("a", "cat", x=3.0),
    ]  # fmt: skip
    found = {(one["method"], one["item"]): one for one in by_subject(rows)}
    assert found.keys() == {("a", "cat"), ("a", "dog"), ("a", "bird"), ("b", "cat")}
    assert found["a", "cat"]["metrics"] == {"x": 2.0, "y": 5.0} and found["a", "cat"]["group"] == "similar"
    assert found["a", "dog"]["metrics"] == {"x": 5.0} and found["a", "bird"]["metrics"] == {"x": math.inf}
    assert found["a", "cat"]["seconds"] == 2.0
    summary = by_method(by_subject(rows[:3]))["a"]
    assert summary["x"] == dict(zip(("mean", "low", "high"), bootstrap_interval([1.5, 5.0]), strict=True)) | {"n": 2}
    assert "subjects" in score_table({"a": summary}, "subjects")


@pytest.mark.parametrize("item, subject", [("cat/03", "cat"), ("cat|0", "cat"), ("cat+dog|1", "cat+dog"), ("7", "7")])
def test_whose_picture_it_is(item, subject):
    assert subject_of(item) == subject
