"""The paper's figures from result rows and pictures: drift over lambda, scores over lambda, pictures side by side."""

import argparse
from collections.abc import Callable
from pathlib import Path

from common.data import fill_prompt
from common.images import center_crop_resize, grid, load_image, save_png
from common.runs import atomic_path
from common.tables import by_method, find, published_table
from lipschitz_personalize.reproduction.plan import lambda_sweep


def draw(
    args: argparse.Namespace, names: list[str], rows: list[dict], subjects: list, prompts: dict[str, list[str]],
    output: Path, picture_path: Callable,
) -> None:  # fmt: skip
    """grid.png of all methods, and the figures that were asked for."""
    sweep = [name for name in lambda_sweep(args.pretrained_model_name_or_path) if name in names]
    side_by_side(args, names[:12], subjects, prompts, picture_path, output / "grid.png")
    if 3 in args.figure:
        others = [name for name in names if name not in sweep]
        side_by_side(args, others, subjects, prompts, picture_path, output / "figure_3.png")
    if 5 in args.figure:
        side_by_side(args, sweep, subjects, prompts, picture_path, output / "figure_5.png")
    if {2, 4} & set(args.figure):
        curves(args, rows, sweep, output)


def side_by_side(args: argparse.Namespace, names: list[str], subjects: list, prompts: dict, picture_path, path: Path):
    """A row per subject and prompt (the first three prompts), a column per method, the subject itself in front."""
    lines, labels = [], []
    for subject in subjects[:4]:
        for number, template in enumerate(prompts["live" if subject.live else "object"][: min(3, args.prompts)]):
            drawn = [load_image(picture_path(args, name, subject, args.seeds[0], number, 0)) for name in names]
            lines.append([center_crop_resize(load_image(subject.paths[0]), drawn[0].width), *drawn])
            labels.append(fill_prompt(template, "sks", subject.class_name))
    save_png(path, grid(lines, labels, ["subject", *names]))


def curves(args: argparse.Namespace, rows: list[dict], sweep: list[str], output: Path) -> None:
    """Fig. 2: ||delta theta|| and ||delta eps|| over lambda, published beside measured, each relative to lambda = 0.
    Fig. 4: fidelity against prompt adherence along lambda. Lambda counts in multiples of the first one above zero."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    summary = by_method([row for row in rows if row["method"] in sweep])
    weights = {row["method"]: row["l2_reg_weight"] for row in rows}
    names = sorted((name for name in sweep if name in summary), key=weights.get)
    unit = next((weights[name] for name in names if weights[name] > 0), 1.0)
    if 2 in args.figure:
        published = [row["values"] for row in published_table("lipschitz_personalize", "figure_2")["rows"]]
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
        for axis, key, column in zip(axes, ("delta_theta_sum", "delta_eps"), (1, 2), strict=True):
            values = [summary[name][key] for name in names]
            first = values[0]["mean"] or 1.0
            middle = [value["mean"] / first for value in values]
            around = [
                [(v["mean"] - v["low"]) / first for v in values],
                [(v["high"] - v["mean"]) / first for v in values],
            ]
            axis.errorbar([weights[name] / unit for name in names], middle, around, marker="o", label="measured")
            axis.plot([p[0] / 500 for p in published], [p[column] / published[0][column] for p in published], "x--",
                      label="published (SD 1.5, read off)")  # fmt: skip
            axis.set(xlabel=f"lambda / {unit:g}", ylabel=f"{key} / that at 0", ylim=(0, None))
        axes[0].legend()
        save(figure, output / "figure_2.png")
    if 4 in args.figure:
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
        for axis, score in zip(axes, ("DINO", "CLIP-I"), strict=True):
            points = [(find(summary[name], score)["mean"], find(summary[name], "CLIP-T")["mean"])
                      for name in names]  # fmt: skip
            axis.plot(*zip(*points, strict=True), "o-")
            for name, point in zip(names, points, strict=True):
                axis.annotate(f"{weights[name]:g}", point)
            axis.set(xlabel=score, ylabel="CLIP-T")
        save(figure, output / "figure_4.png")


def save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
