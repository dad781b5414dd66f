"""The rank and scaling analyses (Sec. 4.4 names them, their results are in an appendix that is not public).

Rank: of every layer only the shifts of its largest singular values are kept. Scaling: all are multiplied, inside ReLU.
"""

from common.images import grid, load_image, save_png
from svdiff import combine, merging
from svdiff.basis import tunable
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

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
SCALES = (0.0, 0.5, 1.0, 1.5, 2.0)


def run(study: Study) -> None:
    rank = study.args.figure == "rank"
    sheet, methods = [], [f"share {share:g}" for share in SHARES] if rank else [f"scale {scale:g}" for scale in SCALES]
    for subject in study.subjects:
        change, known = tuned(study, subject), references(study, subject)
        row = [load_image(subject.paths[0])]
        for method, value in zip(methods, SHARES if rank else SCALES, strict=True):
            cut = change
            if rank:
                cut = truncated(study, change, value)
            with applied(study, cut, 1.0 if rank else value):
                for place, (prompt, plain) in enumerate(prompts_of(study, subject)):
                    score = likeness(study, subject, known, plain)
                    draw(study, method, f"{subject.name}|{place}", prompted(study, prompt), score, prompt=prompt)
            row.append(read_pictures(study, method, f"{subject.name}|0")[0])
        sheet.append(row)
    labels = [subject.name for subject in study.subjects]
    save_png(study.output / f"{study.args.figure}.png", grid(sheet, labels, ["input", *methods]))


def truncated(study: Study, change: merging.Change, share: float) -> merging.Change:
    """Of every matrix the shifts of its largest singular values; vectors, which have no such order, whole."""
    parts = {}
    for part in change.parts:
        layers, shifts = tunable(getattr(study.pipe, part)), change.of(part)
        parts[part] = combine.truncate(shifts, share, [path for path in shifts if layers[path].weight.ndim == 1])
    return merging.Change("shifts", parts)
