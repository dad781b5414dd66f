"""Table 1's subsets, trained and scored (Sec. 4.4; the paper's scores are in an appendix that is not public)."""

from common.images import grid, load_image, save_png
from svdiff import options
from svdiff.reproduction.experiments.study import (
    Study,
    applied,
    draw,
    likeness,
    prompted,
    prompts_of,
    read_pictures,
    references,
    tuned,
)


def run(study: Study) -> None:
    sheet = []
    for subject in study.subjects:
        known, row = references(study, subject), [load_image(subject.paths[0])]
        for subset in options.SUBSET_NAMES:
            change = tuned(study, subject, "svdiff", "--parameter_subset", subset, "--no-train_text_encoder",
                           name=f"{subject.name}-{subset}")  # fmt: skip
            with applied(study, change):
                for place, (prompt, plain) in enumerate(prompts_of(study, subject)):
                    score = likeness(study, subject, known, plain)
                    draw(study, subset, f"{subject.name}|{place}", prompted(study, prompt), score, prompt=prompt)
            row.append(read_pictures(study, subset, f"{subject.name}|0")[0])
        sheet.append(row)
    labels = [subject.name for subject in study.subjects]
    save_png(study.output / "ablation.png", grid(sheet, labels, ["input", *options.SUBSET_NAMES]))
