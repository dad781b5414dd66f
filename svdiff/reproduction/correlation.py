"""Fig. 9a: cosines between the shifts of subjects, averaged over layers; on the diagonal two runs of one subject."""

from itertools import combinations

import numpy as np

from common.runs import append_row, write_json
from svdiff import combine, options
from svdiff.reproduction import plots
from svdiff.reproduction.study import Study, tuned


def run(study: Study) -> None:
    """figure9a.png, correlation.json; Fig. 9b is made of the pictures of Fig. 5, in single.py."""
    shifts = [tuned(study, subject).of("unet") for subject in study.subjects]
    known = options.is_picturebook_folder(study.args.pretrained_model_name_or_path)
    rate = (options.PICTUREBOOK_LEARNING_RATES if known else options.LEARNING_RATES)["svdiff"] / 2
    again = [tuned(study, one, "svdiff", "--learning_rate", str(rate), name=f"{one.name}-svdiff-half-rate").of("unet")
             for one in study.subjects]  # fmt: skip
    count = len(shifts)
    matrix = [[combine.correlation(shifts[i], again[i] if i == j else shifts[j]) for j in range(count)]
              for i in range(count)]  # fmt: skip
    names = [subject.name for subject in study.subjects]
    classes = [subject.class_name for subject in study.subjects]
    off = [(matrix[i][j], classes[i] == classes[j]) for i in range(count) for j in range(i)]
    found = {"one subject, two runs": [matrix[i][i] for i in range(count)],
             "two subjects of one class": [value for value, same in off if same],
             "subjects of different classes": [value for value, same in off if not same]}  # fmt: skip
    means = {name: float(np.mean(values)) if values else None for name, values in found.items()}
    write_json(study.output / "correlation.json", {"subjects": names, "cosines": matrix, "means": means})
    for name, value in means.items():
        print(f"mean cosine, {name}: {'-' if value is None else f'{value:.3f}'}")
    plots.matrix(study, names, matrix)
    record(study, names, classes, matrix)


def record(study: Study, names: list[str], classes: list[str], matrix: list[list[float]]) -> None:
    """A row per pair of one class: its cosine less the mean of those that either has with other classes. Earlier rows,
    which may be of other subjects, go."""
    study.rows.unlink(missing_ok=True)
    for i, j in combinations(range(len(names)), 2):
        others = [matrix[one][k] for one in (i, j) for k in range(len(names)) if classes[k] != classes[i]]
        if classes[i] == classes[j] and others:
            append_row(study.rows, {
                "paper": "svdiff", "method": "svdiff", "item": f"{names[i]}+{names[j]}", "seed": study.args.seed,
                "seconds": 0.0, "peak_memory_mb": 0.0, "metrics": {"related": matrix[i][j] - float(np.mean(others))},
            })  # fmt: skip
