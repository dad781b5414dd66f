"""What the figures share: their first columns, and how they are written."""

from typing import Any

from PIL import Image

from common.images import grid, save_png
from common.runs import write_json
from pixels.frames import to_picture
from pixels.reproduction.scoring import Bench, full_map


def finish(bench: Bench, name: str, sheet: list, rows: list[str], columns: list[str], numbers: Any) -> None:
    """The figure's picture and numbers, and where they are."""
    save_png(bench.output / f"{name}.png", grid(sheet, rows, columns))
    write_json(bench.output / f"{name}.json", numbers)
    print(f"{bench.output / f'{name}.png'}, numbers beside it")


def inputs(loaded: dict[str, Any], size: tuple[int, int]) -> list[Image.Image]:
    """Source, first exemplar and map as pictures."""
    full = full_map(loaded, size)
    return [to_picture(loaded["source"]), to_picture(loaded["exemplars"][0]), to_picture(full.expand(-1, 3, -1, -1))]
