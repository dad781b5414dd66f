"""Numbers as they are printed, and best values."""

import math

import numpy as np
import pytest

from eval.report.measures import best_method, find, keys, measure
from tests.eval.conftest import METHODS, make_row, pairs


@pytest.mark.parametrize("key, value, signed, text", [
    ("psnr/pie_official", 28.649, False, "28.6"),
    ("lpips/pie_official (picturebook)", 0.03601, False, "36.0"),
    ("lpips/pie_corrected (picturebook)", -0.03601, True, "−36.0"),
    ("edit_success (picturebook)", 0.625, False, "62"),
    ("psnr_truth", -0.01, True, "+0.0"),
    ("psnr_truth", math.nan, False, "–"),
    ("psnr_truth", None, False, "–"),
    ("psnr_truth", math.inf, False, "∞"),
    ("inversion_forward", 1250.0, False, "1\u202f250"),
    ("never_heard_of", 0.12345, False, "0.123"),
])  # fmt: skip
def test_text(key, value, signed, text):
    assert measure(key).text(value, signed) == text


def test_a_measure_knows_direction_encoder_and_protocol():
    column = measure("lpips/pie_official (picturebook)")
    assert (column.sign, column.encoder, column.protocol, column.factor) == (-1, "picturebook", "pie_official", 1e3)
    assert measure("lpips/pie_official").encoder == "squeeze"  # the prescribed one
    assert measure("edit_success (picturebook)").gap_unit == "points"
    assert measure("clip_source/pie_official").sign == measure("never_heard_of").sign == 0


def test_find_ignores_the_encoder_but_not_the_protocol():
    rows = [make_row("a", "0", {"psnr/pie_corrected": 1, "lpips/pie_official (picturebook)": 2})]
    assert find(rows, "lpips/pie_official") == "lpips/pie_official (picturebook)"
    assert find(rows, "psnr/pie_official") is None and find(rows, "seconds") == "seconds"
    assert keys(rows)[-3:] == ["inversion_seconds", "seconds", "peak_memory_mb"]


def test_a_best_value_needs_an_interval_without_zero():
    rng = np.random.default_rng(0)
    base = rng.normal(25, 3, 30)
    better, same = list(base + 1 + rng.normal(0, 0.5, 30)), list(base + rng.normal(0, 0.5, 30))
    assert best_method(pairs("psnr", base, better), "psnr", list(METHODS)) == "spd+p2p"
    assert best_method(pairs("mse", base, better), "mse", list(METHODS)) == "ddim+p2p"  # less is better
    assert best_method(pairs("psnr", base, same), "psnr", list(METHODS)) is None
    assert best_method(pairs("never_heard_of", base, better), "never_heard_of", list(METHODS)) is None
    assert best_method(pairs("psnr", base, better), "psnr", ["spd+p2p"]) is None
    assert best_method(pairs("psnr", base[:4], better[:4]), "psnr", list(METHODS), least=8) is None
