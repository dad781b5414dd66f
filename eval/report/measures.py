"""From result rows to numbers with intervals: what each score is called, how it is printed, which way is better."""

import functools
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.claims import Interval, difference, interval, mean_interval, resampling_weights, values  # noqa: F401
from common.metrics import PIE_SCORES, parse_key
from common.runs import COSTS
from common.tables import find_key

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
    return find_key(keys(rows), name)


def beats(rows: list[dict], key: str, one: str, other: str, least: int) -> bool:
    """Whether a method is better than another by a paired interval of so many items that excludes zero."""
    gap = difference(rows, key, one, other)
    return gap.independent >= least and gap.excludes_zero and gap.mean * measure(key).sign > 0


def best_method(rows: list[dict], key: str, methods: list[str], least: int = 1) -> str | None:
    """The method that beats each of the others, if there is one."""
    winners = [one for one in methods if all(beats(rows, key, one, other, least) for other in methods if other != one)]
    return winners[0] if len(winners) == 1 and len(methods) > 1 else None
