"""The paper's claims about the penalty against prior preservation, and the rule that judges each.

Fixed before the test split was run. A claim is about the mean paired difference of two methods, with its 95 % bootstrap
interval over subjects and seeds. "better" holds if the whole interval is on the good side of zero, does not hold if it
is on the bad side, and cannot be decided if zero lies in it. With fewer than LEAST pairs nothing is decided. (What
happens at equal fidelity, and against early stopping, a lower learning rate and interpolation, is judged by
eval.personalize.)
"""

import math

from common.metrics import parse_key
from common.runs import paired_bootstrap
from common.tables import cell, text_table
from lipschitz_personalize.reproduction.plan import OWN, SPACE_NAMES

LEAST = 8
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot say"
# score -> (which way is better, where the paper says so)
SCORES = {
    "DINO": (1, "Table 1: higher in every row"),
    "CLIP-I": (1, "Table 1: higher in every row"),
    "CLIP-T": (1, "Table 1: higher for SD 1.5 DreamBooth and Custom Diffusion"),
    "delta_eps": (-1, "Sec. 4.2, Fig. 2: nearer to the base model's predictions"),
    "delta_theta": (-1, "Fig. 2: nearer to the base model's weights"),
    "drift_score": (-1, "abstract: without distributional drift"),
    "class_recognition": (1, "Figs. 11 and 12: other classes stay recognisable"),
    "total_seconds": (-1, "poster: about a third of the time"),
}


def verdict(low: float, high: float, n: int, sign: int) -> str:
    """Judge the interval of a paired difference, ours minus baseline. sign: +1 where more is better, else -1."""
    if n < LEAST:
        return UNDECIDED
    low, high = sorted((low * sign, high * sign))
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def judge(rows: list[dict]) -> list[dict]:
    """Ours against the same parameter space with prior preservation, and against it plain: a finding per score."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        named = {parse_key(key)["name"]: value for key, value in row["metrics"].items()}
        table[row["method"], row["item"]] = named | {"total_seconds": row["train_seconds"] + row["class_seconds"]}
    findings = []
    for space, own in OWN.items():
        for baseline in (f"{SPACE_NAMES[space]}+prior", SPACE_NAMES[space]):
            for score, (sign, place) in SCORES.items():
                pairs = [(found.get(score, math.nan), table.get((baseline, item), {}).get(score, math.nan))
                         for (method, item), found in table.items() if method == own]  # fmt: skip
                finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
                if not finite:
                    continue
                mean, low, high = paired_bootstrap(*zip(*finite, strict=True))
                gap = {"mean": mean, "low": low, "high": high, "n": len(finite)}
                findings.append({"method": own, "baseline": baseline, "score": score, "place": place, **gap,
                                 "verdict": verdict(low, high, len(finite), sign)})  # fmt: skip
    return findings


def claims_table(findings: list[dict]) -> str:
    """One line per claim: difference with its interval, and the verdict."""
    if not findings:
        return "No claim to judge: that takes a method with the penalty and the same one without it."
    lines = [[f"{one['method']} - {one['baseline']}", one["score"], cell(one), one["verdict"], one["place"]]
             for one in findings]  # fmt: skip
    return text_table([["ours - baseline", "score", "difference", "verdict", "the claim"], *lines])
