"""Every numbered equation of the paper and every line of its algorithm has a function that names it."""

from tests import equations


def test_the_index_is_whole_and_right():
    assert equations.problems("spdinv") == []
    assert equations.covered("spdinv") == {"equations": {1, 2, 3, 4}, "Algorithm 1": {1, 2, 3, 4, 5, 6}}
