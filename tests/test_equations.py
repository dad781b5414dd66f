"""Every numbered equation of the papers and every line of their algorithms has its function, which names it.

<paper>/reproduction/equations.toml is a table per algorithm, and "equations" for the numbered equations:

    [equations]                        # number -> "module:function", which names "Eq. 6" in its source
    "6" = "image_inpaint.objective:loss"
    "3" = "none: why there is no function of it"
    [lines."Algorithm 1"]              # line or lines -> likewise, whose source names "l. 7" or "l. 7-8"
    mark = "l."                        # how the source names a line; "2: l." for Algorithm 2 of a file of two
    "4-8" = "pixels.surgery:prepare"

A function may be "module:Class.method"; several are given as a list, which together name it.
"""

import functools
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHOLE = {  # what each paper's index speaks of
    "spdinv": {"equations": range(1, 5), "Algorithm 1": range(1, 7)},
    "svdiff": {"equations": range(1, 8)},
    "lipschitz_personalize": {"equations": [2]},
    "pixels": {"equations": range(1, 11), "Algorithm 1": range(1, 21), "Algorithm 2": range(1, 26)},
    "image_inpaint": {"equations": range(1, 8)},
}


def index(paper: str) -> dict:
    return tomllib.loads((ROOT / paper / "reproduction" / "equations.toml").read_text(encoding="utf-8"))


def source_of(name: str) -> str:
    """The source of "module:function"; of a whole module where no function is named."""
    module, _, path = name.partition(":")
    thing = importlib.import_module(module)
    return inspect.getsource(functools.reduce(getattr, path.split("."), thing) if path else thing)


def numbers(text: str) -> set[int]:
    """ "4-8, 10" -> {4, 5, 6, 7, 8, 10}."""
    found: set[int] = set()
    for first, last in re.findall(r"(\d+)(?:\s*(?:-|to|–)\s*(\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def named(source: str, mark: str) -> set[int]:
    """The numbers that a source names after a mark: "l. 9-10", "l. 7, l. 13", "Eq. 2 to 4"."""
    before = r"(?<!2: )" if mark == "l." else r"(?<!\w)"
    pattern = before + re.escape(mark) + r"\s*(\d+(?:\s*(?:-|to|–|,| and)\s*\d+)*)"
    return {number for text in re.findall(pattern, source) for number in numbers(text)}


def problems(paper: str) -> list[str]:
    """What is wrong with a paper's index: functions that are gone, or do not name what they are said to be."""
    found, tables = [], index(paper)
    asked = [("Eq.", key, value) for key, value in tables.get("equations", {}).items()]
    for table in tables.get("lines", {}).values():
        asked += [(table["mark"], key, value) for key, value in table.items() if key != "mark"]
    for mark, key, value in asked:
        names = [value] if isinstance(value, str) else value
        if names[0].startswith("none: "):
            continue
        try:
            said = set().union(*(named(source_of(name), mark) for name in names))
        except (ImportError, AttributeError, TypeError, OSError) as problem:
            found.append(f"{paper}, {mark} {key}: {', '.join(names)} is gone ({problem})")
            continue
        if missing := sorted(numbers(key) - said):
            found.append(f"{paper}: {', '.join(names)} does not name {mark} {missing}")
    return found


def covered(paper: str) -> dict[str, set[int]]:
    """Table -> the numbers that its index speaks of; "equations" among them."""
    tables = index(paper)
    found = {name: set().union(*(numbers(key) for key in table if key != "mark"))
             for name, table in tables.get("lines", {}).items()}  # fmt: skip
    return {**found, "equations": {number for key in tables.get("equations", {}) for number in numbers(key)}}


@pytest.mark.parametrize("paper", WHOLE)
def test_every_equation_and_line_has_a_function_that_names_it(paper):
    assert problems(paper) == []
    found = covered(paper)
    assert {name: found[name] for name in WHOLE[paper]} == {name: set(lines) for name, lines in WHOLE[paper].items()}


def test_the_algorithm_without_line_numbers_is_indexed_by_its_statements():
    found = index("lipschitz_personalize")["lines"]
    assert set(found) == {"Algorithm 1", "Theorems", "Figures"}
    assert all(isinstance(value, str) or len(value) == 3 for value in found["Algorithm 1"].values())


def test_the_reader_tells_the_algorithms_apart():
    text = "a  # l. 9-10; 2: l. 12-14\nb  # l. 7, l. 13 \n# Eq. 2 to 4"
    assert named(text, "l.") == {7, 9, 10, 13}
    assert named(text, "2: l.") == {12, 13, 14} and named(text, "Eq.") == {2, 3, 4}
