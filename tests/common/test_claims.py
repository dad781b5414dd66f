"""The rule book on synthetic rows: verdicts, directions, margins, what decides nothing, tables, the ledger."""

import math

import numpy as np
import pytest

from common import claims
from common.claims import FAILS, HOLDS, INCONCLUSIVE, Interval, judge, verdict
from common.runs import bootstrap_interval, bootstrap_quantiles
from common.tables import by_method, by_subject, score_table, subject_of
from tests.refusing import refuses

CLAIM = {"claim": "a beats b", "place": "Sec. 1", "experiment": "x", "score": "psnr", "method": "a", "baseline": "b",
         "rule": "better"}  # fmt: skip


def rows_of(scores, key="psnr", **more):
    """scores: {method: values}, one item each."""
    return [{"method": method, "item": str(i), "seed": 0, "metrics": {key: value}, **more}
            for method, values in scores.items() for i, value in enumerate(values)]  # fmt: skip


@pytest.mark.parametrize("low, high, margin, expected", [
    (1, 3, None, HOLDS), (-3, -1, None, FAILS), (-1, 1, None, INCONCLUSIVE), (0, 1, None, INCONCLUSIVE),
    (-0.4, 0.9, 0.5, HOLDS), (-0.4, -0.1, 0.5, HOLDS), (-0.6, 0.2, 0.5, INCONCLUSIVE),
    (-0.9, -0.1, 0.5, INCONCLUSIVE),
    (-3.0, -2.0, 0.5, FAILS), (0.1, 0.2, 0.5, HOLDS), (math.nan, math.nan, None, INCONCLUSIVE),
])  # fmt: skip
def test_verdicts_of_both_directions_and_margins(low, high, margin, expected):
    rule = ("better", 0.0) if margin is None else ("no_worse", margin)
    assert verdict(Interval((low + high) / 2, low, high, 40), 1, *rule) == expected
    assert verdict(Interval(-(low + high) / 2, -high, -low, 40), -1, *rule) == expected


def test_fewer_than_eight_independent_items_decide_nothing():
    shown = [verdict(Interval(2, 1, 3, n, **subjects), 1, "better")
             for n, subjects in ((8, {}), (7, {}), (48, {"subjects": 7}))]  # fmt: skip
    assert shown == [HOLDS, INCONCLUSIVE, INCONCLUSIVE]  # the last: pictures of seven trainings


def test_a_claim_is_judged_on_pairs_whatever_encoder_looked():
    base = np.linspace(20, 40, 12)  # spreads more than the methods differ
    rows = rows_of({"a": base + 1 + 0.01 * np.arange(12), "b": base}, "psnr (picturebook)")
    found = judge(CLAIM, rows[::-1])
    assert (found.verdict, found.gap.n, found.key) == (HOLDS, 12, "psnr (picturebook)")
    assert found.gap.mean == pytest.approx(1.055) and found.why == ""
    assert judge(CLAIM | {"better": "lower"}, rows).verdict == FAILS
    assert judge(CLAIM | {"where": {"group": "twins"}}, rows).why == "not run"
    assert judge(CLAIM | {"baseline": 100.0}, rows).verdict == FAILS  # a's own mean against a number
    infinite = rows_of({"a": [*(base[:10] + 1), math.inf, 30], "b": [*base[:11], math.nan]})
    assert judge(CLAIM, infinite).gap.n == 10


def test_methods_are_compared_on_common_items_and_judged_where_all_are_common():
    rows = rows_of({"a": [1.0 + 0.1 * i for i in range(12)], "b": [0.1 * i for i in range(12)]})
    assert judge(CLAIM, rows).verdict == HOLDS
    found = judge(CLAIM, rows[:-1])
    assert (found.verdict, found.gap.n, found.why) == (INCONCLUSIVE, 11, "the two ran on different items")
    assert claims.common_items(rows[:-1], ["a", "b"]) == [*rows[:11], *rows[12:-1]]
    assert claims.common_items(rows, ["a", "nobody"]) == []


def test_curves_that_meet_nowhere_are_not_judged_and_show_no_number():
    rows = rows_of({"a": range(12), "b": range(12)})
    found = judge(CLAIM | {"matched": "psnr"}, rows, lambda *given: Interval(math.nan, math.nan, math.nan, 12))
    assert found.verdict == INCONCLUSIVE and found.why == "there is nothing at which the two can be compared"
    assert "nan" not in " ".join(map(str, claims.table([found])[1]))


def test_nine_pictures_of_one_training_count_as_one_and_the_floor_decides_nothing():
    one_training = rows_of({"a": [1.0] * 9, "b": [0.0] * 9})
    assert judge(CLAIM, one_training).verdict == HOLDS
    found = judge(CLAIM, [{**row, "item": f"cat+dog|{row['item']}"} for row in one_training])
    assert (found.verdict, found.gap.independent) == (INCONCLUSIVE, 1)
    never = rows_of({"a": [0.0] * 9, "b": [0.0] * 9})
    no_worse = CLAIM | {"rule": "no_worse", "margin": 0.1}
    assert judge(no_worse, never).why == "neither scores at all"
    assert judge(no_worse, rows_of({"a": [1.0] * 9, "b": [1.0] * 9})).verdict == HOLDS


@pytest.mark.parametrize("mean, bar, said", [
    (0.05, 0, "about 300 would decide"), (0.01, 0, "about 8000"), (0.0, 0, "as good as equal"),
    (-0.05, 0.1, "about 300"),
])  # fmt: skip
def test_an_open_verdict_tells_how_many_items_would_close_it(mean, bar, said, monkeypatch):
    """At a spread of 0.3: (2.8 standard deviations over the distance from the bar) squared."""
    monkeypatch.setattr(claims, "MANY", 10_000)
    drawn = np.random.default_rng(3).normal(0, 0.3, 60)
    found = claims.interval({(str(i), 0): v for i, v in enumerate(drawn - drawn.mean() + mean)})
    needed = (2.8 * drawn.std(ddof=1) / (mean + bar)) ** 2 if mean + bar else math.inf
    assert said in claims.would_decide(found, mean + bar)
    if math.isfinite(needed):
        assert int(claims.would_decide(found, mean + bar).split()[1]) == pytest.approx(needed, rel=0.35)


def test_few_values_are_covered_as_often_as_many():
    """Normal samples of eight: the plain percentiles cover the mean 89 times of 100, the expanded ones 95."""
    rng, inside = np.random.default_rng(0), 0
    for drawn in rng.normal(0, 1, (1500, 8)):
        picks = drawn[rng.integers(8, size=(400, 8))].mean(axis=1)
        low, high = np.quantile(picks, bootstrap_quantiles(8))
        inside += low < 0 < high
    assert 0.93 < inside / 1500 < 0.97


def test_the_smallest_difference_shown_shrinks_with_n_and_is_shown_four_times_of_five():
    rng = np.random.default_rng(0)

    def shown(n, gap):
        return claims.interval({(str(i), 0): v for i, v in enumerate(rng.normal(gap, 1, n))})

    few, many = shown(25, 0), shown(400, 0)
    assert many.detectable == pytest.approx(few.detectable / 4, rel=0.3)
    assert many.detectable == pytest.approx(2.8 / 20, rel=0.1)  # 2.8 standard errors
    power = np.mean([shown(50, 2.8 / 50**0.5).excludes_zero for _ in range(200)])
    assert 0.7 < power < 0.9


def test_one_entry_stands_for_several_claims():
    listed = CLAIM | {"claim": "a beats {baseline} in {score}", "baseline": ["b", "c"], "score": ["psnr", "ssim"],
                      "place": ["Sec. 1", "Sec. 2"]}  # fmt: skip
    found = claims.expanded(listed)
    assert [one["claim"] for one in found] == [
        "a beats b in psnr", "a beats b in ssim", "a beats c in psnr", "a beats c in ssim"]  # fmt: skip
    assert [one["place"] for one in found] == ["Sec. 1", "Sec. 2"] * 2
    for wrong in ({"rule": "equal"}, {"rule": "no_worse"}, {"margin": 1.0}):
        refuses("rule is better", claims.expanded, CLAIM | wrong)


def test_the_ledger_says_what_was_published_measured_and_lacks():
    few = judge(CLAIM | {"published": "two times"}, rows_of({"a": [1.0, 2.0], "b": [0.0, 0.0]}))
    pair = {"score": "psnr/pie_official", "method": "spd+p2p", "baseline": "ddim+p2p"}
    head, one, other = claims.table([few, judge(CLAIM | pair | {"published": "spdinv:1"}, [])])
    assert one[2] == "two times" and one[4] == "2" and "2 independent items, of 8" in one[5]
    assert other[2] == "17.87 → 28.60" and other[3:6] == ["–", "–", "not run"] and len(head) == len(one)
    assert claims.as_json(few)["n"] == 2 and "two times" in claims.report([few])
    narrow = Interval(0.6, 0.00004, 1.2, 9)  # an end keeps the digits that its verdict needs
    assert claims.measured(narrow) == "+0.6 [+4e−5, +1.2]" and claims.measured(claims.NOTHING) == "–"


@pytest.mark.parametrize("paper", claims.PAPERS)
def test_the_papers_claims_are_complete(paper):
    found = claims.read_claims(paper)
    assert len(found) > 7 and len({(one["claim"], one["score"], str(one["baseline"])) for one in found}) == len(found)
    assert 1 <= sum(one.get("headline", False) for one in found) <= 5
    for one in found:
        assert one["place"] and not one["claim"].startswith("…")
        if one.get("published", "").partition(":")[0] in claims.PAPERS:
            assert claims.published_text(one) != one["published"]


def test_rows_of_one_training_become_one():
    def row(method, item, **values):
        return {"paper": "p", "method": method, "item": item, "seed": 0, "group": "similar", "seconds": 2.0,
                "metrics": values}  # fmt: skip

    rows = [
        row("a", "cat/00", x=1.0, y=5.0), row("a", "cat/01", x=2.0, y=math.nan), row("a", "dog/00", x=5.0, y=None),
        row("a", "bird|1", x=math.inf), row("b", "cat/00", x=7.0), row("a", "cat", x=3.0),
    ]  # fmt: skip
    found = {(one["method"], one["item"]): one for one in by_subject(rows)}
    assert found.keys() == {("a", "cat"), ("a", "dog"), ("a", "bird"), ("b", "cat")}
    assert found["a", "cat"]["metrics"] == {"x": 2.0, "y": 5.0} and found["a", "cat"]["group"] == "similar"
    assert found["a", "dog"]["metrics"] == {"x": 5.0} and found["a", "bird"]["metrics"] == {"x": math.inf}
    assert found["a", "cat"]["seconds"] == 2.0
    summary = by_method(by_subject(rows[:3]))["a"]
    assert summary["x"] == dict(zip(("mean", "low", "high"), bootstrap_interval([1.5, 5.0]), strict=True)) | {"n": 2}
    assert "subjects" in score_table({"a": summary}, "subjects")


@pytest.mark.parametrize("item, subject", [("cat/03", "cat"), ("cat|0", "cat"), ("cat+dog|1", "cat+dog"), ("7", "7")])
def test_whose_picture_it_is(item, subject):
    assert subject_of(item) == subject
