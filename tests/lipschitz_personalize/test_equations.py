"""Every numbered statement of the paper has its function, which names it."""

from tests import equations


def test_every_statement_has_a_function_that_names_it():
    assert equations.problems("lipschitz_personalize") == []
    covered = equations.index("lipschitz_personalize")
    assert set(covered["equations"]) == {"2"} and set(covered["lines"]) == {"Algorithm 1", "Theorems", "Figures"}
    assert all(isinstance(value, str) or len(value) == 3 for value in covered["lines"]["Algorithm 1"].values())
