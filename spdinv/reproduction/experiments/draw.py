"""The experiments' figures, with matplotlib. Each draws one panel per title and one line or cloud per inversion."""

from pathlib import Path

import numpy as np

from common.runs import atomic_path
from common.tables import Summary, find


def panels(titles: list[str], width: float = 4.4, height: float = 3.5):
    """A figure, and an axis under each title, side by side; no screen is needed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(titles), height), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    return figure, axes


def save(figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def gap_curves(path: Path, curves: dict[str, dict[str, np.ndarray]]) -> None:
    """Supplement A, Fig. 2: D_noi against the inversion step; curves [N, T+1], the band is one standard error."""
    figure, axes = panels(list(curves))
    for axis, lines in zip(axes, curves.values(), strict=True):
        for name, gap in lines.items():
            mean, error = gap.mean(0), gap.std(0) / len(gap) ** 0.5
            (line,) = axis.plot(mean, label=name)
            axis.fill_between(range(len(mean)), mean - error, mean + error, color=line.get_color(), alpha=0.2, lw=0)
        axis.set(xlabel="inversion step", ylim=(0, None))
    axes[0].set_ylabel("noise gap $D_{noi}$")
    axes[0].legend()
    save(figure, path)


def code_maps(path: Path, codes: dict[str, dict[str, np.ndarray]], seed: int = 0) -> None:
    """Supplement A, Fig. 1: t-SNE of Gaussian and inverted noise codes [N, ...], together in each panel."""
    from sklearn.manifold import TSNE

    figure, axes = panels(list(codes))
    for axis, clouds in zip(axes, codes.values(), strict=True):
        flat = np.concatenate([cloud.reshape(len(cloud), -1) for cloud in clouds.values()])
        perplexity = min(30.0, (len(flat) - 1) / 3)
        places = TSNE(perplexity=perplexity, random_state=seed, init="pca").fit_transform(flat)
        for name, xy in zip(clouds, np.split(places, len(clouds)), strict=True):
            axis.scatter(*xy.T, s=10, label=name, alpha=0.8)
        axis.set(xticks=[], yticks=[])
    axes[0].legend()
    save(figure, path)


def convergence(path: Path, rows: dict[str, list[dict]], threshold: float) -> None:
    """Sec. 3.2: per timestep the residual after so many rounds (median over pictures), and the rounds spent. rows: by
    inversion, with "residuals" [T][rounds + 1] and "rounds_per_step" [T] of each picture."""
    figure, axes = panels([*rows, "rounds spent"])
    for axis, of_name in zip(axes, rows.values(), strict=False):
        by_step = list(zip(*(row["residuals"] for row in of_name), strict=True))
        for place, called in ((0, "guess"), (1, "1 round"), (2, "2 rounds"), (5, "5 rounds"), (-1, "settled")):
            seen = [[losses[place] for losses in pictures if len(losses) > place] for pictures in by_step]
            if any(seen):
                medians = [np.median(values) if values else np.nan for values in seen]
                axis.plot(range(1, 1 + len(seen)), medians, label=called, lw=2.5 if place == -1 else 1.2)
        axis.axhline(threshold, color="black", ls="--", lw=1, label="threshold")
        axis.set(xlabel="inversion step", yscale="log")
        axis.legend(fontsize=8)
    axes[0].set_ylabel("residual, mean of $(f(x) - x)^2$")
    for name, of_name in rows.items():
        spent = np.mean([row["rounds_per_step"] for row in of_name], axis=0)
        axes[-1].plot(range(1, 1 + len(spent)), spent, label=name)
    axes[-1].set(xlabel="inversion step", ylabel="rounds, mean over pictures")
    axes[-1].legend()
    save(figure, path)


def what_helps(path: Path, summary: dict[str, Summary]) -> None:
    """Background PSNR and edit success of methods, in the order of `summary`, coloured by preset."""
    found = {score: {name: find(own, score, "pie_official") for name, own in summary.items()}
             for score in ("psnr", "edit_success")}  # fmt: skip
    found = {score: values for score, values in found.items() if all(values.values())}
    figure, axes = panels(list(found), width=5.5, height=0.9 + 0.28 * len(summary))
    colours = list(dict.fromkeys(name.partition("@")[2] for name in summary))
    for axis, values in zip(axes, found.values(), strict=True):
        for place, (name, one) in enumerate(values.items()):
            reach = [[one["mean"] - one["low"]], [one["high"] - one["mean"]]]
            colour = f"C{colours.index(name.partition('@')[2])}"
            axis.errorbar(one["mean"], -place, xerr=reach, fmt="o", color=colour, capsize=3)
        axis.set_yticks([-place for place in range(len(values))], list(values), fontsize=8)
    save(figure, path)


def mechanism(true: np.ndarray, found: dict[str, np.ndarray]):
    """The way down from known noise and the ways back up, as a figure. true, found: latents [T+1, ...] of one picture,
    clean first. Left: seen from where they differ most (along the noise, and across it). Right: D_noi."""
    figure, (left, right) = panels(["from z_0 (left) to the noise z_T (right)", "the gap, level by level"], 5.0, 3.6)
    flat = {name: path.reshape(len(true), -1) for name, path in {"the true way": true, **found}.items()}
    way = flat["the true way"]
    along = (way[-1] - way[0]) / np.linalg.norm(way[-1] - way[0])
    first = next(iter(found))
    across = flat[first][-1] - way[-1]
    across = across - across @ along * along
    across /= np.linalg.norm(across)
    for name, path in flat.items():
        style = {"color": "black", "lw": 3, "alpha": 0.35} if name == "the true way" else {}
        left.plot((path - way[0]) @ along, (path - way[0]) @ across - (way - way[0]) @ across, label=name, **style)
        if name != "the true way":
            right.plot(((path - way) ** 2).mean(1), label=name, color=left.lines[-1].get_color())
    left.set(xlabel="along the true way", ylabel="off it", xticks=[], yticks=[])
    right.set(xlabel="inversion step", ylabel="$D_{noi}$")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure
