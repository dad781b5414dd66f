"""Two plots: Fig. 9b's scatter of alignments, Fig. 9a's matrix of cosines."""

from common.metrics import parse_key
from common.runs import atomic_path, read_rows
from svdiff.reproduction.study import Study


def scatter(study: Study, methods: list[str]) -> None:
    """Fig. 9b: text alignment across, image alignment up, a point per picture, large ones for means."""
    import matplotlib
    from matplotlib.figure import Figure

    rows, figure = read_rows(study.rows), Figure((5, 4), layout="constrained")
    axis = figure.subplots()
    for method, color in zip(methods, matplotlib.color_sequences["tab10"], strict=False):
        own = [{parse_key(key)["name"]: value for key, value in row["metrics"].items()} for row in rows
               if row["method"] == method]  # fmt: skip
        text, image = ([scores[name] for scores in own] for name in ("CLIP-T", "image_alignment"))
        axis.scatter(text, image, s=8, alpha=0.4, color=color)
        means = [[sum(values) / max(1, len(values))] for values in (text, image)]
        axis.scatter(*means, s=90, color=color, label=method)
    axis.set(xlabel="text alignment (CLIP)", ylabel="image alignment (1 - LPIPS)")
    axis.legend()
    with atomic_path(study.output / "figure9b.png") as temporary:
        figure.savefig(temporary, dpi=120)


def matrix(study: Study, names: list[str], values) -> None:
    """Fig. 9a: cosines, names on both sides."""
    from matplotlib.figure import Figure

    figure = Figure((1.5 + 0.7 * len(names), 1.2 + 0.7 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(values, vmin=0, vmax=1, cmap="Blues")
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    with atomic_path(study.output / "figure9a.png") as temporary:
        figure.savefig(temporary, dpi=120)
