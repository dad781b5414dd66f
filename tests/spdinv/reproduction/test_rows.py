"""Names and settings of rows, and the arithmetic of the factorial against closed forms."""

import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from spdinv import eval as spdinv_eval
from spdinv import presets
from spdinv.reproduction import factorial, rows
from spdinv.reproduction.factorial import PLAIN, RELEASED


def parse(*flags):
    return spdinv_eval.parse(list(flags))


SPD = "--inversions spd "


@pytest.mark.parametrize("flags, names", [
    ("", "ddim+p2p spd+p2p"), ("--preset as_released", "ddim+p2p@as_released spd+p2p@as_released"),
    ("--preset as_released --no-proximal", "ddim+p2p@as_released,no_proximal spd+p2p@as_released,no_proximal"),
    ("--no-proximal", "ddim+p2p spd+p2p"),  # as the preset has it
    (SPD + "--engines pnp p2p --color_fix", "spd+pnp@color_fix spd+p2p@color_fix"),
    (SPD + "--presets as_released inversion_only", "spd+p2p@as_released spd+p2p"),
    (SPD + "--presets inversion_only npi source_guidance_1", "spd+p2p spd+p2p@npi spd+p2p@source_guidance_1"),
    (SPD + "--table s2 --preset as_released", "spd+p2p@as_released spd+masactrl@as_released spd+pnp@as_released"),
    ("--table 1 --engines pnp", "ddim+pnp direct+pnp aidi+pnp spd+pnp"),
    ("--table 2", "spd+p2p spd+masactrl spd+pnp"),
    ("--experiment premise --engines p2p masactrl",
     "ddim+p2p exact+p2p spd+p2p ddim+masactrl exact+masactrl spd+masactrl"),
])  # fmt: skip
def test_names(flags, names):
    assert list(spdinv_eval.methods_of(parse(*flags.split()))) == names.split()


@pytest.mark.parametrize("flags", [["--table", "1", "--presets", "inversion_only", "as_released"], ["--factorial"],
                                   ["--table", "3", "--presets", "as_released", "inversion_only"]])  # fmt: skip
def test_one_name_for_one_setting(flags):
    methods = spdinv_eval.methods_of(parse(*flags))
    assert len({json.dumps(asdict(method)) for method in methods.values()}) == len(methods)
    assert not any(set(name) & set("/\\ ") for name in methods)  # they name files


def test_titles_order_and_only_the_papers_own_rows_have_its_extras():
    assert rows.title("spd+p2p@as_released") == "SPDInv + P2P, as released" and rows.title("nmg+p2p") == "NMG + P2P"
    shown = ["ddim+p2p", "null_text+p2p", "spd+p2p", "ddim+p2p@npi", "spd+p2p@as_released", "ddim+masactrl", "elite"]
    assert rows.order(shown[::-1]) == shown
    methods = spdinv_eval.methods_of(parse("--table", "1", "--preset", "as_released"))
    for name, method in methods.items():
        released = presets.PRESETS["as_released"][method.engine] if method.inversion == "spd" else {}
        assert all(method.extras[switch] == released.get(switch, False) for switch in rows.SWITCHES), name


def test_a_row_keeps_its_setting_when_the_flags_have_another():
    args = parse("--table", "3", "--spd_rounds", "10")
    by_label = {row.label[0]: row for row in rows.table_rows(args, "inversion_only")}
    assert by_label["K = 25"].name == "spd+p2p@spd_rounds=25" and by_label["Default"].name == "spd+p2p"
    assert by_label["K = 25"].method.inversion_options["rounds"] == 25
    assert by_label["delta = 5e-5"].method.inversion_options["rounds"] == 10


def test_factorial_is_every_combination_once():
    cells = rows.factorial(parse())
    assert set(cells) == set(product((False, True), repeat=5))
    for cell, (_, method) in cells.items():
        assert method.inversion == ("spd" if cell[0] else "ddim") and method.engine == "p2p"
        assert tuple(method.extras[name] for name in rows.FACTORS) == cell[1:]
        assert method.engine_options["cross_replace_steps"] == 0.4
    released = presets.PRESETS["as_released"]["p2p"]
    assert RELEASED == (True, *(released.get(name, False) for name in rows.FACTORS))


def synthetic(score, items=9):
    """Rows whose score is score(item number, cell)."""
    cells = {cell: str(cell) for cell in product((False, True), repeat=5)}
    found = [{"method": name, "item": str(i), "metrics": {"psnr_truth": float(score(i, cell))}}
             for cell, name in cells.items() for i in range(items)]  # fmt: skip
    return found, cells


def test_of_an_additive_score_every_effect_is_its_term():
    terms = np.random.default_rng(0).standard_normal((9, 5))
    found = factorial.effects(*synthetic(lambda i, cell: 20 + i + terms[i] @ np.array(cell, float)))["psnr_truth"]
    for name, mean in zip(factorial.NAMES, terms.mean(0), strict=True):
        line = found[f"main effect: {name}"]
        assert line["mean"] == pytest.approx(mean) and line["n"] == 9 and line["low"] <= line["mean"] <= line["high"]
    gain = found["gain of all that is released over plain DDIM"]
    assert gain["mean"] == pytest.approx(terms[:, :4].sum(1).mean())
    assert [found[f"  of it: {name}"]["mean"] for name in factorial.NAMES[:4]] == pytest.approx(terms[:, :4].mean(0))
    assert f"  of it: {factorial.NAMES[4]}" not in found  # released P2P has no colour fix


def test_an_interaction_is_shared_and_the_shares_add_up():
    score = lambda i, cell: 6 * (cell[0] and cell[2]) + 3 * (cell[1] and cell[2] and cell[3]) + cell[4]  # noqa: E731
    measured, cells = synthetic(score)
    shares = factorial.shares(factorial.collect(measured, cells, "psnr_truth"))
    assert {number: values.mean() for number, values in shares.items()} == pytest.approx({0: 3, 1: 1, 2: 4, 3: 1})
    rng = np.random.default_rng(1)
    scores = {cell: rng.standard_normal(7) for cell in cells}
    assert sum(factorial.shares(scores).values()) == pytest.approx(scores[RELEASED] - scores[PLAIN])
    half = sum((1 if cell[3] else -1) * values / 16 for cell, values in scores.items())
    assert factorial.main_effect(scores, 3) == pytest.approx(half)


def test_items_without_a_finite_score_everywhere_are_left_out():
    measured, cells = synthetic(lambda i, cell: i)
    next(row for row in measured if row["item"] == "3")["metrics"]["psnr_truth"] = float("inf")
    next(row for row in measured if row["item"] == "5")["metrics"]["psnr_truth"] = float("nan")
    measured = [row for row in measured if not (row["item"] == "0" and row["method"] == str(RELEASED))]
    assert factorial.collect(measured, cells, "psnr_truth")[PLAIN].tolist() == [1, 2, 4, 6, 7, 8]
    assert "n" in factorial.effects(measured, cells)["psnr_truth"]["main effect: proximal"]
    assert "psnr_truth" in factorial.table(factorial.effects(measured, cells))
    assert "No factorial" in factorial.table({})
