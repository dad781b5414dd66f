"""The paper's claims, and the rule by which each is judged.

A claim is about the mean paired difference of two methods, method less baseline, over the subjects, pairs of subjects
or edited pictures that both have, with its 95 % bootstrap interval. Each counts once, by the mean over its prompts and
seeds: these share one training, and a hundred pictures of one training say nothing of the next. "better": holds if the
whole interval lies on the good side of zero, does not hold if on the bad side, and cannot be decided otherwise. "no
worse": holds if the interval lies above minus the margin, does not hold if it reaches below and lies on the bad side of
zero as a whole. "above": the method's own mean against a number. Fewer than LEAST decide nothing, nor do two methods
that never score at all: at the floor everything is as good as everything else.

Claims, scores and margins were fixed before the test split was run. That the floor decides nothing and that pictures of
one training count once came later; both only take verdicts away.
"""

import math
from dataclasses import dataclass

from common.runs import bootstrap_interval, paired_bootstrap
from common.tables import by_subject

LEAST = 8
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot say"


@dataclass(frozen=True)
class Claim:
    """experiment: the folder whose rows decide. sign: +1 where more of the score is better, else -1. margin: None for
    "better", a number for "no worse". baseline: a method; or a number that the method's mean is to exceed."""

    experiment: str
    text: str
    place: str
    score: str
    method: str
    baseline: str | float
    sign: int = 1
    margin: float | None = None
    group: str | None = None  # only rows of this group of subjects, "similar" or "dissimilar"


CLAIMS = [
    Claim("single", "SVDiff's likeness to the subject is that of full fine-tuning", "Sec. 4.1, Fig. 9b",
          "image_alignment", "svdiff", "full", margin=0.05),
    Claim("single", "SVDiff follows prompts as well as full fine-tuning", "Sec. 4.1, Fig. 9b", "CLIP-T", "svdiff",
          "full", margin=0.02),
    Claim("single", "SVDiff is nearer to the subject than LoRA", "Sec. 4.5", "DINO", "svdiff", "lora"),
    Claim("multi", "Cut-Mix-Unmix separates similar subjects: shifts", "Sec. 4.2, Fig. 6", "both_present",
          "svdiff+cut_mix", "svdiff", group="similar"),
    Claim("multi", "Cut-Mix-Unmix separates similar subjects: full weights", "Sec. 4.2, Fig. 6", "both_present",
          "full+cut_mix", "full", group="similar"),
    Claim("multi", "Dissimilar subjects do not need Cut-Mix-Unmix", "Sec. 4.2", "both_present", "svdiff",
          "svdiff+cut_mix", margin=0.1, group="dissimilar"),
    Claim("multi", "With Cut-Mix-Unmix shifts are preferred over full weights (here: both subjects present)",
          "Sec. 4.2, user study", "both_present", "svdiff+cut_mix", "full+cut_mix"),
    Claim("multi", "The unmix loss reduces stitching", "Sec. 3.3", "seam", "svdiff+unmix", "svdiff+cut_mix", sign=-1),
    Claim("edits", "Shifts drift less than full weights: edits succeed more often", "Sec. 4.3, Fig. 7",
          "edit_success", "svdiff", "full"),
    Claim("edits", "DDIM inversion brings edits with shifts nearer to the picture", "Sec. 4.3", "psnr_kept",
          "svdiff+inversion", "svdiff"),
    Claim("edits", "DDIM inversion worsens edits with full weights", "Sec. 4.3", "edit_success", "full",
          "full+inversion"),
    Claim("edits", "LoRA underfits a single picture: shifts keep it better", "Sec. 4.5", "psnr_kept",
          "svdiff+inversion", "lora+inversion"),
    Claim("combination", "Summed shifts interfere more than summed full weights", "Sec. 4.4, Fig. 8", "both_present",
          "full", "svdiff"),
    Claim("correlation", "Shifts of related subjects (of one class) correlate more than others", "Sec. 4.4, Fig. 9a",
          "related", "svdiff", 0.0),
    Claim("interpolation", "Interpolated shifts pass from one class to the other in order", "Sec. 4.4, Fig. 11",
          "order", "svdiff", 0.0),
    Claim("ablation", "Cross-attention keeps identity better than its keys and values alone", "Sec. 4.4 (1)",
          "image_alignment", "UNet-CA", "UNet-CA-KV"),
    Claim("ablation", "Up-blocks keep identity better than down-blocks", "Sec. 4.4 (2)", "image_alignment",
          "Up-Blocks", "Down-Blocks"),
    Claim("ablation", "Up-blocks keep identity better than the mid-block", "Sec. 4.4 (2)", "image_alignment",
          "Up-Blocks", "Mid-Block"),
    Claim("ablation", "2-D weights keep identity better than cross-attention", "Sec. 4.4 (3)", "image_alignment",
          "UNet-2D", "UNet-CA"),
    Claim("ablation", "2-D weights have more influence than 1-D", "Sec. 4.4 (3)", "image_alignment", "UNet-2D",
          "UNet-1D"),
    Claim("ablation", "2-D weights have more influence than 4-D", "Sec. 4.4 (3)", "image_alignment", "UNet-2D",
          "UNet-4D"),
]  # fmt: skip


def verdict(low: float, high: float, n: int, sign: int = 1, margin: float | None = None) -> str:
    if n < LEAST:
        return UNDECIDED
    low, high = sorted((low * sign, high * sign))  # from here on, up is good
    if low > (0 if margin is None else -margin):
        return HOLDS
    return FAILS if high < 0 else UNDECIDED


def values(rows: list[dict], method: str, score: str, group: str | None = None) -> dict[tuple, float]:
    """{(item, seed): score} of a method, of one group where one is named; encoders' names in brackets are ignored."""
    found = {}
    for row in (row for row in rows if group in (None, row.get("group"))):
        for name, value in row["metrics"].items():
            if row["method"] == method and name.partition(" (")[0] == score and value is not None:
                if math.isfinite(value):
                    found[row["item"], row["seed"]] = float(value)
    return found


def judge(experiment: str, rows: list[dict]) -> list[dict]:
    """Every claim of one experiment against its rows, one per picture or by subject."""
    rows, found = by_subject(rows), []
    for claim in (claim for claim in CLAIMS if claim.experiment == experiment):
        ours = values(rows, claim.method, claim.score, claim.group)
        if isinstance(claim.baseline, str):
            theirs = values(rows, claim.baseline, claim.score, claim.group)
            shared = [key for key in ours if key in theirs]
            pairs = [ours[key] for key in shared], [theirs[key] for key in shared]
            mean, low, high = paired_bootstrap(*pairs)
            at_floor = claim.sign > 0 and not any(pairs[0]) and not any(pairs[1])
        else:
            shared = list(ours)
            mean, low, high = bootstrap_interval([value - claim.baseline for value in ours.values()])
            at_floor = False
        ruled = UNDECIDED if at_floor else verdict(low, high, len(shared), claim.sign, claim.margin)
        found.append({**vars(claim), "mean": mean, "low": low, "high": high, "n": len(shared), "verdict": ruled})
    return found


def claims_table(found: list[dict]) -> list[list[str]]:
    lines = [["claim", "place", "difference of", "mean [95 % interval]", "subjects", "verdict"]]
    for one in found:
        gap = f"{one['mean']:+.3g} [{one['low']:+.3g}, {one['high']:+.3g}]" if one["n"] else "-"
        pair = f"{one['score']}: {one['method']} - {one['baseline']}"
        lines.append([one["text"], one["place"], pair, gap, str(one["n"]), one["verdict"]])
    return lines
