"""Lectures run and keep their outputs; a failing cell is one sentence and changes nothing."""

import nbformat
import pytest

from common.claims import PAPERS
from eval import lectures
from tests.lectures import cells


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A lecture of its own, with cells that a test writes."""
    path = tmp_path / "lecture.ipynb"
    monkeypatch.setattr(lectures, "lecture", lambda paper: path)

    def write(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


@pytest.mark.parametrize("paper", PAPERS)
def test_the_cells_are_python(paper):
    assert len(cells(paper)) > 9


@pytest.mark.slow
def test_outputs_are_kept_in_full_form_alone(book):
    path = book("import os, common\nprint(os.environ.get('LECTURE_QUICK'), 6 * 7)")
    before = path.read_text()
    lectures.main(["spdinv", "--quick"])
    assert path.read_text() == before
    lectures.main(["spdinv"])
    (cell,) = nbformat.read(path, as_version=4).cells
    assert cell.outputs[0]["text"] == "None 42\n" and "execution" not in cell.metadata


@pytest.mark.slow
def test_a_failing_cell_is_told_and_nothing_is_written(book, refused):
    path = book("1 / 0")
    before = path.read_text()
    refused("ZeroDivisionError: division by zero", lectures.main, ["spdinv"])
    assert path.read_text() == before
