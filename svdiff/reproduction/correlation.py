"""Fig. 9a: cosines between the shifts of subjects, averaged over layers; on the diagonal two runs of one subject."""

import json
from itertools import combinations

import numpy as np

from common.pipelines import is_picturebook
from common.runs import atomic_path, write_json, write_text
from svdiff import combine, options
from svdiff.merging import of_part
from svdiff.reproduction.study import SPACES, Study, row_of


def correlation(study: Study) -> None:
    """figure9a.png, correlation.json; Fig. 9b is made of the pictures of Fig. 5, in figures.py."""
    tuned = options.PICTUREBOOK_TUNED["svdiff"]["learning_rate"]
    half = str((tuned if is_picturebook(study.pipe) else options.LEARNING_RATES["svdiff"]) / 2)
    runs = {"svdiff": [], "svdiff-half-rate": [*SPACES["svdiff"], "--learning_rate", half]}
    for subject in study.args.shard.of(study.subjects):
        for run in runs.items():
            study.tuned(subject, run[0], *run[1])
    study.check_trained(f"{subject.name}-{name}" for subject in study.subjects for name in runs)
    shifts, again = ([of_part(study.tuned(subject, name, *flags)) for subject in study.subjects]
                     for name, flags in runs.items())  # fmt: skip
    cosines = np.array([[combine.correlation(one, again[i] if i == j else two) for j, two in enumerate(shifts)]
                        for i, one in enumerate(shifts)])  # fmt: skip
    names, classes = zip(*((subject.name, subject.class_name) for subject in study.subjects), strict=True)
    pairs = [(cosines[i, j], classes[i] == classes[j]) for j, i in combinations(range(len(names)), 2)]
    found = {"one subject, two runs": list(cosines.diagonal()),
             "two subjects of one class": [value for value, same in pairs if same],
             "subjects of different classes": [value for value, same in pairs if not same]}  # fmt: skip
    means = {name: float(np.mean(values)) if values else None for name, values in found.items()}
    write_json(study.output / "correlation.json", {"subjects": names, "cosines": cosines, "means": means})
    for name, value in means.items():
        print(f"mean cosine, {name}: {'-' if value is None else f'{value:.3f}'}")
    draw_matrix(study, names, cosines)
    record(study, names, classes, cosines)


def record(study: Study, names: tuple[str, ...], classes: tuple[str, ...], cosines: np.ndarray) -> None:
    """A row per pair of one class: its cosine less the mean of those that either has with other classes. Earlier rows,
    which may be of other subjects, go."""
    rows, other = [], np.array([[one != two for two in classes] for one in classes])
    for i, j in combinations(range(len(names)), 2):
        if not other[i, j] and other[i].any():
            apart = np.concatenate([cosines[i, other[i]], cosines[j, other[i]]])
            rows.append(row_of("svdiff", f"{names[i]}+{names[j]}", study.args.seed,
                               {"related": float(cosines[i, j] - apart.mean())}))  # fmt: skip
    write_text(study.rows, "".join(json.dumps(row) + "\n" for row in rows))


def draw_matrix(study: Study, names: tuple[str, ...], cosines: np.ndarray) -> None:
    """figure9a.png, names on both sides."""
    from matplotlib.figure import Figure

    figure = Figure((1.5 + 0.7 * len(names), 1.2 + 0.7 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(cosines, vmin=0, vmax=1, cmap="Blues")
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(cosines):
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    with atomic_path(study.output / "figure9a.png") as temporary:
        figure.savefig(temporary, dpi=120)
