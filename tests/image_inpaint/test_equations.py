"""Every numbered equation has its function, which names it."""

from tests import equations


def test_every_equation_has_a_function_that_names_it():
    assert equations.problems("image_inpaint") == []
    assert equations.covered("image_inpaint")["equations"] == set(range(1, 8))
