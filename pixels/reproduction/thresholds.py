"""Figures 7, 10 and 11: what the threshold functions do, from rows of pixels.eval."""

from common.runs import bootstrap_interval
from common.tables import text_table
from pixels.edit_map import THRESHOLDS, thresholds
from pixels.reproduction.scoring import Bench

EXPECTED = {"log": "more", "quadratic": "less", "cubic": "less", "sigmoid": "much like linear"}  # Sec. 5, Appendix 5


def threshold_areas(bench: Bench) -> str:
    """Area under each threshold's curve (Fig. 11): the share of cells and steps that a ramp of all greys lets go."""
    loaded_steps = len(bench.bind({"exemplars": [None]}).start())
    lines = [[name, f"{thresholds(name, loaded_steps, bench.surgery.schedule).mean():.4f}"] for name in THRESHOLDS]
    return text_table([["threshold", f"area under the curve, N = {loaded_steps}"], *lines])


def threshold_changes(rows: list[dict]) -> str:
    """The claims of Figures 7 and 10: how much more than under the linear threshold the grey zone leaves the source,
    paired over items, with 95 % intervals; what the paper expects beside it."""
    change = {(row["method"], row["item"]): row["metrics"]["mse_grey"] for row in rows}
    items = [item for method, item in change if method == "pixels"]
    ran = {method for method, _ in change}
    lines = []
    for name, expected in EXPECTED.items():
        if not {"pixels", f"pixels_{name}"} <= ran:
            continue
        changes = [change[f"pixels_{name}", item] - change["pixels", item] for item in items]
        mean, low, high = (1e4 * value for value in bootstrap_interval(changes))
        lines.append([name, f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", expected])
    return text_table([["threshold", "change of the grey zone - linear's, MSE x1e4", "the paper expects"], *lines])
