"""Figure 6: the strength that an edit needs to look real grows with the distance of source and exemplar."""

import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from common.images import load_image
from common.tables import text_table
from pixels.frames import frame_tensor, to_picture
from pixels.reproduction import realism
from pixels.reproduction.figures.sheet import finish
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair


@torch.no_grad()
def strength_runs(bench: Bench, pairs: list[Pair], sources: int, exemplars: int) -> tuple[list[dict], list, float]:
    """For each source and each of its exemplars, edits of rising strength until one looks as real as the inputs do on
    average. Rows {"source", "exemplar", "distance", "needed", "scores", …}, pictures alike, and the threshold."""
    looks_real = realism.fit_reference(bench, pairs)
    pool = pairs[: max(exemplars * 4, sources)]
    inputs_seen = [
        frame_tensor(load_image(path), bench.size, "squash") for p in pool for path in (p.source, p.exemplars[0])
    ]
    threshold = sum(map(looks_real, inputs_seen)) / len(inputs_seen)
    strengths = [k / 10 for k in range(1, 11)]
    rows, sheet = [], []
    for pair in tqdm(pool[:sources], "strengths", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = realism.distances(bench, pool, loaded)
        chosen = [ranked[round(k * (len(ranked) - 1) / (exemplars - 1))] for k in range(exemplars)]
        pictures = []
        for distance, other in chosen:
            given = realism.with_exemplar(loaded, other, bench.size)
            scores, best = [], None
            for strength in strengths:
                best = bench.edit("pixels", given, strength=strength, denoising_start=None)
                scores.append(looks_real(best))
                if scores[-1] >= threshold:
                    break
            needed = strengths[len(scores) - 1] if scores[-1] >= threshold else None
            rows.append(
                {"source": pair.id, "exemplar": other.id, "distance": distance, "needed": needed, "scores": scores}
            )
            pictures.append(to_picture(best))
        sheet.append([to_picture(loaded["source"]), *pictures])
    return rows, sheet, threshold


def figure_6(bench: Bench, pairs: list[Pair]) -> None:
    """Six sources, six exemplars each; the rank correlation is the claim."""
    rows, sheet, threshold = strength_runs(bench, pairs, sources=min(6, len(pairs)), exemplars=6)
    needed = [1.1 if row["needed"] is None else row["needed"] for row in rows]  # never: above all strengths
    rank = spearmanr([row["distance"] for row in rows], needed)
    labels = ["source", *(f"exemplar {number}" for number in range(1, 7))]
    numbers = {"threshold": threshold, "spearman": rank.statistic, "p": rank.pvalue, "rows": rows}
    finish(bench, "figure_6", sheet, [row["source"] for row in rows[::6]], labels, numbers)
    lines = [[r["source"], r["exemplar"], f"{r['distance']:.1f}", str(r["needed"] or "none"), f"{r['scores'][-1]:.3f}"]
             for r in rows]  # fmt: skip
    print(text_table([["source", "exemplar", "latent distance", "needed strength", "realism"], *lines]))
    print(f"realism threshold {threshold:.3f}; rank correlation {rank.statistic:.2f} (p = {rank.pvalue:.2g})")
