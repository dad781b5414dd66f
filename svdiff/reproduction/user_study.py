"""The user study of Sec. 4.2 as a page that anyone can fill in: which of two pictures shows both subjects better?

The pairs are those of Fig. 6 with Cut-Mix-Unmix, shifts against full weights from the same noise. The paper asked ten
people about each of 400 pairs; that has not been done here.
"""

from dataclasses import replace

import numpy as np

from common.runs import InputError, read_rows, write_json
from common.user_study import Group, read_answers, write_study
from svdiff.reproduction.study import Study

METHODS = ("svdiff+cut_mix", "full+cut_mix")
QUESTION = "Which image contains both objects from the two input images with a consistent background?"  # Sec. 4.2
INTRO = "Which of two pictures is the better one?"


def user_study(study: Study) -> None:
    """study.html and study_key.json from the pictures of Fig. 6; with --answers, what people said."""
    if study.args.answers:
        count(study)
        return
    drawn = replace(study, output=study.output.parent / "multi")
    rows = [row for row in read_rows(drawn.rows) if row["group"] != "three"]
    one, other = ({(row["item"], row["seed"]) for row in rows if row["method"] == method} for method in METHODS)
    if not one & other:
        raise InputError("there are no pictures to compare yet: run svdiff.eval --figure 6 first")
    files, groups = {subject.name: subject.paths[0] for subject in study.every}, []
    for item, seed in sorted(one & other):
        names = item.partition("|")[0].split("+")
        given = {f"input {number}": files[name] for number, name in enumerate(names, start=1)}
        groups.append(Group(given, {method: drawn.picture_path(method, item, seed) for method in METHODS}))
    page = write_study(study.output, INTRO, {"better": QUESTION}, groups, study.args.seed)
    print(f"{len(groups)} pairs in {page}; count answers with --figure study --answers FILE ...")


def count(study: Study) -> None:
    """How often shifts were preferred: mean over raters, and their standard deviation."""
    ranks = [person[METHODS[0]]["better"] for person in read_answers(study.args.answers, study.output)]
    shares = [100 * own.count(1) / len(own) for own in ranks]
    found = {"raters": len(shares), "preferred %": float(np.mean(shares)), "standard deviation": float(np.std(shares))}
    write_json(study.output / "study_results.json", found)
    print(f"shifts preferred over full weights: {found['preferred %']:.1f} % +- {found['standard deviation']:.1f} "
          f"({len(shares)} raters); the paper: 60.9 % +- 6.9 %")  # fmt: skip
