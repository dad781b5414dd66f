"""Fig. 5 and 9b: one subject, in new places; spectral shifts, full weights and LoRA."""

from common.images import grid, load_image, save_png
from svdiff.reproduction.experiments.study import (
    SPACES,
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
    sheet, labels = [], []
    for subject in study.subjects:
        known, row = references(study, subject), [load_image(subject.paths[0])]
        for space in SPACES:
            with applied(study, tuned(study, subject, space)):
                for place, (prompt, plain) in enumerate(prompts_of(study, subject)):
                    score = likeness(study, subject, known, plain)
                    draw(study, space, f"{subject.name}|{place}", prompted(study, prompt), score, prompt=prompt)
            for place in range(min(2, study.args.prompts)):
                row.append(read_pictures(study, space, f"{subject.name}|{place}")[0])
        sheet.append(row)
        labels.append(subject.name)
    columns = ["input", *(space for space in SPACES for _ in range(min(2, study.args.prompts)))]
    save_png(study.output / "figure5.png", grid(sheet, labels, columns))
    scatter(study)


def scatter(study: Study) -> None:
    """Fig. 9b: text alignment across, image alignment up, a point per method and subject, large ones for means."""
    import matplotlib
    from matplotlib.figure import Figure

    from common.claims import find_key, values
    from common.runs import atomic_path, read_rows

    rows, figure = read_rows(study.rows), Figure((5, 4), layout="constrained")
    axis = figure.subplots()
    for space, color in zip(SPACES, matplotlib.color_sequences["tab10"], strict=False):
        text, image = (values(rows, find_key(rows, score), space) for score in ("CLIP-T", "image_alignment"))
        keys = [key for key in text if key in image]
        axis.scatter([text[k] for k in keys], [image[k] for k in keys], s=8, alpha=0.4, color=color)
        means = [sum(found[k] for k in keys) / max(1, len(keys)) for found in (text, image)]
        axis.scatter(*([value] for value in means), s=90, color=color, label=space)
    axis.set(xlabel="text alignment (CLIP)", ylabel="image alignment (1 - LPIPS)")
    axis.legend()
    with atomic_path(study.output / "figure9b.png") as temporary:
        figure.savefig(temporary, dpi=120)
