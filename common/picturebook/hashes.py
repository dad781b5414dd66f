"""Names of what the picturebook draws and of its weights: rows and caches carry them, so that old ones are known."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
DRAWING = ("scenes", "brush", "things", "backgrounds", "drawing")
BENCHMARKS = ("edits", "benchmarks", "compositions", "subjects")


def plain(node) -> str:
    """What ast.dump of Python 3.11 writes, in every version: later ones have more fields and leave out empty ones."""
    if isinstance(node, list):
        return f"[{', '.join(map(plain, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    kept = (
        (name, value)
        for name, value in ast.iter_fields(node)
        if name != "type_params" and not (value is None and getattr(type(node), name, ...) is None)
    )
    return f"{type(node).__name__}({', '.join(f'{name}={plain(value)}' for name, value in kept)})"


def meaning(source: str) -> str:
    """A Python file without comments, docstrings and line breaks: what an edit of wording leaves as it is."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant()), *_] as body:
                body[0] = ast.Pass()
    return plain(tree)


@cache
def drawing_hash(modules: tuple[str, ...] = DRAWING) -> str:
    """Twelve hexadecimal digits of the code that draws scenes: what trained networks saw."""
    texts = (meaning((HERE / f"{name}.py").read_text(encoding="utf-8")) for name in modules)
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


def data_hash() -> str:
    """Twelve hexadecimal digits of the code that draws the data sets: of scenes, items and subjects."""
    return drawing_hash(DRAWING + BENCHMARKS)


@cache
def _digest(path: Path, size: int, changed: int) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def weights_hash(*parts: str, models: Path = HERE / "models") -> str:
    """Twelve hexadecimal digits of weights: of some parts ("unet", "vae"), or of all; a file is read once per process.

    models: a folder in the layout of the shipped one. Raises FileNotFoundError where it holds no such part.
    """
    digest = hashlib.sha256()
    for part in sorted(parts or ("",)):
        paths = sorted((models / part).rglob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{models / part} holds no weights")
        for path in paths:
            facts = path.stat()
            name = path.relative_to(models).as_posix()
            digest.update(name.encode() + _digest(path, facts.st_size, facts.st_mtime_ns))
    return digest.hexdigest()[:12]
