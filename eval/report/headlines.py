"""What was found, in sentences: the verdict on the claim that is told first, and otherwise what was measured."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from common.claims import FAILS, HOLDS, LEAST, PAPERS, Finding, published_text
from eval.report.boards import contestants
from eval.report.measures import beats, find, mean_interval, measure
from eval.tracks.track import Run, Track

CLASSES = {HOLDS: "holds", FAILS: "fails"}  # of the style sheet; any other verdict's is "unsure"


def claim_view(found: Finding, anchor: str) -> dict[str, Any]:
    """A claim as the page shows it."""
    claim, column, gap = found.claim, measure(found.key), found.gap
    allowed = f"no more than {claim.get('margin', 0) * column.factor:g} {column.gap_unit}".strip() + " worse"
    rule = "better" if claim["rule"] == "better" else allowed
    if "matched" in claim:
        rule += f" at equal {measure(claim['matched']).label}"
    return {
        "anchor": anchor,
        "claim": claim,
        "column": column,
        "rule": rule,
        "published": published_text(claim) if claim.get("published", "").partition(":")[0] in PAPERS else "",
        "text": f"{column.text(gap.mean, signed=True)} {column.gap_unit}".strip(),
        "spread": column.span(gap.low, gap.high, signed=True) if gap.n > 1 else "",
        "n": gap.n,
        "subjects": gap.subjects,
        "verdict": found.verdict if found.gap.n else "not measured",
        "class": CLASSES.get(found.verdict, "unsure") if found.gap.n else "none",
    }


def headline(track: Track, run: Run, claims: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sentence of the first screen."""
    told = next((one for one in claims if one["claim"].get("headline") and one["n"]), None)
    told = told or next((one for one in claims if one["n"] and "matched" not in one["claim"]), None)
    if told is None:
        return {"told": None, "sentence": measured(track, run)}
    return {"told": told, "sentence": told["claim"]["claim"], "others": better_ones(track, run, told["claim"])}


def better_ones(track: Track, run: Run, claim: dict) -> str:
    """Who else beats the claim's baseline in its score, with an interval that excludes zero."""
    key, sides = find(run.rows, claim["score"]) or claim["score"], (claim["baseline"], claim["method"])
    winners = [name for method, name in contestants(track, run).items()
               if method not in sides and beats(run.rows, key, method, claim["baseline"], LEAST)]  # fmt: skip
    shown = winners[:4] + ([f"{len(winners) - 4} more"] if len(winners) > 4 else [])
    return f"Better than {track.methods[claim['baseline']]} in this: {listed(shown)}." if winners else ""


def measured(track: Track, run: Run) -> str:
    """What this run measured of the track's first score; a sentence without a verdict."""
    key = next((key for key in (find(run.rows, name) for name in track.columns) if key), None)
    if key is None:
        return "Nothing could be scored."
    column = measure(key)
    means = {name: mean_interval(run.rows, key, method) for method, name in contestants(track, run).items()}
    means = {name: found for name, found in means.items() if found.n}
    ordered = sorted(means, key=lambda name: means[name].mean * (column.sign or 1), reverse=True)[:4]
    values = [f"{name} {column.text(means[name].mean)}" + f" {column.unit}" * bool(column.unit) for name in ordered]
    items = len({row["item"] for row in run.rows})
    return f"{column.label} on {items} item{'' if items == 1 else 's'}: {listed(values)}."


def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1] if words else ""


def tally(claims: Sequence[dict[str, Any]]) -> str:
    """How many claims have which verdict: "1 holds, 4 do not hold, 3 inconclusive, 2 not measured"."""
    counts = Counter(one["class"] for one in claims)
    words = {"holds": ("holds", "hold"), "fails": ("does not hold", "do not hold"), "unsure": ("inconclusive",) * 2,
             "none": ("not measured",) * 2}  # fmt: skip
    return ", ".join(f"{counts[kind]} {words[kind][counts[kind] > 1]}" for kind in words if counts[kind])
