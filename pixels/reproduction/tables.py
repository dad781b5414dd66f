"""Result rows to tables: means with intervals, published beside measured."""

from common import tables
from common.tables import Summary, text_table
from pixels.edit_map import THRESHOLDS, thresholds

FACTORS = {"CLIP-I": 100.0}  # printed value over stored value
PROTOCOLS = {"CLIP-I": "same_box"}  # the reading that stands in the paper's table


def of_methods(name: str, summary: dict[str, Summary]) -> dict[str, Summary]:
    """What beside_published takes of a summary: all of it, for methods that no published row has follow the table."""
    return summary


def beside_published(name: str, measured: dict[str, dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables), and the methods that the paper does not have (the paste
    control, above all) after it.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and the summaries.
    """
    return tables.beside_published(tables.published_table("pixels", name), measured, PROTOCOLS, FACTORS)


def threshold_areas(count: int, schedule: str) -> str:
    """Area under each threshold's curve (Fig. 11): the share of cells and steps that a ramp of all greys lets go."""
    lines = [[name, f"{thresholds(name, count, schedule).mean():.4f}"] for name in THRESHOLDS]
    return text_table([["threshold", f"area under the curve, N = {count}"], *lines])
