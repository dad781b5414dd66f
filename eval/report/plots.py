"""Small inline SVG drawings, coloured by the page's style sheet; all text but axis numbers stays in the page's HTML."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from eval.report.measures import Interval

SIDE, LEFT, BOTTOM = 220, 34, 30  # of a scatter plot: outer side, room for axis numbers


def interval_strip(gap: Interval, sign: int, title: str) -> Markup:
    """A difference with its interval on a line of its own scale; zero in the middle, better to the right."""
    reach = max(abs(gap.low), abs(gap.high)) or 1.0
    low, mean, high = (90 * sign * value / reach for value in (gap.low, gap.mean, gap.high))
    kind = "unsure" if not gap.excludes_zero else "good" if mean > 0 else "bad"
    shape = Markup(
        '<svg class="strip {kind}" viewBox="-100 -10 200 20" role="img" aria-label="{title}"><title>{title}</title>'
        '<line class="zero" x1="0" y1="-10" x2="0" y2="10"/>'
        '<line class="range" x1="{low:.1f}" y1="0" x2="{high:.1f}" y2="0"/>'
        '<circle cx="{mean:.1f}" cy="0" r="4"/></svg>'
    )
    return shape.format(kind=kind, title=title, low=low, high=high, mean=mean)


def stacked_bar(parts: Sequence[float], whole: float, title: str) -> Markup:
    """Lengths one after the other; `whole` is the length of a full line."""
    shapes, start = Markup(), 0.0
    for number, part in enumerate(parts):
        length = 200 * part / whole if whole > 0 else 0.0
        shapes += Markup('<rect class="part{}" x="{:.1f}" y="0" width="{:.1f}" height="14"/>').format(
            number, start, length
        )
        start += length
    frame = Markup(
        '<svg class="bar" viewBox="0 0 200 14" preserveAspectRatio="none" role="img" aria-label="{0}">'
        "<title>{0}</title>{1}</svg>"
    )
    return frame.format(title, shapes)


def scatter(points: Sequence[tuple[float, float, str]], title: str) -> Markup:
    """One dot per item, (x, y, name), at least one and all finite; both axes of one scale, with the diagonal."""
    numbers = [value for x, y, _ in points for value in (x, y)]
    step = _round_step((max(numbers) - min(numbers)) or 1.0)
    low, high = math.floor(min(numbers) / step) * step, math.ceil(max(numbers) / step + 1e-9) * step

    def place(x: float, y: float) -> tuple[float, float]:
        room = (SIDE - LEFT - 8, SIDE - BOTTOM - 8)
        return LEFT + room[0] * (x - low) / (high - low), 8 + room[1] * (1 - (y - low) / (high - low))

    (x0, y0), (x1, y1) = place(low, low), place(high, high)
    shapes = Markup('<rect class="frame" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        x0, y1, x1 - x0, y0 - y1
    )
    shapes += Markup('<line class="diagonal" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(x0, y0, x1, y1)
    for number in range(round((high - low) / step) + 1):
        tick = low + number * step
        x, y = place(tick, tick)
        label = f"{tick:g}"
        shapes += Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(x, y0 + 14, label)
        shapes += Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(x0 - 5, y + 4, label)
    for x, y, name in points:
        dot = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}: {:.3g}, {:.3g}</title></circle>')
        shapes += dot.format("above" if y > x else "below", *place(x, y), name, x, y)
    frame = Markup('<svg class="scatter" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>')
    return frame.format(SIDE, title, shapes)


def _round_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides `span` in about four."""
    power = 10 ** math.floor(math.log10(span / 4))
    return next(power * unit for unit in (1, 2, 5, 10) if power * unit >= span / 4)
