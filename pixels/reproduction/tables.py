"""The paper's tables with what was measured in them; the user study of Table 1b, which has not been run here."""

import random
from pathlib import Path
from statistics import fmean

from common import tables, user_study
from common.tables import Summary, by_method, text_table
from pixels.edit_map import THRESHOLDS, thresholds
from pixels.reproduction.pairs import Pair

FACTORS = {"CLIP-I": 100.0}  # printed value over stored value
PROTOCOLS = {"CLIP-I": "same_box"}  # the reading that stands in the paper's table
CRITERIA = {
    "adherence": "Keeps the identity of source and exemplar, as the map asks",
    "realism": "Looks like a natural, seamless picture",
}
INTRO = "White in a map is to stay as in the source, black is to come from the exemplar, grey is in between."
GROUPS = 30  # in the paper


def beside_published(name: str, measured: dict[str, dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables), and the methods that the paper does not have (the paste
    control, above all) after it.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and the summaries.
    """
    return tables.beside_published(tables.published_table("pixels", name), measured, PROTOCOLS, FACTORS)


def threshold_areas(count: int, schedule: str) -> str:
    """Area under each threshold's curve (Fig. 11): the share of cells and steps that a ramp of all greys lets go."""
    lines = [[name, f"{thresholds(name, count, schedule).mean():.4f}"] for name in THRESHOLDS]
    return text_table([["threshold", f"area under the curve, N = {count}"], *lines])


def write_study(output: Path, pairs: list[Pair], methods: list[str], seed: int = 0) -> Path:
    """output/study.html and output/study_key.json from the pictures of a finished run."""
    groups = []
    for pair in random.Random(seed).sample(pairs, min(GROUPS, len(pairs))):
        place, count = output / "pictures" / pair.id, len(pair.exemplars)
        names = ["source", *(f"exemplar {k}" if count > 1 else "exemplar" for k in range(1, count + 1)), "map"]
        files = ["source", *(f"exemplar_{k}" for k in range(1, count + 1)), "map"]
        given = {name: place / f"{file}.png" for name, file in zip(names, files, strict=True)}
        groups.append(user_study.Group(given, {method: place / f"{method}.png" for method in methods}))
    return user_study.write_study(output, INTRO, CRITERIA, groups, seed)


def print_ranks(files: list[str], output: Path) -> None:
    """Table 1b with the averages of answer files, intervals over participants."""
    people = user_study.read_answers(files, output)
    rows = [{"method": method, "metrics": {criterion: fmean(given) for criterion, given in ranks.items()}}
            for person in people for method, ranks in person.items()]  # fmt: skip
    print(beside_published("1b", {f"measured: {len(files)} participants": by_method(rows)}))
