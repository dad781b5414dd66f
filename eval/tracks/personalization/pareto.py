"""Fidelity against everything else (Fig. 4's trade-off): one picture of points with intervals and curves."""

import math
from pathlib import Path

from common.runs import atomic_path
from eval.report.measures import find, mean_interval, measure
from eval.tracks.personalization.matched import curve_of
from eval.tracks.personalization.variants import CURVE_TITLES

FIDELITY = "DINO/dreambench"
PANELS = ("context", "CLIP-T/dreambench", "drift_score")
MARKS = "osD^vPX*<>hdp"


def draw_pareto(path: Path, rows: list[dict], methods: dict[str, str]) -> Path | None:
    """Write the picture; None where fewer than two methods have rows."""
    at = find(rows, FIDELITY)
    panels = [key for key in (find(rows, name) for name in PANELS) if key]
    present = [name for name in methods if any(row["method"] == name for row in rows)]
    if at is None or not panels or len(present) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.2 * len(panels), 5.6), squeeze=False)
    colors = pyplot.get_cmap("tab20").colors
    for axis, key in zip(axes[0], panels, strict=True):
        draw_curves(axis, rows, at, key)
        for number, name in enumerate(present):
            x, y = mean_interval(rows, at, name), mean_interval(rows, key, name)
            if not math.isfinite(x.mean + y.mean):
                continue
            axis.errorbar(
                x.mean, y.mean, xerr=whiskers(x), yerr=whiskers(y), fmt=MARKS[number % len(MARKS)], ms=7, lw=1,
                color=colors[number % len(colors)], label=methods[name],
            )  # fmt: skip
        better = {1: "higher is better", -1: "lower is better"}.get(measure(key).sign, "")
        axis.set_xlabel(f"{measure(at).label} ({measure(at).encoder}), fidelity to the subject")
        axis.set_ylabel(f"{measure(key).label} ({measure(key).encoder}), {better}")
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.035 * math.ceil(len(handles) / 5), 1, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    pyplot.close(figure)
    return path


def draw_curves(axis, rows: list[dict], at: str, key: str) -> None:
    """The means along each curve, in the order of its knob."""
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    for number, (style, (name, title)) in enumerate(zip(styles, CURVE_TITLES.items(), strict=True)):
        points = [(mean_interval(rows, at, m).mean, mean_interval(rows, key, m).mean) for _, m in curve_of(rows, name)]
        points = [point for point in points if math.isfinite(sum(point))]
        if len(points) > 1:
            look = {"ls": style, "lw": 1.8, "marker": ".", "color": f"C{number}"}
            axis.plot(*zip(*points, strict=True), label=title, zorder=3, **look)


def whiskers(found) -> list[list[float]] | None:
    if not math.isfinite(found.low + found.high):
        return None
    return [[max(0.0, found.mean - found.low)], [max(0.0, found.high - found.mean)]]
