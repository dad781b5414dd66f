"""Two methods at the same fidelity: the gap between their curves, so that none wins by merely training less.

Each curve is a method with one knob turned (variants.CURVES): its points are means over subjects and seeds, ordered by
fidelity and joined by straight lines. The gap is the difference of another score, averaged over the fidelities that
both curves reach. Its interval comes from resampling subjects, and seeds within them, for all points of both curves
together.
"""

import math

import numpy as np

from common.claims import Interval, resampling_weights, values
from common.runs import bootstrap_quantiles

PLACES = 51  # fidelities at which two curves are compared


def curve_of(rows: list[dict], name: str) -> list[tuple[float, str]]:
    """(factor, method) of a curve's points, by factor; rows tell in "curves" which curves they are points of."""
    found = {row["method"]: row["curves"][name] for row in rows if name in row.get("curves", {})}
    return sorted((factor, method) for method, factor in found.items())


def matched_difference(rows: list[dict], key: str, at: str, curve: str, other: str) -> Interval:
    """`curve` minus `other` in score `key` at equal `at` (both are keys of result rows).

    Over the (subject, seed) pairs that all points of both curves have. NaN where the curves have no fidelity in common;
    the interval is NaN where that is so in one resample of twenty.
    """
    points = [[method for _, method in curve_of(rows, name)] for name in (curve, other)]
    tables = [[(values(rows, at, m), values(rows, key, m)) for m in methods] for methods in points]
    every = [table for pair in tables for point in pair for table in point]
    pairs = [p for p in (every[0] if every else {}) if all(math.isfinite(table.get(p, math.nan)) for table in every)]
    if min(map(len, points)) < 2 or not pairs:
        return Interval(math.nan, math.nan, math.nan, 0)
    arrays = [np.array([[[table[p] for p in pairs] for table in point] for point in curve_]) for curve_ in tables]
    mean = gap(*(array.mean(axis=2) for array in arrays))
    resamples = [gap(*(array @ weights for array in arrays)) for weights in resampling_weights(tuple(pairs))]
    kept = [value for value in resamples if not math.isnan(value)]
    if len(kept) < 0.95 * len(resamples):
        return Interval(mean, math.nan, math.nan, len(pairs))
    subjects = len({subject for subject, _ in pairs})
    low, high = np.quantile(kept, bootstrap_quantiles(subjects))
    return Interval(mean, float(low), float(high), len(pairs), subjects)


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Mean vertical distance of two curves [points, (fidelity, score)] over the fidelities that both reach."""
    low = max(ours[:, 0].min(), theirs[:, 0].min())
    high = min(ours[:, 0].max(), theirs[:, 0].max())
    if not low < high:
        return math.nan
    places = np.linspace(low, high, PLACES)
    a, b = (np.interp(places, *curve[np.argsort(curve[:, 0], kind="stable")].T) for curve in (ours, theirs))
    return float((a - b).mean())
