"""Fig. 8: subjects trained apart, added up (Eq. 4): shifts against differences of full weights."""

from common.images import grid, load_image, save_png
from svdiff import merging
from svdiff.reproduction.experiments.multi import inference_prompts
from svdiff.reproduction.experiments.study import (
    Study,
    applied,
    draw,
    pair_name,
    pairs,
    phrase,
    prompted,
    read_pictures,
    seen_in,
    tuned,
)


def run(study: Study) -> None:
    sheet, labels = [], []
    for kind, subjects in pairs(study):
        phrases = [phrase(study, subject) for subject in subjects]
        name, row = pair_name(subjects), [load_image(subject.paths[0]) for subject in subjects]
        for space in ("svdiff", "full"):
            total = merging.add([tuned(study, subject, space) for subject in subjects])  # Eq. 4
            with applied(study, total):
                for place, prompt in enumerate(inference_prompts(study, phrases)):

                    def score(picture, subjects=subjects):
                        return seen_in(study, list(subjects), picture)

                    draw(study, space, f"{name}|{place}", prompted(study, prompt), score, group=kind, prompt=prompt)
            row += read_pictures(study, space, f"{name}|0")[:2]
        sheet.append(row)
        labels.append(f"{name} ({kind})")
    each = min(2, len(study.seeds))
    columns = ["input", "input", *["shifts added"] * each, *["weights added"] * each]
    save_png(study.output / "figure8.png", grid(sheet, labels, columns))
