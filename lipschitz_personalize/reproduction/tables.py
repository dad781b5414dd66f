"""The paper's tables with what was measured in them."""

from common import tables
from common.tables import Summary, published_table

COSTS = ("train_seconds", "class_seconds", "peak_memory_mb")  # of a row, beside its metrics


def of_methods(name: str, summary: dict[str, Summary], backbone: str = "sd") -> list[Summary | None]:
    """For each row of a published table what was measured of the same method, if anything; of one backbone alone."""
    rows = published_table("lipschitz_personalize", name)["rows"]
    return [summary.get(row.get("method")) if row.get("backbone", "sd") == backbone else None for row in rows]


def beside_published(name: str, measured: dict[str, list[Summary | None] | dict[str, Summary]]) -> str:
    """A published table with what was measured (common.tables); the arena's scores are of protocol dreambench, and its
    summaries by method are of Stable Diffusion or the picturebook: no other backbone's row has them."""
    table = published_table("lipschitz_personalize", name)
    lines = {called: of_methods(name, found) if isinstance(found, dict) else found
             for called, found in measured.items()}  # fmt: skip
    return tables.beside_published(table, lines, protocols=dict.fromkeys(table["columns"], "dreambench"))
