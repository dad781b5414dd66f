"""The papers' claims, tried on result rows by the rules of claims.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from eval.report.measures import Interval, Measure, difference, find, measure
from eval.tracks.personalization.matched import matched_difference

CLAIMS = Path(__file__).parent / "claims.toml"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot say"


@dataclass(frozen=True)
class Finding:
    """A claim and what the rows say about it. difference: method minus baseline, in stored units."""

    claim: dict
    measure: Measure
    difference: Interval
    verdict: str


def read_claims(track: str) -> tuple[list[dict], int]:
    """The claims of one track and the least number of pairs that may decide one."""
    table = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    return [claim for claim in table["claim"] if claim["track"] == track], table["least_pairs"]


def verdict(gap: Interval, sign: int, rule: str, margin: float = 0.0, least_pairs: int = 1) -> str:
    """Judge a paired difference. sign: +1 where more is better, -1 where less is; margin in the units of `gap`."""
    if gap.independent < least_pairs:
        return UNDECIDED
    low, high = sorted((gap.low * sign, gap.high * sign))  # from here on, up is good
    if rule == "no_worse" and low > -margin:
        return HOLDS
    if rule == "better" and low > 0:
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


def findings(track: str, rows: list[dict]) -> list[Finding]:
    """Every claim of the track against these rows; a score that no row has gives "cannot say" with n = 0."""
    claims, least_pairs = read_claims(track)
    found = []
    for claim in claims:
        column = measure(find(rows, claim["score"]) or claim["score"])
        if "matched" in claim:  # method and baseline are curves
            at = find(rows, claim["matched"]) or claim["matched"]
            gap = matched_difference(rows, column.key, at, claim["method"], claim["baseline"])
        else:
            gap = difference(rows, column.key, claim["method"], claim["baseline"])
        margin = claim.get("margin", 0.0) / column.factor
        found.append(Finding(claim, column, gap, verdict(gap, column.sign, claim["rule"], margin, least_pairs)))
    return found
