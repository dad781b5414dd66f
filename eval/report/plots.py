"""The page's drawings as inline SVG, coloured by its style sheet: fronts and curves, and strips of intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from eval.report.measures import Interval

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


def front(points: Sequence[Point], titles: tuple[str, str], curves: dict[str, list[Point]] | None = None) -> Markup:
    """Methods as labelled points with intervals, one score against another; at least one, all means finite.

    titles: of the axes. curves: title -> points that are joined in their order.
    """
    curves = curves or {}
    every = [*points, *(point for curve in curves.values() for point in curve)]
    across = axis([value for p in every for value in ends(p.x)], LEFT, WIDTH - RIGHT)
    up = axis([value for p in every for value in ends(p.y)], HEIGHT - BOTTOM, TOP)
    shapes = frame(across, up, titles)
    for number, (title, curve) in enumerate(curves.items()):
        corners = " ".join(f"{across.at(p.x.mean):.1f},{up.at(p.y.mean):.1f}" for p in curve)
        line = Markup('<polyline class="curve u{}" points="{}"><title>{}</title></polyline>')
        shapes += line.format(number, corners, title)
    for point in points:
        shapes += whiskers(point, across, up)
    places = [(across.at(point.x.mean), up.at(point.y.mean)) for point in points]
    for point, (x, y) in zip(points, places, strict=True):
        dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="5"><title>{}: {:.3g}, {:.3g}</title></circle>')
        shapes += dot.format(point.kind, x, y, point.name, point.x.mean, point.y.mean)
    names = [point.name for point in points]
    for point, place, box in zip(points, places, label_boxes(names, places), strict=True):
        shapes += label(point, place, box)
    told = f"{titles[1]} against {titles[0]}: {', '.join(names)}"
    return Markup(
        '<svg class="front" viewBox="0 0 {} {}" role="img" aria-label="{}"><g aria-hidden="true">{}</g></svg>'
    ).format(WIDTH, HEIGHT, told, shapes)


def ends(found: Interval) -> list[float]:
    return [value for value in (found.mean, found.low, found.high) if math.isfinite(value)]


def axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis of round steps over all of the values."""
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    step = round_step(high - low + 2 * room)
    first, last = math.floor((low - room) / step), math.ceil((high + room) / step)
    return Axis(first * step, last * step, step, start, end)


def round_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` in about five."""
    power = 10 ** math.floor(math.log10(span / 5))
    return next(power * unit for unit in (1, 2, 5, 10) if power * unit >= span / 5)


def frame(across: Axis, up: Axis, titles: tuple[str, str]) -> Markup:
    """Grid lines, axis numbers and titles."""
    shapes = Markup()
    for value in across.ticks():
        x = across.at(value)
        shapes += Markup('<line class="grid" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(x, up.end, up.start)
        shapes += text((x - 28, up.start + 4, x + 28, up.start + 4 + LINE), printed(value), "middle")
    for value in up.ticks():
        y = up.at(value)
        line = Markup('<line class="grid" x1="{1}" y1="{0:.1f}" x2="{2}" y2="{0:.1f}"/>')
        shapes += line.format(y, across.start, across.end)
        shapes += text((20, y - LINE / 2, across.start - 4, y + LINE / 2), printed(value), "end")
    shapes += text((across.start, HEIGHT - 20, across.end, HEIGHT - 4), titles[0], "axis middle")
    half = (up.start - up.end) / 2
    turned = Markup('<g transform="translate(9 {:.0f}) rotate(-90)">{}</g>')
    return shapes + turned.format(up.end + half, text((-half, -8, half, 8), titles[1], "axis middle"))


def text(box: Box, words: str, kind: str) -> Markup:
    """Words in a box, with the ground behind them, so that they are read over any line. Not <text>, whose contrast no
    checker can tell."""
    left, top, right, bottom = box
    shape = Markup(
        '<foreignObject x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><p class="{}">{}</p></foreignObject>'
    )
    return shape.format(left, top, right - left, bottom - top, kind, words)


def printed(value: float) -> str:
    return f"{value:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def whiskers(point: Point, across: Axis, up: Axis) -> Markup:
    """Both intervals of a point, where it has them."""
    x, y, shapes = across.at(point.x.mean), up.at(point.y.mean), Markup()
    bar = Markup('<line class="whisker {}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    if math.isfinite(point.x.low + point.x.high):
        shapes += bar.format(point.kind, across.at(point.x.low), y, across.at(point.x.high), y)
    if math.isfinite(point.y.low + point.y.high):
        shapes += bar.format(point.kind, x, up.at(point.y.low), x, up.at(point.y.high))
    return shapes


def label(point: Point, place: tuple[float, float], box: Box) -> Markup:
    """The name in its box, with a line to the point where the box is not beside it."""
    left, top, right, bottom = box
    near = (min(max(place[0], left), right), min(max(place[1], top), bottom))
    shapes = Markup()
    if math.dist(near, place) > 12:
        lead = Markup('<line class="lead" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
        shapes += lead.format(*place, *near)
    return shapes + text(box, point.name, f"name {point.kind}")


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


def interval_strip(gap: Interval, reach: float, kind: str, title: str, sign: int = 1) -> Markup:
    """A difference with its interval on a line from -reach to reach; zero in the middle, better to the right."""
    low, mean, high = (95 * sign * value / (reach or 1.0) for value in (gap.low, gap.mean, gap.high))
    shape = Markup(
        '<svg class="strip {kind}" viewBox="-100 -8 200 16" preserveAspectRatio="none" role="img" aria-label="{title}">'
        '<line class="zero" x1="0" y1="-8" x2="0" y2="8"/>'
        '<line class="range" x1="{low:.1f}" y1="0" x2="{high:.1f}" y2="0"/>'
        '<line class="mean" x1="{mean:.1f}" y1="-5" x2="{mean:.1f}" y2="5"/></svg>'
    )
    return shape.format(kind=kind, title=title, low=low, high=high, mean=mean)
