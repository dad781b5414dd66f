"""The plots of a track, of which plots.svg.j2 makes SVG: one score against another, methods as points; and every method
less the baseline, score by score, as strips of intervals."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.report.boards import SHOWN, columns_of, contestants, own_methods, papers_own
from eval.report.measures import Interval, Measure, difference, find, mean_interval, measure
from eval.tracks.track import Run, Track

AXES = 4  # scores to choose from where the track names no pairs
FAMILIES = 6  # colours of the style sheet
WIDTH, HEIGHT = 640, 420  # of a front
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 46  # room for axis numbers and titles
LETTER, LINE = 7.2, 15  # room that a label's letter and line take, generously
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One method. x, y: means with intervals, in printed units. kind: a class of the style sheet."""

    name: str
    x: Interval
    y: Interval
    kind: str = ""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high` in steps, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [self.low + number * self.step for number in range(round((self.high - self.low) / self.step) + 1)]


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
    """One line of a forest: the difference with its interval between -reach and reach, zero in the middle, better to
    the right."""
    text, spread = column.text(gap.mean, signed=True), column.span(gap.low, gap.high, signed=True)
    kind = "unsure" if not gap.excludes_zero else "good" if gap.mean * column.sign > 0 else "bad"
    title = f"{name}: {text} {column.gap_unit}, 95 % interval {spread}, {gap.n} pairs"
    places = (95 * column.sign * value / (reach or 1.0) for value in (gap.low, gap.mean, gap.high))
    svg = shapes().strip(kind, title, *places)
    return {"name": name, "svg": svg, "text": text, "spread": spread, "n": gap.n}


# ----------------------------------------------------------------------------------------------------------- drawings


def front(points: Sequence[Point], titles: tuple[str, str], curves: dict[str, list[Point]] | None = None) -> Markup:
    """Methods as labelled points with intervals, one score against another; at least one, all means finite.

    titles: of the axes. curves: title -> points that are joined in their order.
    """
    curves = curves or {}
    every = [*points, *(point for curve in curves.values() for point in curve)]
    across = axis([value for p in every for value in ends(p.x)], LEFT, WIDTH - RIGHT)
    up = axis([value for p in every for value in ends(p.y)], HEIGHT - BOTTOM, TOP)
    names, places = [p.name for p in points], [(across.at(p.x.mean), up.at(p.y.mean)) for p in points]
    boxes = label_boxes(names, places)
    labels = [(point, box, lead(box, place)) for point, box, place in zip(points, boxes, places, strict=True)]
    told = f"{titles[1]} against {titles[0]}: {', '.join(names)}"
    return shapes().front(WIDTH, HEIGHT, LINE, told, titles, across, up, curves, points, labels)


def lead(box: Box, place: tuple[float, float]) -> Box | None:
    """The line from a point to the box of its name, where the box is not beside it."""
    left, top, right, bottom = box
    near = (min(max(place[0], left), right), min(max(place[1], top), bottom))
    return (*place, *near) if math.dist(near, place) > 12 else None


def shapes():
    """The macros of plots.svg.j2."""
    return environment().get_template("plots.svg.j2").module


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this folder, in which all text is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    found.filters |= {"px": "{:.1f}".format, "axis_number": axis_number}
    found.tests["finite"] = math.isfinite
    return found


# ----------------------------------------------------------------------------------------------------------- geometry


def ends(found: Interval) -> list[float]:
    return [value for value in (found.mean, found.low, found.high) if math.isfinite(value)]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis over all of the values, in about five steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    fifth = (high - low + 2 * room) / 5
    power = 10 ** math.floor(math.log10(fifth))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= fifth)
    first, last = math.floor((low - room) / step), math.ceil((high + room) / step)
    return Axis(first * step, last * step, step, start, end)


def axis_number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def label_boxes(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[Box]:
    """A box for every name, near its point, inside the frame, clear of all points and of one another."""
    dots = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    taken, found = list(dots), []
    for name, (x, y) in zip(names, places, strict=True):
        width = LETTER * len(name) + 2
        box = next(box for box in candidates(x, y, width) if not any(overlap(box, other) for other in taken))
        taken.append(box)
        found.append(box)
    return found


def candidates(x: float, y: float, width: float):
    """Boxes around a point, near ones first, and in the end any place below one another, which is always free."""
    for ring in range(1, 60):
        reach = 8 * ring
        for turn in range(8 if ring == 1 else 16):
            angle = math.tau * turn / (8 if ring == 1 else 16)
            middle = x + math.cos(angle) * (reach + width / 2), y + math.sin(angle) * (reach + LINE / 2)
            box = (middle[0] - width / 2, middle[1] - LINE / 2, middle[0] + width / 2, middle[1] + LINE / 2)
            if box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - BOTTOM:
                yield box
    for number in range(1000):
        yield LEFT, HEIGHT + number * LINE, LEFT + width, HEIGHT + (number + 1) * LINE


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
