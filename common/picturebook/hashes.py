"""Names of what the picturebook draws and of its weights: rows and caches carry them, so that old ones are known."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DRAWING = ("scenes", "brush", "things", "backgrounds", "drawing")
BENCHMARKS = ("edits", "benchmarks")


def meaning(path: Path) -> str:
    """A Python file without comments, docstrings and line breaks: what an edit of wording leaves as it is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0] = ast.Pass()
    return ast.dump(tree)


@cache
def drawing_hash(modules: tuple[str, ...] = DRAWING) -> str:
    """Twelve hexadecimal digits of the code that draws scenes (with BENCHMARKS added: of what the data sets hold)."""
    return hashlib.sha256("".join(meaning(HERE / f"{name}.py") for name in modules).encode()).hexdigest()[:12]


@cache
def weights_hash(part: str = "") -> str:
    """Twelve hexadecimal digits of the shipped weights: of one part ("unet"), or of all."""
    digest = hashlib.sha256()
    for path in sorted((HERE / "models" / part).rglob("*.safetensors")):
        digest.update(path.relative_to(HERE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
