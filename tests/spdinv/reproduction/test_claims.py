"""Verdicts and their table, on synthetic rows."""

import math

import numpy as np
import pytest

from spdinv.reproduction import claims
from spdinv.reproduction.claims import FAILS, HOLDS, UNDECIDED, verdict


@pytest.mark.parametrize("low, high, margin, ruled", [
    (1, 3, None, HOLDS), (-3, -1, None, FAILS), (-1, 1, None, UNDECIDED), (0, 1, None, UNDECIDED),
    (-0.4, 0.2, 0.5, HOLDS), (-0.4, -0.1, 0.5, HOLDS), (-0.6, 0.2, 0.5, UNDECIDED), (-0.9, -0.1, 0.5, FAILS),
    (math.nan, math.nan, None, UNDECIDED),
])  # fmt: skip
def test_verdicts_of_both_directions_and_of_too_few_pairs(low, high, margin, ruled):
    assert verdict(low, high, 8, 1, margin) == verdict(-high, -low, 8, -1, margin) == ruled
    assert verdict(low, high, 7, 1, margin) == UNDECIDED


def make_rows(scores):
    """scores: {method: {key: values}}."""
    return [
        {"method": method, "item": str(i), "metrics": {key: values[i] for key, values in of_method.items()}}
        for method, of_method in scores.items()
        for i in range(12)
    ]


def test_pairs_are_items_that_both_have():
    base = np.linspace(20, 40, 12)
    rows = make_rows({"a": {"psnr": [*(base[:10] + 1), math.inf, 30]}, "b": {"psnr": [*base[:11], math.nan]}})
    gap = claims.compare(rows[::-1], "psnr", "a", "b")
    assert gap == {"mean": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1), "n": 10}
    assert claims.compare(rows, "psnr", "a", "nobody")["n"] == 0


def test_the_own_inversion_meets_every_other_under_its_engine():
    base, success = np.linspace(20, 40, 12), [1.0] * 12
    keys = "psnr/pie_official", "mse/pie_official", "edit_success (picturebook)"
    scores = {
        "ddim+p2p": (base, base, success), "nmg+p2p": (base + 2, base - 2, success), "ddim+pnp": (base, base, success),
        "spd+p2p": (base + 1, base - 1, [0.0] * 12), "spd+p2p@as_released": (base, base + 1, success),
        "spd+p2p@proximal": (base, base, success), "ddim+p2p@as_released": (base, base, success),
        "blended_latents": (base, base, success),
    }  # fmt: skip
    rows = make_rows({method: dict(zip(keys, values, strict=True)) for method, values in scores.items()})
    found = claims.judge(rows, list(scores))
    ruled = {(one["method"], one["baseline"], one["score"][:4]): one["verdict"] for one in found}
    assert ruled == {
        ("spd+p2p", "ddim+p2p", "psnr"): HOLDS, ("spd+p2p", "nmg+p2p", "psnr"): FAILS,
        ("spd+p2p", "ddim+p2p", "mse/"): HOLDS, ("spd+p2p", "nmg+p2p", "mse/"): FAILS,
        ("spd+p2p", "ddim+p2p", "edit"): FAILS, ("spd+p2p", "nmg+p2p", "edit"): FAILS,
        ("spd+p2p@as_released", "ddim+p2p", "psnr"): UNDECIDED, ("spd+p2p@as_released", "nmg+p2p", "psnr"): FAILS,
        ("spd+p2p@as_released", "ddim+p2p", "mse/"): FAILS, ("spd+p2p@as_released", "nmg+p2p", "mse/"): FAILS,
        ("spd+p2p@as_released", "ddim+p2p", "edit"): HOLDS, ("spd+p2p@as_released", "nmg+p2p", "edit"): HOLDS,
    }  # fmt: skip
    table = claims.claims_table(found).splitlines()
    assert len(table) == 2 + 1 + 4 and "no worse by 0.1" in table[2] and "1e+04 does not hold" in table[5]
    assert "No claim" in claims.claims_table(claims.judge(rows, ["ddim+p2p", "nmg+p2p"]))
