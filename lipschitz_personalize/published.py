"""The paper's tables, as printed (published.toml). Nothing heavy is imported here."""

import tomllib
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parent / "published.toml"


def published_table(name: str) -> dict[str, Any]:
    """One table or figure: title, place, columns, doubts, rows."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))[name]
