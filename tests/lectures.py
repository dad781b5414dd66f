"""A lecture's cells, for tests: that they are Python and that they run."""

import ast
import os
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]


def cells(paper: str) -> list[str]:
    """The code cells of <paper>/lecture.ipynb; a SyntaxError names the first that is no Python."""
    book = nbformat.read(ROOT / paper / "lecture.ipynb", as_version=4)
    nbformat.validate(book)
    found = [cell.source for cell in book.cells if cell.cell_type == "code"]
    for number, source in enumerate(found):
        ast.parse(source, f"{paper}/lecture.ipynb, code cell {number}")
    return found


def run_quickly(paper: str) -> dict:
    """The names that a lecture's cells leave behind, run in quick form in this process, drawing on no screen."""
    import matplotlib

    matplotlib.use("agg")
    os.environ["LECTURE_QUICK"] = "1"
    names: dict = {}
    try:
        for number, source in enumerate(cells(paper)):
            exec(compile(source, f"{paper}/lecture.ipynb, code cell {number}", "exec"), names)
    finally:
        del os.environ["LECTURE_QUICK"]
        import matplotlib.pyplot as plt

        plt.close("all")
    return names
