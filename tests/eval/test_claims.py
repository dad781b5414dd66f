"""Verdicts on synthetic rows: the three outcomes, both directions, margins, too few pairs; what is fixed beforehand."""

import importlib
import math
import tomllib

import pytest

from eval import claims
from eval.claims import FAILS, HOLDS, UNDECIDED, findings, verdict
from eval.compare import TRACKS
from eval.report.boards import published_table
from eval.report.measures import Interval, measure
from eval.tracks.personalization.variants import CURVES, variants
from tests.eval.conftest import pairs

CLAIMS = tomllib.loads(claims.CLAIMS.read_text())
UP, DOWN, ROUND_ZERO = Interval(2, 1, 3, 40), Interval(-2, -3, -1, 40), Interval(0.1, -1, 1.2, 40)


@pytest.mark.parametrize("gap, sign, expected", [
    (UP, 1, HOLDS), (DOWN, 1, FAILS), (ROUND_ZERO, 1, UNDECIDED),
    (UP, -1, FAILS), (DOWN, -1, HOLDS), (ROUND_ZERO, -1, UNDECIDED),
    (Interval(1, 0, 2, 40), 1, UNDECIDED), (Interval(math.nan, math.nan, math.nan, 0), 1, UNDECIDED),
])  # fmt: skip
def test_better(gap, sign, expected):
    assert verdict(gap, sign, "better") == expected


@pytest.mark.parametrize("low, high, expected", [
    (-0.4, 0.9, HOLDS), (-0.4, -0.1, HOLDS), (-0.6, 0.2, UNDECIDED), (-0.9, -0.1, FAILS), (-3.0, -2.0, FAILS),
    (0.1, 0.2, HOLDS),
])  # fmt: skip
def test_no_worse_allows_the_margin_and_no_more(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high, 40), 1, "no_worse", margin=0.5) == expected
    assert verdict(Interval(-(low + high) / 2, -high, -low, 40), -1, "no_worse", margin=0.5) == expected


def test_too_few_pairs_decide_nothing():
    assert verdict(Interval(2, 1, 3, 7), 1, "better", least_pairs=8) == UNDECIDED
    assert verdict(Interval(2, 1, 3, 8), 1, "better", least_pairs=8) == HOLDS
    assert verdict(Interval(2, 1, 3, 48, subjects=7), 1, "better", least_pairs=8) == UNDECIDED  # seven trainings


def verdicts(rows):
    return {found.measure.key: (found.verdict, found.difference.n) for found in findings("text_editing", rows)}


def test_findings_pair_the_items_and_drop_what_one_side_lacks():
    key, base = "lpips/pie_official (picturebook)", [0.1 + 0.01 * i for i in range(12)]
    lower, higher = [value - 0.02 - 0.001 * i for i, value in enumerate(base)], [value + 0.02 for value in base]
    assert verdicts(pairs(key, base, lower))[key] == (HOLDS, 12)  # less than the spread over items, yet paired
    assert verdicts(pairs(key, base, higher))[key] == (FAILS, 12)
    assert verdicts(pairs(key, base, [*lower[:6], *higher[6:]]))[key][0] == UNDECIDED
    assert verdicts(pairs(key, base, [math.nan] * 3 + lower[3:]))[key] == (HOLDS, 9)
    assert verdicts(pairs(key, base, [math.nan] * 5 + lower[5:]))[key] == (UNDECIDED, 7)
    assert verdicts(pairs(key, base, lower)[3:])[key] == (HOLDS, 9)  # three rows of the baseline are missing
    assert verdicts([])["lpips/pie_official"] == (UNDECIDED, 0)


def test_margins_are_in_printed_units():
    key = "edit_success (picturebook)"  # stored 0 or 1, printed in %
    ones = [1.0] * 200
    assert verdicts(pairs(key, ones, [0.0] * 4 + ones[4:]))[key][0] == HOLDS  # 2 points worse, allowed are 10
    assert verdicts(pairs(key, ones, [0.0] * 100 + ones[100:]))[key][0] == FAILS


@pytest.mark.parametrize("claim", CLAIMS["claim"], ids=lambda claim: claim["score"])
def test_every_claim_is_complete(claim):
    assert claim["rule"] in ("better", "no_worse") and (claim["rule"] == "no_worse") == ("margin" in claim)
    assert measure(claim["score"]).sign != 0  # its direction is known before anything is measured
    methods = CURVES if "matched" in claim else importlib.import_module(TRACKS[claim["track"]]).METHODS
    if claim["track"] == "personalization":
        methods = {*methods, *(one.name for one in variants([], list(CURVES)))}  # points of the curves
    assert claim["method"] in methods and claim["baseline"] in methods
    if "published" in claim:
        table = published_table(claim["published"])
        assert claim["score"].split("/")[0] in table["columns"]
        assert {claim["method"], claim["baseline"]} <= {row.get("method") for row in table["rows"]}
