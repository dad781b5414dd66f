"""How a ratio is measured and told: in turn in one run, the median with the least and the most, and whether it meets
its goal."""

import random
import statistics
from collections.abc import Callable, Sequence

from common.runs import measure


def rounds(steps: dict[str, Callable[[int], object]], repeats: int) -> list[dict[str, float]]:
    """A row per round: <name>_seconds and <name>_mb of every step, which take their turns in an order that changes, so
    that a machine which others use as well slows all of them alike. Each is called with the round's number, its seed;
    round 0 warms up and has no row."""
    rows, rng = [], random.Random(0)
    for number in range(repeats + 1):
        row = {}
        for name in rng.sample(list(steps), len(steps)):
            with measure() as cost:
                steps[name](number)
            row |= {f"{name}_seconds": cost.seconds, f"{name}_mb": cost.peak_memory_mb}
        rows.append(row)
    return rows[1:]


def ratios(rows: Sequence[dict[str, float]], one: str, other: str) -> list[float]:
    """Seconds of one step over another's, round by round."""
    return [row[f"{one}_seconds"] / row[f"{other}_seconds"] for row in rows]


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


def same_pictures(what: str, ours: Callable[[int], object], theirs: Callable[[int], object], repeats: int) -> dict:
    """Two ways to the same tensor, ours and diffusers': their rounds, and the largest difference of what they give;
    printed after `what`."""
    gap = (ours(0) - theirs(0)).abs().max().item()
    rows = rounds({"ours": ours, "diffusers": theirs}, repeats)
    found = ratios(rows, "ours", "diffusers")
    print(f"{what}, {repeats} pairs: ours / diffusers' {middle(found, 3)}{against(found, 1.0)}; largest difference "
          f"{gap:.1e}")  # fmt: skip
    return {"rows": rows, "largest_difference": gap}
