"""From result rows to numbers with intervals: what each score is called, how it is printed, which way is better."""

import functools
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.metrics import PIE_SCORES, parse_key
from common.runs import COSTS, bootstrap_interval
from common.tables import subject_of

DEFINITIONS = Path(__file__).parent / "measures.toml"
GROUPS = {
    "edit": "The edit", "kept": "The rest of the picture", "inversion": "The way back", "subject": "The subject",
    "prompt": "The prompt", "drift": "The rest of the model", "cost": "Cost", "": "More",
}  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One column. key: as in result rows. factor: printed value over stored value. better: "higher", "lower" or ""."""

    key: str
    label: str
    unit: str = ""
    factor: float = 1.0
    digits: int = 3
    better: str = ""
    group: str = ""
    definition: str = ""
    encoder: str = ""
    protocol: str = ""

    @property
    def sign(self) -> int:
        """+1 where more is better, -1 where less is, 0 where neither."""
        return {"higher": 1, "lower": -1}.get(self.better, 0)

    @property
    def gap_unit(self) -> str:
        """The unit of a difference: one of two percentages is in points."""
        return "points" if self.unit == "%" else self.unit

    def text(self, value: float, signed: bool = False) -> str:
        """The printed number, with a true minus sign; "–" for NaN."""
        value = float("nan") if value is None else value * self.factor
        if not math.isfinite(value):
            return "–" if math.isnan(value) else f"{'−' if value < 0 else ''}∞"
        text = f"{round(value, self.digits) + 0.0:{'+' if signed else ''},.{self.digits}f}"  # + 0.0: no minus zero
        return text.replace("-", "−").replace(",", "\u202f")  # thin space between thousands

    def span(self, low: float, high: float, signed: bool = False) -> str:
        """An interval in words: "4.5–5.1", or with "to" where a dash could be read as a minus."""
        dash = " to " if signed or low < 0 else "–"
        return self.text(low, signed) + dash + self.text(high, signed)


@functools.cache
def _definitions() -> dict[str, dict]:
    return tomllib.loads(DEFINITIONS.read_text(encoding="utf-8"))


def measure(key: str) -> Measure:
    """The column of a row's score; one that measures.toml does not know is shown under its own name."""
    parts = parse_key(key)
    own = _definitions().get(f"{parts['name']}/{parts['protocol']}")  # a score may mean something else in a protocol
    known = own or _definitions().get(parts["name"], {"label": parts["name"]})
    if parts["protocol"]:
        known = {"factor": PIE_SCORES.get(parts["name"], ("", 1.0))[1], **known}
    where = {name: parts[name] for name in ("encoder", "protocol")}
    return Measure(key, **known, **where)


def keys(rows: Iterable[dict]) -> list[str]:
    """Every score and cost of the rows, in order of appearance."""
    rows = list(rows)
    costs = [cost for cost in COSTS if any(cost in row for row in rows)]
    return list(dict.fromkeys(key for row in rows for key in row["metrics"])) + costs


def find(rows: Iterable[dict], name: str) -> str | None:
    """The rows' key of a score given without its encoder: "clip_whole/pie_official" -> "… (picturebook)"."""
    wanted = parse_key(name)
    for key in keys(rows):
        if all(parse_key(key)[part] == wanted[part] for part in ("name", "protocol")):
            return key
    return None


def values(rows: Iterable[dict], key: str, method: str) -> dict[tuple, float]:
    """{(item, seed): score} of one method; NaN where a row lacks it."""
    found = {}
    for row in rows:
        if row["method"] == method:
            value = row["metrics"].get(key, row.get(key))
            found[row["item"], row["seed"]] = math.nan if value is None else float(value)
    return found


@dataclass(frozen=True)
class Interval:
    """Mean with its 95 % bootstrap interval over items, and how many of them had a value. subjects: how many of these
    say something of their own, where pictures share a training or runs an item; None for all."""

    mean: float
    low: float
    high: float
    n: int
    subjects: int | None = None

    @property
    def independent(self) -> int:
        return self.n if self.subjects is None else self.subjects

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(found: dict[tuple, float]) -> Interval:
    """Of {(item, seed): finite number}: the mean with its bootstrap interval. Where a subject has several pictures, or
    an item several seeds, subjects are drawn first and then pictures within them, because those of one are alike."""
    subjects = len({subject_of(item) for item, _ in found})
    if subjects == len(found):
        return Interval(*bootstrap_interval(found.values()), len(found))
    means = resampling_weights(list(found)) @ np.array(list(found.values()))
    return Interval(float(np.mean(list(found.values()))), *map(float, np.quantile(means, (0.025, 0.975))), len(found),
                    subjects)  # fmt: skip


@functools.cache
def _resampling_weights(pairs: tuple[tuple, ...], n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for place, (item, _) in enumerate(pairs):
        groups.setdefault(subject_of(item), []).append(place)
    sizes = np.array([len(members) for members in groups.values()])
    table = np.array([members + [0] * (sizes.max() - len(members)) for members in groups.values()])
    drawn = rng.integers(len(sizes), size=(n, len(sizes)))  # subjects, and for each as many pictures as it has
    rows, weights = np.arange(n)[:, None], np.zeros((n, len(pairs)))
    for number in range(sizes.max()):
        seeds = (rng.random(drawn.shape) * sizes[drawn]).astype(int)
        np.add.at(weights, (rows, table[drawn, seeds]), number < sizes[drawn])
    return weights / weights.sum(axis=1, keepdims=True)


def resampling_weights(pairs: list[tuple], n: int = 2000, seed: int = 0) -> np.ndarray:
    """[n, pairs]: what share of the mean each (item, seed) has in n resamples of subjects, and of what each has."""
    return _resampling_weights(tuple(pairs), n, seed)


def mean_interval(rows: list[dict], key: str, method: str) -> Interval:
    """Over the items of one method that have a number."""
    kept = {pair: value for pair, value in values(rows, key, method).items() if not math.isnan(value)}
    if math.inf in kept.values():  # a PSNR of equal pictures: the mean is infinite, and there is no spread
        return Interval(math.inf, math.nan, math.nan, len(kept))
    return interval(kept)


def difference(rows: list[dict], key: str, method: str, baseline: str) -> Interval:
    """method minus baseline, over the items (and seeds) for which both have a finite number."""
    a, b = values(rows, key, method), values(rows, key, baseline)
    return interval({pair: a[pair] - b[pair] for pair in a if pair in b and math.isfinite(a[pair] - b[pair])})


def best_method(rows: list[dict], key: str, methods: list[str], least: int = 1) -> str | None:
    """The method that beats each of the others with a paired interval that excludes zero, if there is one."""
    sign = measure(key).sign

    def beats(one: str, other: str) -> bool:
        gap = difference(rows, key, one, other)
        return gap.independent >= least and gap.excludes_zero and gap.mean * sign > 0

    winners = [one for one in methods if all(beats(one, other) for other in methods if other != one)]
    return winners[0] if len(winners) == 1 and len(methods) > 1 else None
