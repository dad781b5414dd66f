"""The paper's claims about its inversion against the others (Sec. 4.2), and the rule that judges each.

Fixed before the test split was run. A claim is about the mean paired difference of two methods, with its 95 % bootstrap
interval over the items that both have. "better" holds if the whole interval is on the good side of zero, does not hold
if it is on the bad side, and cannot be decided if zero lies in it. "no worse" holds if the interval is on the good side
of the margin, and does not hold if it reaches beyond and lies on the bad side of zero as a whole. With fewer than LEAST
pairs nothing is decided.
"""

import math
from collections.abc import Iterable

from common.metrics import PIE_SCORES, parse_key
from common.runs import paired_bootstrap
from common.tables import cell, text_table
from spdinv.presets import PRESETS
from spdinv.reproduction.rows import OWN
from spdinv.reproduction.tables import wanted_keys

LEAST = 8
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot say"
# score -> which way is better, and by how much (in stored units) a method may be worse and still be "no worse"; None:
# it has to be better. The first three ask whether edits succeed, for which the paper has no measure, and are the
# primary ones on the picturebook; the others are the columns of Table 1.
SCORES: dict[str, tuple[int, float | None]] = {
    "edit_success": (1, 0.1),
    "psnr_truth": (1, None),
    "lpips_truth": (-1, None),
    "structure/pie_official": (-1, None),
    "psnr/pie_official": (1, None),
    "lpips/pie_official": (-1, None),
    "mse/pie_official": (-1, None),
    "ssim/pie_official": (1, None),
    "clip_whole/pie_official": (1, None),
}


def verdict(low: float, high: float, n: int, sign: int = 1, margin: float | None = None) -> str:
    """Judge the interval of a paired difference, method minus baseline. sign: +1 where more is better, else -1."""
    if n < LEAST:
        return UNDECIDED
    low, high = sorted((low * sign, high * sign))  # from here on, up is good
    if low > (0 if margin is None else -margin):
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


def compare(rows: Iterable[dict], key: str, method: str, baseline: str) -> dict[str, float]:
    """method minus baseline over the items for which both have a finite score: {"mean", "low", "high", "n"}."""
    found = {(row["method"], row["item"]): row["metrics"].get(key, math.nan) for row in rows}
    pairs = [(value, found.get((baseline, item), math.nan)) for (name, item), value in found.items() if name == method]
    finite = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    interval = paired_bootstrap(*zip(*finite, strict=True)) if finite else (math.nan,) * 3
    return dict(zip(("mean", "low", "high"), interval, strict=True), n=len(finite))


def judge(rows: list[dict], methods: list[str]) -> list[dict]:
    """The paper's inversion, plain or under a preset, against every other one under the same engine, score by score."""
    keys, found = list(dict.fromkeys(key for row in rows for key in row["metrics"])), []
    for method in methods:
        pair, _, tag = method.partition("@")
        inversion, _, engine = pair.partition("+")  # a baseline has no engine
        if inversion != OWN or tag not in ("", *PRESETS):
            continue
        for baseline in (name for name in methods if name.partition("+")[2] == engine and name != pair):
            for score, (sign, margin) in SCORES.items():
                for key in wanted_keys(keys, (score,)):
                    gap = compare(rows, key, method, baseline)
                    ruled = verdict(gap["low"], gap["high"], gap["n"], sign, margin)
                    claim = {"method": method, "baseline": baseline, "score": key, "margin": margin}
                    found.append({**claim, **gap, "verdict": ruled})
    return found


def claims_table(found: list[dict]) -> str:
    """Pairs down, scores across: the difference in the units of the tables, its interval, and the verdict."""
    if not found:
        return "No claim to judge: that takes the paper's inversion and another one under one engine."
    margins = {one["score"]: one["margin"] for one in found}
    rules = ["better" if margin is None else f"no worse by {margin:g}" for margin in margins.values()]
    lines = {}
    for one in found:
        factor = PIE_SCORES.get(parse_key(one["score"])["name"], ("", 1.0))[1]
        cells = lines.setdefault(f"{one['method']} - {one['baseline']}", {})
        cells[one["score"]] = f"{cell(one, factor)} {one['verdict']}"
    table = [["paper's own - other", *margins], ["the claim is", *rules]]
    return text_table([*table, *([pair, *cells.values()] for pair, cells in lines.items())])
