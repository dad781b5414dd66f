"""Fig. 10: style mixing. Geometry from one subject's shifts in a span of layers, everything else from another's."""

from common.images import grid, load_image, save_png
from svdiff import combine, merging
from svdiff.reproduction.experiments.study import (
    Study,
    applied,
    draw,
    likeness,
    pair_name,
    pairs,
    prompted,
    prompts_of,
    read_pictures,
    references,
    tuned,
)  # fmt: skip

SUBSET = ["--parameter_subset", "UNet-2D", "--no-train_text_encoder"]


def run(study: Study) -> None:
    sheet, labels = [], []
    first, last = study.args.geometry_layers
    combine.span(study.pipe.unet, first, last)  # refuses layers that there are not, before anything is trained
    for _, subjects in pairs(study):
        appearance, geometry = (tuned(study, one, "svdiff", *SUBSET, name=f"{one.name}-UNet-2D") for one in subjects)
        prompt, plain = prompts_of(study, subjects[0])[0]
        name, row = pair_name(subjects), [load_image(subject.paths[0]) for subject in subjects]
        changes = {"appearance": appearance, "mixed": merging.style_mix(study.pipe, appearance, geometry, first, last),
                   "added": merging.add([appearance, geometry])}  # fmt: skip
        for method, change in changes.items():
            with applied(study, change):
                score = likeness(study, subjects[0], references(study, subjects[0]), plain)
                draw(study, method, name, prompted(study, prompt), score, prompt=prompt)
            row += read_pictures(study, method, name)[:2]
        sheet.append(row)
        labels.append(name)
    each = min(2, len(study.seeds))
    columns = ["appearance: input", "geometry: input", *(method for method in changes for _ in range(each))]
    save_png(study.output / "figure10.png", grid(sheet, labels, columns))
