"""How a ratio is told: paired in one run, the median with the least and the most, and whether it meets its goal."""

import statistics
from collections.abc import Sequence


def middle(values: Sequence[float], digits: int = 2) -> str:
    """The median with the least and the most."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def against(values: Sequence[float], goal: float | None, most: bool = True) -> str:
    """ " (goal <= 1.33: missed)", by the median; "" where there is no goal. most: the goal is an upper bound."""
    if goal is None:
        return ""
    found = statistics.median(values)
    met = found <= goal if most else found >= goal
    return f" (goal {'<=' if most else '>='} {goal:g}: {'met' if met else 'missed'})"
