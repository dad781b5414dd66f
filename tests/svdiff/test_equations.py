"""Every numbered equation has its function, which names it."""

from tests import equations


def test_every_equation_has_a_function_that_names_it():
    assert equations.problems("svdiff") == []
    assert equations.covered("svdiff")["equations"] == set(range(1, 8))
