"""Fig. 11: from one class to another under the shared word "thing" (Eq. 5), shifts and full weights."""

import math

from scipy.stats import spearmanr

from common.images import grid, load_image, save_png
from common.runs import InputError
from svdiff import merging
from svdiff.reproduction.experiments.study import (
    SPACES,
    Study,
    applied,
    concept,
    draw,
    load_eye,
    pair_name,
    pairs,
    presences,
    prompted,
    read_pictures,
    training,
)  # fmt: skip

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOKEN, WORD = "sks", "thing"


def run(study: Study) -> None:
    sheet, labels = [], []
    chosen = [subjects for kind, subjects in pairs(study) if kind == "dissimilar"]
    if not chosen:
        raise InputError("this figure passes between classes: name --subjects of two that are not both alive, and let "
                         "--pairs ask for dissimilar ones")  # fmt: skip
    for subjects in chosen:
        name = pair_name(subjects)
        for space in ("svdiff", "full"):
            ends = []
            for subject in subjects:
                told = concept(study, subject, WORD, TOKEN)
                folder = training(study, f"{subject.name}-thing-{space}", [told], *SPACES[space])
                ends.append(merging.load(study.pipe, folder))
            row = [load_image(subjects[1].paths[0])]
            for alpha in ALPHAS:
                with applied(study, merging.interpolate(*ends, alpha)):
                    draw(study, f"{space}|{alpha}", name, prompted(study, told.instance_prompt),
                         lambda picture, subjects=subjects: sides(study, subjects, picture))  # fmt: skip
                row.append(read_pictures(study, f"{space}|{alpha}", name)[0])
            order(study, space, name)
            sheet.append([*row, load_image(subjects[0].paths[0])])
            labels.append(f"{name}, {space}")
    columns = ["B", *(f"alpha {alpha:g}" for alpha in ALPHAS), "A"]
    save_png(study.output / "figure11.png", grid(sheet, labels, columns))


def sides(study: Study, subjects, picture) -> dict[str, float]:
    """How much more the classifier sees of A than of B, -1 to 1; nothing without one."""
    if (classifier := load_eye(study)) is None:
        return {}
    one, two = presences(list(subjects), picture, classifier)
    return {"A minus B": one - two}


def order(study: Study, space: str, name: str) -> None:
    """A row per seed: the rank correlation of alpha with what is seen of A less of B. 0 where nothing changes."""
    from common.runs import append_row, read_rows

    rows = read_rows(study.rows)
    done = {(row["method"], row["item"], row["seed"]) for row in rows}
    seen = {(row["method"], row["seed"]): row["metrics"].get("A minus B") for row in rows if row["item"] == name}
    for seed in study.seeds:
        line = [seen.get((f"{space}|{alpha}", seed)) for alpha in ALPHAS]
        if None in line or (space, name, seed) in done:
            continue
        found = spearmanr(ALPHAS, line).statistic if len(set(line)) > 1 else 0.0
        append_row(study.rows, {
            "paper": "svdiff", "method": space, "item": name, "seed": seed, "seconds": 0.0, "peak_memory_mb": 0.0,
            "metrics": {"order": 0.0 if math.isnan(found) else float(found)},
        })  # fmt: skip
