"""A track's pictures as the page holds them: encoded once within a budget, in rows per item, changed words marked."""

import base64
import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from common.images import load_image
from eval.tracks.track import Item, Picture

# (largest side, quality), the first at which all pictures fit their budget; pictures are reduced, never enlarged.
# None: pictures of up to LOSSLESS pixels a side are kept exactly, larger ones at 90.
LEVELS = ((1024, None), (1024, 90), (512, 85), (256, 80), (128, 75), (64, 70))
LOSSLESS = 128
THUMBNAIL = (56, 80)
Encoded = tuple[str, int, int]  # data URI, width, height


def encode(path: Path, largest: int, quality: int | None) -> Encoded | None:
    """A picture as WebP, its sides at most `largest`; None if its file is gone."""
    if not path.is_file():
        return None
    image = load_image(path)
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    exact = quality is None and max(image.size) <= LOSSLESS
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=exact, quality=30 if exact else quality or 90, method=1 if exact else 4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), *image.size


def encode_all(paths: Iterable[Path], budget: int) -> dict[Path, Encoded]:
    """Every picture that is there, all at the best level at which they take at most `budget` bytes together."""
    paths = list(dict.fromkeys(paths))
    for level in LEVELS:
        found, taken = {}, 0
        for path in paths:
            if encoded := encode(path, *level):
                found[path] = encoded
                taken += len(encoded[0])
            if taken > budget and level != LEVELS[-1]:
                break
        else:
            break
    return found


def item_view(item: Item, methods: dict[str, str], encoded: dict[Path, Encoded]) -> dict[str, Any]:
    """One item: prompts as (word, changed) pairs, the pictures that are given, and a cell per method."""
    source, target = marked(item.source_prompt, item.target_prompt)
    given = [cell(picture, picture.label, item, encoded) for picture in item.pictures if picture.method == ""]
    cells = []
    for method in (name for name in methods if any(picture.method == name for picture in item.pictures)):
        own = [picture for picture in item.pictures if picture.method == method]
        main = cell(own[-1], methods[method], item, encoded)
        before = cell(own[0], methods[method] + ", reconstruction", item, encoded) if len(own) > 1 else None
        cells.append(main | {"before": before})
    thumbnail = next((encode(picture.path, *THUMBNAIL) for picture in item.pictures), None)
    return {"item": item, "source": source, "target": target, "given": given, "cells": cells, "thumbnail": thumbnail}


def cell(picture: Picture, name: str, item: Item, encoded: dict[Path, Encoded]) -> dict[str, Any]:
    """A picture with its name and what to say of it where it cannot be seen."""
    prompt = item.target_prompt if picture.method or picture.label == "true edit" else item.source_prompt
    alt = f"{name}: {prompt}" if prompt else name
    return {"name": name, "alt": alt, "image": encoded.get(picture.path), "success": picture.success, "before": None}


def marked(source: str, target: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both prompts as (word, whether it is not in the other) pairs."""
    words: tuple[list[str], list[str]] = (source.split(), target.split())
    found: tuple[list, list] = ([], [])
    for tag, a, b, c, d in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        found[0].extend((word, tag != "equal") for word in words[0][a:b])
        found[1].extend((word, tag != "equal") for word in words[1][c:d])
    return found


def strip(views: list[dict[str, Any]], methods: list[str]) -> dict[str, Any] | None:
    """For the first screen: of the first item that has them all, what is given first and last, and these methods."""
    for view in views:
        cells = [cell for name in methods for cell in view["cells"] if cell["name"] == name and cell["image"]]
        if len(cells) == len(methods):
            given = [cell for cell in view["given"] if cell["image"]]
            return {"item": view["item"], "cells": given[:1] + given[1:][-1:] + cells}
    return None
