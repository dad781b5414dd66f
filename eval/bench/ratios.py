"""How a ratio is measured and told: in turn in one run, the median with the least and the most, and whether it meets
its goal."""

import statistics
import time
from collections.abc import Callable, Sequence


def in_turn(ours: Callable, theirs: Callable, repeats: int) -> list[dict[str, float]]:
    """Seconds of two ways to the same tensor, and the largest difference of both. Each is called with the number of the
    pair, which is its seed; one row per pair, of which the one before all others warms up."""

    def clocked(draw: Callable, number: int):
        start = time.perf_counter()
        drawn = draw(number).float().cpu()  # waits for a GPU
        return time.perf_counter() - start, drawn

    rows = []
    for number in range(repeats + 1):
        order = (ours, theirs) if number % 2 else (theirs, ours)
        took = {draw: clocked(draw, number) for draw in order}
        gap = (took[ours][1] - took[theirs][1]).abs().max().item()
        rows.append({"ours": took[ours][0], "diffusers": took[theirs][0], "largest_difference": gap})
    return rows[1:]


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
