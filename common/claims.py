"""One rule book for every claim of every paper: what is compared with what, and when it holds.

A claim is about the mean paired difference of two methods, method less baseline, in one score, over the items that both
ran on, with its 95 % bootstrap interval over what is independent. It was fixed before the test split was run.

    rule "better"     holds if the whole interval lies on the good side of zero, does not hold if on the bad side
    rule "no_worse"   the same with -margin in the place of zero

Everything else is inconclusive, told with how many items would decide a difference of the size that was seen; so is
what `reason` names. Every verdict comes with the smallest difference that so many items would have shown four times out
of five.

A [[claim]] of <paper>/reproduction/claims.toml has: claim, place (in the paper), experiment (of eval/experiments.toml),
score, method, baseline (a method; or a number that the method's mean is to exceed), rule, and, where they apply, better
= "lower", margin (in the units of the rows), where (fields of its rows, such as {group = "similar"}), matched (a score
at equal values of which two curves are compared), published (what the paper reports, or "paper:table" of published.toml
where it stands), headline (whether the front door shows it), needs (what would decide it, where more items would not),
constructed (it follows from how the methods are made: shown, not counted). score, baseline and place may be lists: one
claim for each, "{baseline}" and "{score}" in the text standing for its own.
"""

import functools
import math
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from common.runs import InputError, bootstrap_interval, bootstrap_quantiles
from common.tables import ROOT, find_key, published_table, subject_of, text_table

PAPERS = ("spdinv", "svdiff", "lipschitz_personalize", "pixels", "image_inpaint")
HOLDS, FAILS, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
LEAST = 8  # independent items that may decide anything
MANY = 5000  # items beyond which a difference is as good as none
POWER = 0.842  # standard errors beyond an interval's half: what is shown four times out of five
RULES = ("better", "no_worse")


# --------------------------------------------------------------------------------------------------------- intervals


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

    @property
    def detectable(self) -> float:
        """The smallest difference that would exclude zero four times out of five, with this n and this spread."""
        half = -NormalDist().inv_cdf(bootstrap_quantiles(self.independent)[0])  # of the interval, in standard errors
        return (self.high - self.low) / 2 * (1 + POWER / half)


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def values(rows: Iterable[dict], key: str, method: str) -> dict[tuple, float]:
    """{(item, seed): score} of one method; NaN where a row lacks it."""
    found = {}
    for row in rows:
        if row["method"] == method:
            value = row["metrics"].get(key, row.get(key))
            found[row["item"], row["seed"]] = math.nan if value is None else float(value)
    return found


def interval(found: dict[tuple, float]) -> Interval:
    """Of {(item, seed): finite number}: the mean with its bootstrap interval. Where pictures share a training, or an
    item has several seeds, subjects are drawn first and then pictures within them, because those of one are alike."""
    subjects = len({subject_of(item) for item, _ in found})
    if subjects == len(found):
        return Interval(*bootstrap_interval(found.values()), len(found))
    means = resampling_weights(tuple(found)) @ np.array(list(found.values()))
    low, high = map(float, np.quantile(means, bootstrap_quantiles(subjects)))
    return Interval(float(np.mean(list(found.values()))), low, high, len(found), subjects)


@functools.cache
def resampling_weights(pairs: tuple[tuple, ...], n: int = 2000, seed: int = 0) -> np.ndarray:
    """[n, pairs]: what share of the mean each (item, seed) has in n resamples of subjects, and of what each has."""
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


def mean_interval(rows: list[dict], key: str, method: str) -> Interval:
    """Over the items of one method that have a number."""
    kept = {pair: value for pair, value in values(rows, key, method).items() if not math.isnan(value)}
    if math.inf in kept.values():  # a PSNR of equal pictures: the mean is infinite, and there is no spread
        return Interval(math.inf, math.nan, math.nan, len(kept))
    return interval(kept)


def difference(rows: list[dict], key: str, method: str, baseline: str | float) -> Interval:
    """method minus baseline, over the items (and seeds) for which both have a finite number; a baseline that is a
    number is taken from every item."""
    a = values(rows, key, method)
    b = values(rows, key, baseline) if isinstance(baseline, str) else dict.fromkeys(a, float(baseline))
    return interval({pair: a[pair] - b[pair] for pair in a if pair in b and math.isfinite(a[pair] - b[pair])})


def common_items(rows: list[dict], methods: Iterable[str]) -> list[dict]:
    """The rows of these methods, of the items (and seeds) that all of them ran on."""
    methods = list(methods)
    own = {method: {(row["item"], row["seed"]) for row in rows if row["method"] == method} for method in methods}
    shared = set.intersection(*own.values()) if own else set()
    return [row for row in rows if row["method"] in own and (row["item"], row["seed"]) in shared]


# ------------------------------------------------------------------------------------------------------------ claims


@dataclass(frozen=True)
class Finding:
    """A claim and what the rows say. key: the score as rows have it. gap: method minus baseline, in the units of the
    rows. why: what an inconclusive verdict lacks, "" otherwise."""

    claim: dict[str, Any]
    key: str
    gap: Interval
    verdict: str
    why: str = ""


@functools.cache
def read_claims(paper: str) -> tuple[dict[str, Any], ...]:
    """The claims of one paper, lists of scores and baselines taken apart."""
    text = (ROOT / paper / "reproduction" / "claims.toml").read_text(encoding="utf-8")
    return tuple(one for claim in tomllib.loads(text)["claim"] for one in expanded(claim | {"paper": paper}))


def expanded(claim: dict[str, Any]) -> list[dict[str, Any]]:
    """One claim for each of its scores and baselines. InputError for a rule or a field that there is not."""
    if claim.get("rule") not in RULES or (claim["rule"] == "no_worse") != ("margin" in claim):
        raise InputError(f"{claim.get('claim')!r}: rule is better, or no_worse with a margin")
    scores, baselines = ([one] if isinstance(one := claim[name], str | float | int) else one
                         for name in ("score", "baseline"))  # fmt: skip
    places = claim["place"] if isinstance(claim["place"], list) else [claim["place"]] * len(scores)
    return [
        claim | {"score": score, "baseline": baseline, "place": place,
                 "claim": claim["claim"].replace("{score}", str(score)).replace("{baseline}", str(baseline))}
        for baseline in baselines for score, place in zip(scores, places, strict=True)
    ]  # fmt: skip


def key_of(rows: Iterable[dict], score: str) -> str:
    """The rows' key of a score that is named without its encoder; the name itself where no row has it."""
    return find_key((key for row in rows for key in row["metrics"]), score) or score


def verdict(gap: Interval, sign: int, rule: str, margin: float = 0.0, least: int = LEAST) -> str:
    """Judge a paired difference. sign: +1 where more is better, -1 where less is; margin in the units of `gap`."""
    if gap.independent < least:
        return INCONCLUSIVE
    low, high = sorted((gap.low * sign, gap.high * sign))  # from here on, up is good
    bar = -margin if rule == "no_worse" else 0.0
    return HOLDS if low > bar else FAILS if high < bar else INCONCLUSIVE


def judge(claim: dict[str, Any], rows: list[dict], matched: Callable[..., Interval] | None = None) -> Finding:
    """Try one claim on rows. matched: (rows, score, at, curve, other) -> the gap of two curves, for claims that compare
    curves; without it these are inconclusive."""
    wanted = claim.get("where", {})
    rows = [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    key, method, baseline = key_of(rows, claim["score"]), claim["method"], claim["baseline"]
    sign = -1 if claim.get("better") == "lower" else 1
    if "matched" in claim:
        at = key_of(rows, claim["matched"])
        gap = matched(rows, key, at, method, baseline) if matched and rows else NOTHING
        unlike = floor = False
    else:
        gap = difference(rows, key, method, baseline)
        scored = [values(rows, key, one) for one in (method, baseline) if isinstance(one, str)]
        unlike = scored[0].keys() != scored[-1].keys()
        floor = len(scored) > 1 and sign > 0 and not any(v for one in scored for v in one.values() if v == v)
    why = reason(gap, unlike, floor)
    found = INCONCLUSIVE if why else verdict(gap, sign, claim["rule"], claim.get("margin", 0.0))
    if found == INCONCLUSIVE and not why:
        needs = claim.get("needs")
        why = f"takes {needs}" if needs else would_decide(gap, gap.mean * sign + claim.get("margin", 0.0))
    return Finding(claim, key, gap, found, why)


def would_decide(gap: Interval, distance: float) -> str:
    """How many independent items would decide, four times out of five, at the spread and the distance from the bar that
    were seen."""
    if abs(distance) * MANY**0.5 < gap.detectable * gap.independent**0.5:
        return "the two are as good as equal"
    needed = round(gap.independent * max(1.1, gap.detectable / abs(distance)) ** 2)
    return f"about {round(needed, 1 - len(str(needed)))} would decide"


def reason(gap: Interval, unlike: bool, floor: bool) -> str:
    """Why rows cannot decide, whatever their interval; "" if they can. floor: neither of the two ever scores."""
    if not gap.n:
        return "not run"
    if gap.independent < LEAST:
        return f"{gap.independent} independent items, of {LEAST} that it takes"
    if unlike:
        return "the two ran on different items"
    if math.isnan(gap.mean):
        return "there is nothing at which the two can be compared"
    return "neither scores at all" if floor else ""


# ------------------------------------------------------------------------------------------------------------ ledger


def number(value: float) -> str:
    """Three significant digits, so that an end of an interval is never rounded onto zero."""
    return f"{value:+.3g}".replace("-", "−").replace("e−0", "e−")


def measured(gap: Interval) -> str:
    """Mean and interval in the units of the rows, "–" where nothing was run."""
    if not gap.n or math.isnan(gap.mean):
        return "–"
    return f"{number(gap.mean)} [{number(gap.low)}, {number(gap.high)}]"


def published_text(claim: dict[str, Any]) -> str:
    """What the paper reports: "baseline → method" of a table of published.toml, or the claim's own words."""
    said = str(claim.get("published", "–"))
    paper, _, name = said.partition(":")
    if paper not in PAPERS:
        return said
    printed = published_table(paper, name)
    column = printed["columns"].index(claim["score"].partition("/")[0])
    rows = {row.get("method"): row["values"][column] for row in reversed(printed["rows"])}  # of several the first
    pair = [rows[claim[side]] for side in ("baseline", "method")]
    digits = max(len(f"{row['values'][column]!r}".partition(".")[2]) for row in printed["rows"])
    return " → ".join(f"{value:.{digits}f}" for value in pair)


def counted(gap: Interval) -> str:
    """How many items stand behind a number, and how many of them are independent."""
    if not gap.n:
        return "–"
    return str(gap.n) if gap.subjects is None else f"{gap.n} of {gap.subjects} subjects"


def table(found: Iterable[Finding]) -> list[list[str]]:
    """Head and lines of the ledger: claim, place, published, measured, n, verdict, smallest difference to be seen."""
    lines = [["claim", "place", "published", "measured [95 % interval]", "n", "verdict", "smallest difference shown"]]
    for one in found:
        said = one.verdict + (f" ({one.why})" if one.why and one.gap.n else "")
        seen = f"{one.gap.detectable:.2g}" if one.gap.n > 1 and math.isfinite(one.gap.detectable) else "–"
        what = one.claim["claim"] + f" ({one.claim['score']})" * (one.claim["score"] not in one.claim["claim"])
        what += " (by construction)" * one.claim.get("constructed", False)
        lines.append([what, one.claim["place"], published_text(one.claim), measured(one.gap),
                      counted(one.gap), said if one.gap.n else "not run", seen])  # fmt: skip
    return lines


def as_json(one: Finding) -> dict[str, Any]:
    """For results.json."""
    named = {name: one.claim[name] for name in ("claim", "place", "method", "baseline")}
    gap = {name: getattr(one.gap, name) for name in ("mean", "low", "high", "n", "detectable")}
    return {**named, "score": one.key, **gap, "verdict": one.verdict, "why": one.why}


def tried(paper: str, rows: list[dict], experiment: str | None = None) -> list[Finding]:
    """The claims of a paper whose two methods both ran, tried on rows at hand. experiment: only claims of this one."""
    ran = {row["method"] for row in rows}
    return [
        judge(claim, rows) for claim in read_claims(paper)
        if "matched" not in claim and claim["method"] in ran
        and (claim["baseline"] in ran or not isinstance(claim["baseline"], str))
        and experiment in (None, claim["experiment"])
    ]  # fmt: skip


def report(found: list[Finding]) -> str:
    """The table of an evaluation's end; one sentence where it touches no claim."""
    if not found:
        return "No claim to judge: that takes both methods of one (reproduction/claims.toml)."
    return text_table(table(found))
