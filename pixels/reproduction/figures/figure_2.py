"""Figure 2: transition artifacts of the naive solution beside the method."""

from tqdm import tqdm

from common.tables import text_table
from pixels.frames import to_picture
from pixels.reproduction.figures.sheet import finish, inputs
from pixels.reproduction.measures import seam
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, full_map, load_pair

METHODS = ["paste", "latent_paste", "perturbed", "pixels"]


def figure_2(bench: Bench, pairs: list[Pair]) -> None:
    """Transition artifacts of the naive solution beside the method, and how high each seam is."""
    sheet, numbers = [], []
    for pair in tqdm(pairs[:6], "figure 2", disable=None):
        loaded = load_pair(pair, bench.size)
        edits = {method: bench.edit(method, loaded).cpu() for method in METHODS}
        full = full_map(loaded, bench.size)
        real = [loaded["source"], *loaded["exemplars"]]
        numbers.append({"item": pair.id, **{method: seam(edits[method], real, full) for method in METHODS}})
        sheet.append([*inputs(loaded, bench.size), *(to_picture(edits[method]) for method in METHODS)])
    finish(bench, "figure_2", sheet, [pair.id for pair in pairs[:6]], ["source", "exemplar", "map", *METHODS], numbers)
    lines = [[row["item"], *(f"{row[method]:.1f}" for method in METHODS)] for row in numbers]
    print(text_table([["seam (grey levels)", *METHODS], *lines]))
