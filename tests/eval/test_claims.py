"""The tracks' claims on synthetic rows, and that every claim names what its experiment has."""

import importlib
import math

import pytest

from common.claims import FAILS, HOLDS, INCONCLUSIVE, PAPERS, read_claims
from eval import claims, freshness
from eval.claims import findings
from eval.compare import TRACKS
from eval.report.measures import measure
from eval.tracks.personalization.variants import CURVES, variants
from tests.eval.conftest import pairs

EVERY = [claim for paper in PAPERS for claim in read_claims(paper)]


def verdicts(rows):
    return {found.key: (found.verdict, found.gap.n) for found in findings("text_editing", rows)}


def test_findings_pair_the_items_and_drop_what_one_side_lacks():
    key, base = "lpips/pie_official (picturebook)", [0.1 + 0.01 * i for i in range(12)]
    lower, higher = [value - 0.02 - 0.001 * i for i, value in enumerate(base)], [value + 0.02 for value in base]
    assert verdicts(pairs(key, base, lower))[key] == (HOLDS, 12)  # less than the spread over items, yet paired
    assert verdicts(pairs(key, base, higher))[key] == (FAILS, 12)
    assert verdicts(pairs(key, base, [*lower[:6], *higher[6:]]))[key][0] == INCONCLUSIVE
    assert verdicts(pairs(key, base, [math.nan] * 3 + lower[3:]))[key] == (HOLDS, 9)
    assert verdicts(pairs(key, base, [math.nan] * 5 + lower[5:]))[key] == (INCONCLUSIVE, 7)
    assert verdicts(pairs(key, base, lower)[3:])[key] == (INCONCLUSIVE, 9)  # three rows of the baseline are missing
    assert verdicts([])["lpips/pie_official"] == (INCONCLUSIVE, 0)


def test_margins_of_a_track():
    key = "edit_success (picturebook)"  # stored 0 or 1, printed in %
    ones = [1.0] * 200
    assert verdicts(pairs(key, ones, [0.0] * 4 + ones[4:]))[key][0] == HOLDS  # 2 points worse, allowed are 10
    assert verdicts(pairs(key, ones, [0.0] * 100 + ones[100:]))[key][0] == FAILS


@pytest.mark.parametrize("claim", EVERY, ids=lambda claim: f"{claim['paper']}-{claim['score']}")
def test_every_claim_names_what_there_is(claim):
    assert claim["experiment"] in freshness.experiments()
    if claim["experiment"] not in TRACKS:
        return
    sign = -1 if claim.get("better") == "lower" else 1
    assert measure(claim["score"]).sign == sign  # known before anything is measured, and told alike in both places
    methods = CURVES if "matched" in claim else importlib.import_module(TRACKS[claim["experiment"]]).METHODS
    if claim["experiment"] == "personalization":
        methods = {*methods, *(one.name for one in variants([], list(CURVES)))}  # points of the curves
    if claim["experiment"] != "text_editing":  # whose methods are every inversion under every engine and preset
        assert claim["method"] in methods and claim["baseline"] in methods


def test_the_ledger_counts_what_was_not_run(monkeypatch, capsys):
    monkeypatch.setattr(freshness, "fresh_rows", lambda name: [])
    claims.main(["--papers", "pixels"])
    assert f"0 holds, 0 does not hold, 0 inconclusive, {len(read_claims('pixels'))} not run" in capsys.readouterr().out
