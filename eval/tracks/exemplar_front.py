"""Likeness against seams: a paste wins the one and loses the other, so methods are judged by both at once."""

from pathlib import Path

from common.runs import atomic_path
from eval.report.measures import find, mean_interval

LIKENESS, SEAM = "CLIP-I/same_box", "seam"


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The methods, by (seam, likeness), that no other one beats in one of the two without losing in the other; from
    the least seam up."""
    kept = [
        name
        for name, (seam, likeness) in points.items()
        if not any(s <= seam and c >= likeness and (s, c) != (seam, likeness) for s, c in points.values())
    ]
    return sorted(kept, key=points.get)


def draw_front(path: Path, rows: list[dict], methods: dict[str, str]) -> list[str]:
    """The figure as a PNG file at `path`, and who is on the front; neither where fewer than two methods have both
    scores."""
    likeness, seam = find(rows, LIKENESS), find(rows, SEAM)
    present = [name for name in methods if any(row["method"] == name for row in rows)]
    if not likeness or not seam or len(present) < 2:
        return []
    from matplotlib.figure import Figure as Sheet

    found = {name: (mean_interval(rows, seam, name), mean_interval(rows, likeness, name)) for name in present}
    best = front({name: (x.mean, y.mean) for name, (x, y) in found.items()})
    sheet = Sheet((9, 5), layout="constrained")
    axis = sheet.subplots()
    for name, (x, y) in found.items():
        up, along = ([[value.mean - value.low], [value.high - value.mean]] for value in (y, x))
        axis.errorbar(x.mean, y.mean, up, along, fmt="o", lw=1, alpha=0.7)
        axis.annotate(methods[name], (x.mean, y.mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axis.plot(*zip(*((found[name][0].mean, found[name][1].mean) for name in best), strict=True), "k--", lw=1, zorder=0)
    axis.set(xlabel="seam in grey levels, lower is better", ylabel=f"{likeness}, higher is better")
    with atomic_path(path) as temporary:
        sheet.savefig(temporary, dpi=110, format="png")
    return best
