"""The tracks' claims on synthetic rows, and that every claim names what its experiment has."""

import importlib

import pytest

from common.claims import FAILS, HOLDS, INCONCLUSIVE, PAPERS, read_claims
from eval import claims, freshness
from eval.claims import findings
from eval.compare import TRACKS
from eval.report.measures import measure
from eval.tracks import exemplar_editing
from eval.tracks.personalization.variants import CURVES, variants
from tests.eval.conftest import pairs

EVERY = [claim for paper in PAPERS for claim in read_claims(paper)]


def test_a_tracks_claims_are_judged_on_its_rows():
    """One where less is better, and one with a margin of ten points of a score that is stored as 0 or 1."""

    def verdict(key, baseline, method):
        return {found.key: found for found in findings("text_editing", pairs(key, baseline, method))}[key].verdict

    key, base = "lpips/pie_official (picturebook)", [0.1 + 0.01 * i for i in range(12)]
    assert verdict(key, base, [value - 0.02 - 0.001 * i for i, value in enumerate(base)]) == HOLDS
    assert verdict(key, base, [value + 0.02 for value in base]) == FAILS
    key, ones = "edit_success (picturebook)", [1.0] * 200
    assert verdict(key, ones, [0.0] * 4 + ones[4:]) == HOLDS  # two points worse
    assert verdict(key, ones, [0.0] * 100 + ones[100:]) == FAILS
    assert {found.verdict for found in findings("text_editing", [])} == {INCONCLUSIVE}


@pytest.mark.parametrize("claim", EVERY, ids=lambda claim: f"{claim['paper']}-{claim['score']}")
def test_every_claim_names_what_there_is(claim):
    assert claim["experiment"] in freshness.experiments()
    if claim["experiment"] not in TRACKS:
        return
    sign = -1 if claim.get("better") == "lower" else 1
    assert measure(claim["score"]).sign == sign  # known before anything is measured, and told alike in both places
    methods = CURVES if "matched" in claim else importlib.import_module(TRACKS[claim["experiment"]]).METHODS
    if claim["experiment"] == "exemplar_editing":
        methods = {**methods, **exemplar_editing.INPAINTING}  # the picturebook's, which the track adds there
    if claim["experiment"] == "personalization":
        methods = {*methods, *(one.name for one in variants([], list(CURVES)))}  # points of the curves
    if claim["experiment"] != "text_editing":  # whose methods are every inversion under every engine and preset
        assert claim["method"] in methods and claim["baseline"] in methods


def test_the_ledger_counts_what_was_not_run(monkeypatch, capsys):
    monkeypatch.setattr(freshness, "fresh_rows", lambda name: [])
    claims.main(["--papers", "pixels"])
    counted = sum(not claim.get("constructed", False) for claim in read_claims("pixels"))
    assert f"0 holds, 0 does not hold, 0 inconclusive, {counted} not run" in capsys.readouterr().out
