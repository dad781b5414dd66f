"""What the plots of a track show: one score against another, and every method less the baseline, score by score."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

from eval.report.boards import SHOWN, columns_of, contestants, own_methods, papers_own
from eval.report.measures import Interval, Measure, difference, find, mean_interval, measure
from eval.report.plots import Point, front, interval_strip
from eval.tracks.track import Run, Track

AXES = 4  # scores to choose from where the track names no pairs
FAMILIES = 6  # colours of the style sheet


def fronts(track: Track, run: Run) -> list[dict[str, Any]]:
    """One score against another, for each pair that the track names, or for pairs of its first scores."""
    named = [tuple(find(run.rows, name) for name in pair) for pair in track.fronts]
    pairs = [(measure(x), measure(y)) for x, y in named if x and y]
    pairs = pairs or list(combinations(columns_of(track, run.rows)[:AXES], 2))
    drawn = []
    for x, y in pairs:
        points = points_of(track, run, own_methods(track, run), x, y)
        curves = {title: points_of(track, run, {m: m for m in methods}, x, y)
                  for title, methods in track.curves.items()}  # fmt: skip
        curves = {title: curve for title, curve in curves.items() if len(curve) > 1}
        if len(points) > 1:
            titles = tuple(", ".join(filter(None, (one.label, one.unit, one.better and f"{one.better} is better")))
                           for one in (x, y))  # fmt: skip
            drawn.append({"title": f"{y.label} against {x.label}", "svg": front(points, titles, curves),
                          "curves": list(curves)})  # fmt: skip
    return drawn


def points_of(track: Track, run: Run, methods: dict[str, str], x: Measure, y: Measure) -> list[Point]:
    """Methods with a finite mean in both scores, in printed units."""
    families = list(dict.fromkeys(track.families.values()))
    own = papers_own(track, run)
    points = []
    for method, name in methods.items():
        means = [(mean_interval(run.rows, column.key, method), column.factor) for column in (x, y)]
        places = [replace(found, mean=found.mean * factor, low=found.low * factor, high=found.high * factor)
                  for found, factor in means]  # fmt: skip
        if all(math.isfinite(place.mean) for place in places):
            family = families.index(track.families[method]) % FAMILIES if method in track.families else 0
            kind = "reference" if method in track.references else f"f{family}" + (" own" if method == own else "")
            points.append(Point(name, *places, kind))
    return points


def forests(track: Track, run: Run) -> list[dict[str, Any]]:
    """For each of the shown scores: every contestant less the baseline, on the items that both have."""
    baseline, *others = [*contestants(track, run)] or [None]
    drawn = []
    for column in [column for column in columns_of(track, run.rows)[:SHOWN] if column.sign]:
        gaps = {method: difference(run.rows, column.key, method, baseline) for method in others}
        gaps = {method: gap for method, gap in gaps.items() if gap.n > 1 and math.isfinite(gap.low + gap.high)}
        reach = max((abs(end) for gap in gaps.values() for end in (gap.low, gap.high)), default=0.0)
        if gaps:
            lines = [strip_line(track.methods[method], column, gap, reach) for method, gap in gaps.items()]
            title = f"{column.label}, less that of {track.methods[baseline]}"
            drawn.append({"title": title, "column": column, "lines": lines})
    return drawn


def strip_line(name: str, column: Measure, gap: Interval, reach: float) -> dict[str, Any]:
    """One line of a forest."""
    text, spread = column.text(gap.mean, signed=True), column.span(gap.low, gap.high, signed=True)
    kind = "unsure" if not gap.excludes_zero else "good" if gap.mean * column.sign > 0 else "bad"
    title = f"{name}: {text} {column.gap_unit}, 95 % interval {spread}, {gap.n} pairs"
    svg = interval_strip(gap, reach, kind, title, column.sign)
    return {"name": name, "svg": svg, "text": text, "spread": spread, "n": gap.n}
