"""Every numbered equation and every line of both algorithms has its function, which names it."""

from tests import equations


def test_every_equation_and_line_has_a_function_that_names_it():
    assert equations.problems("pixels") == []
    covered = equations.covered("pixels")
    assert covered["equations"] == set(range(1, 11))
    assert covered["Algorithm 1"] == set(range(1, 21)) and covered["Algorithm 2"] == set(range(1, 26))


def test_the_reader_tells_the_algorithms_apart():
    text = "a  # l. 9-10; 2: l. 12-14\nb  # l. 7, l. 13 \n# Eq. 2 to 4"
    assert equations.named(text, "l.") == {7, 9, 10, 13}
    assert equations.named(text, "2: l.") == {12, 13, 14} and equations.named(text, "Eq.") == {2, 3, 4}
