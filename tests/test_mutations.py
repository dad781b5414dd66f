"""The lines that tests/mutations.py breaks are there, and breaking them leaves Python."""

import ast

import pytest

from tests.mutations import ROOT, mutations


@pytest.mark.parametrize("mutation", mutations(), ids=lambda one: f"{one['file']}: {one['line'][:30]}")
def test_the_marked_lines_are_there(mutation):
    text = (ROOT / mutation["file"]).read_text(encoding="utf-8")
    assert text.count(mutation["line"]) == 1 and mutation["line"] != mutation["broken"]
    ast.parse(text.replace(mutation["line"], mutation["broken"]))
    assert all((ROOT / name).exists() for name in mutation["tests"].split())
