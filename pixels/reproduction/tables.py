"""Result rows to tables: means with intervals, published beside measured."""

import csv
import io
from pathlib import Path

from common import tables
from common.runs import atomic_path, bootstrap_interval
from common.tables import Summary, text_table
from pixels.edit_map import THRESHOLDS, thresholds

FACTORS = {"CLIP-I": 100.0}  # printed value over stored value
# What the other thresholds let go, against linear (Sec. "Mask Thresholding Strategies", Appendix 5).
EXPECTED = {"log": "more", "quadratic": "less", "cubic": "less", "sigmoid": "much like linear"}
PROTOCOLS = {"CLIP-I": "same_box"}  # the reading that stands in the paper's table


def write_csv(path: str | Path, rows: list[dict]) -> None:
    """One line per item and method."""
    keys = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", "method", *keys])
    for row in rows:
        writer.writerow([row["item"], row["method"], *(row["metrics"].get(key, "") for key in keys)])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def of_methods(name: str, summary: dict[str, Summary]) -> dict[str, Summary]:
    """What beside_published takes of a summary: all of it, for methods that no published row has follow the table."""
    return summary


def beside_published(name: str, measured: dict[str, dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables), and the methods that the paper does not have (the paste
    control, above all) after it.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and the summaries.
    """
    return tables.beside_published(tables.published_table("pixels", name), measured, PROTOCOLS, FACTORS)


def threshold_areas(bench) -> str:
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
