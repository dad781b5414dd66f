"""The user study of Table 1b: a blinded ranking page, and the average of the answers. It has not been run here."""

import random
from pathlib import Path
from statistics import fmean

from common import user_study
from common.tables import by_method
from pixels.reproduction.pairs import Pair
from pixels.reproduction.tables import beside_published

CRITERIA = {
    "adherence": "Keeps the identity of source and exemplar, as the map asks",
    "realism": "Looks like a natural, seamless picture",
}
INTRO = "White in a map is to stay as in the source, black is to come from the exemplar, grey is in between."
GROUPS = 30  # in the paper


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
