"""Every numbered equation of the papers and every line of their algorithms has its function, which names it."""

import pytest

from tests import equations

WHOLE = {  # what each paper's index speaks of
    "spdinv": {"equations": range(1, 5), "Algorithm 1": range(1, 7)},
    "svdiff": {"equations": range(1, 8)},
    "lipschitz_personalize": {"equations": [2]},
    "pixels": {"equations": range(1, 11), "Algorithm 1": range(1, 21), "Algorithm 2": range(1, 26)},
    "image_inpaint": {"equations": range(1, 8)},
}


@pytest.mark.parametrize("paper", WHOLE)
def test_every_equation_and_line_has_a_function_that_names_it(paper):
    assert equations.problems(paper) == []
    covered = equations.covered(paper)
    assert {name: covered[name] for name in WHOLE[paper]} == {name: set(lines) for name, lines in WHOLE[paper].items()}


def test_the_algorithm_without_line_numbers_is_indexed_by_its_statements():
    found = equations.index("lipschitz_personalize")["lines"]
    assert set(found) == {"Algorithm 1", "Theorems", "Figures"}
    assert all(isinstance(value, str) or len(value) == 3 for value in found["Algorithm 1"].values())


def test_the_reader_tells_the_algorithms_apart():
    text = "a  # l. 9-10; 2: l. 12-14\nb  # l. 7, l. 13 \n# Eq. 2 to 4"
    assert equations.named(text, "l.") == {7, 9, 10, 13}
    assert equations.named(text, "2: l.") == {12, 13, 14} and equations.named(text, "Eq.") == {2, 3, 4}
