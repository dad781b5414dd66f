"""The paper's tables with what was measured in them."""

from common import tables
from common.tables import Summary

FACTORS = {"DINO": 100.0, "CLIP-I": 100.0}  # printed value over stored value
PROTOCOLS = {"DINO": "region", "CLIP-I": "region"}


def beside_published(name: str, measured: dict[str, dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables), and the methods that it lacks after it.

    measured: what a measured line is called (it says which pictures and encoders are behind it), and the summaries.
    """
    return tables.beside_published(tables.published_table("image_inpaint", name), measured, PROTOCOLS, FACTORS)
