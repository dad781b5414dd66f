"""The paper's figures from result rows and pictures: drift over lambda, scores over lambda, pictures side by side."""

import argparse
from pathlib import Path

from common.data import fill_prompt
from common.images import center_crop_resize, grid, load_image, save_png
from common.runs import atomic_path
from common.tables import Summary, by_method, find, published_table
from lipschitz_personalize.options import TOKEN
from lipschitz_personalize.reproduction.plan import lambda_sweep
from lipschitz_personalize.reproduction.rows import Bench


def draw(bench: Bench, names: list[str], rows: list[dict]) -> None:
    """grid.png of all methods, and the figures that were asked for."""
    args = bench.args
    sweep = [name for name in lambda_sweep(args.pretrained_model_name_or_path) if name in names]
    sheets = {"grid.png": names[:12]}
    if 3 in args.figure:
        sheets["figure_3.png"] = [name for name in names if name not in sweep]
    if 5 in args.figure:
        sheets["figure_5.png"] = sweep
    for file, shown in sheets.items():
        side_by_side(bench, shown, Path(args.output_dir) / file)
    if {2, 4} & set(args.figure):
        curves(args, rows, sweep)


def side_by_side(bench: Bench, names: list[str], path: Path) -> None:
    """A row per subject and prompt (the first three prompts), a column per method, the subject itself in front."""
    lines, labels = [], []
    for subject in bench.subjects[:4]:
        for number, template in enumerate(bench.templates(subject)[:3]):
            drawn = [load_image(bench.picture(name, subject, bench.args.seeds[0], number, 0)) for name in names]
            lines.append([center_crop_resize(load_image(subject.paths[0]), drawn[0].width), *drawn])
            labels.append(fill_prompt(template, TOKEN, subject.class_name))
    save_png(path, grid(lines, labels, ["subject", *names]))


def curves(args: argparse.Namespace, rows: list[dict], sweep: list[str]) -> None:
    """Figs. 2 and 4, those that were asked for."""
    from matplotlib.figure import Figure

    summary = by_method([row for row in rows if row["method"] in sweep])
    weights = {row["method"]: row["l2_reg_weight"] for row in rows if row["method"] in sweep}
    for number, plot in ((2, figure_2), (4, figure_4)):
        if number in args.figure:
            figure = Figure((8, 3.2), layout="constrained")
            plot(figure.subplots(1, 2), summary, dict(sorted(weights.items(), key=lambda pair: pair[1])))
            with atomic_path(Path(args.output_dir) / f"figure_{number}.png") as temporary:
                figure.savefig(temporary, dpi=100)


def figure_2(axes, summary: dict[str, Summary], weights: dict[str, float]) -> None:
    """Fig. 2: ||delta theta|| and ||delta eps|| over lambda, published beside measured, each relative to lambda = 0.
    Lambda counts in multiples of the first one above zero."""
    unit = next((weight for weight in weights.values() if weight > 0), 1.0)
    published = [row["values"] for row in published_table("lipschitz_personalize", "figure_2")["rows"]]
    for axis, key, column in zip(axes, ("delta_theta_sum", "delta_eps"), (1, 2), strict=True):
        values = [summary[name][key] for name in weights]
        first = values[0]["mean"] or 1.0
        around = [[abs(value[end] - value["mean"]) / first for value in values] for end in ("low", "high")]
        axis.errorbar([weight / unit for weight in weights.values()], [value["mean"] / first for value in values],
                      around, marker="o", label="measured")  # fmt: skip
        axis.plot([p[0] / 500 for p in published], [p[column] / published[0][column] for p in published], "x--",
                  label="published (SD 1.5, read off)")  # fmt: skip
        axis.set(xlabel=f"lambda / {unit:g}", ylabel=f"{key} / that at 0", ylim=(0, None))
    axes[0].legend()


def figure_4(axes, summary: dict[str, Summary], weights: dict[str, float]) -> None:
    """Fig. 4: fidelity against prompt adherence along lambda."""
    for axis, score in zip(axes, ("DINO", "CLIP-I"), strict=True):
        points = [tuple(find(summary[name], one)["mean"] for one in (score, "CLIP-T")) for name in weights]
        axis.plot(*zip(*points, strict=True), "o-")
        for weight, point in zip(weights.values(), points, strict=True):
            axis.annotate(f"{weight:g}", point)
        axis.set(xlabel=score, ylabel="CLIP-T")
