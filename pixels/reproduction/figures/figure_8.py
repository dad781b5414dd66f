"""Figure 8, the control of Figure 6: one strength, 0.2, for the nearest and the farthest exemplar."""

import torch
from tqdm import tqdm

from common.tables import text_table
from pixels.frames import to_picture
from pixels.reproduction import realism
from pixels.reproduction.figures.sheet import finish
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair

STRENGTH = 0.2


@torch.no_grad()
def figure_8(bench: Bench, pairs: list[Pair]) -> None:
    """Four sources; realism of both edits beside the distances."""
    looks_real = realism.fit_reference(bench, pairs)
    sheet, numbers = [], []
    for pair in tqdm(pairs[:4], "figure 8", disable=None):
        loaded = load_pair(pair, bench.size)
        ranked = realism.distances(bench, pairs[:24], loaded)
        row = [to_picture(loaded["source"])]
        for distance, other in (ranked[0], ranked[-1]):
            given = realism.with_exemplar(loaded, other, bench.size)
            edited = bench.edit("pixels", given, strength=STRENGTH, denoising_start=None)
            row += [to_picture(given["exemplars"][0]), to_picture(edited)]
            seen = looks_real(edited)
            numbers.append({"source": pair.id, "exemplar": other.id, "distance": distance, "realism": seen})
        sheet.append(row)
    labels = ["source", "nearest exemplar", "edited, strength 0.2", "farthest exemplar", "edited, strength 0.2"]
    finish(bench, "figure_8", sheet, [pair.id for pair in pairs[:4]], labels, numbers)
    print(text_table([["source", "latent distance", "realism"],
                      *([n["source"], f"{n['distance']:.1f}", f"{n['realism']:.3f}"] for n in numbers)]))  # fmt: skip
