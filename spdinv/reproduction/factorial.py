"""How much of SPDInv's gain each ingredient explains: the factorial over inversion and extras (rows.factorial).

A cell is (spd instead of ddim, *each of rows.FACTORS on). Everything is paired: items count that have a finite score in
every cell, effects are computed item by item, and the interval is the bootstrap over items.
"""

from itertools import permutations

import numpy as np

from common.metrics import PIE_SCORES, parse_key
from common.tables import cell, text_table
from spdinv.reproduction.rows import FACTORS
from spdinv.reproduction.tables import interval_of, wanted_keys

Cell = tuple[bool, ...]
NAMES = ("spd instead of ddim", *FACTORS)
PLAIN = (False,) * len(NAMES)
RELEASED = (True, True, True, True, False)  # what preset as_released switches on under p2p: no colour fix
WANTED = ("edit_success", "psnr_truth", "lpips_truth", *(f"{name}/pie_official" for name in (
    "structure", "psnr", "lpips", "mse", "ssim", "clip_whole")))  # fmt: skip


def collect(rows: list[dict], cells: dict[Cell, str], key: str) -> dict[Cell, np.ndarray]:
    """Per cell the scores [N] of the items that have a finite one everywhere. cells: to method names."""
    found = {(row["method"], row["item"]): row["metrics"].get(key, np.nan) for row in rows}
    items = list(dict.fromkeys(row["item"] for row in rows))
    grid = np.array([[found.get((name, item), np.nan) for item in items] for name in cells.values()], dtype=float)
    return dict(zip(cells, grid[:, np.isfinite(grid).all(axis=0)], strict=True))


def main_effect(scores: dict[Cell, np.ndarray], factor: int) -> np.ndarray:
    """Item by item, [N]: the mean over the cells with the factor on, less that over the cells with it off."""
    on, off = ([values for cell, values in scores.items() if cell[factor] is side] for side in (True, False))
    return np.mean(on, axis=0) - np.mean(off, axis=0)


def shares(scores: dict[Cell, np.ndarray], start: Cell = PLAIN, end: Cell = RELEASED) -> dict[int, np.ndarray]:
    """What each factor contributes on the way from one cell to another, item by item; the shares add up to the gain.
    Shapley's value: the change that switching the factor makes, averaged over all orders of switching."""
    players = [factor for factor, (a, b) in enumerate(zip(start, end, strict=True)) if a != b]
    found, orders = dict.fromkeys(players, 0.0), list(permutations(players))
    for order in orders:
        cell = list(start)
        for player in order:
            before, cell[player] = scores[tuple(cell)], end[player]
            found[player] = found[player] + (scores[tuple(cell)] - before) / len(orders)
    return found


def effects(rows: list[dict], cells: dict[Cell, str]) -> dict[str, dict[str, dict]]:
    """{score: {line of the table: interval}}, for the scores that matter."""
    keys = dict.fromkeys(key for row in rows for key in row["metrics"])
    result = {}
    for key in wanted_keys(list(keys), WANTED):
        scores = collect(rows, cells, key)
        lines = {f"main effect: {name}": main_effect(scores, i) for i, name in enumerate(NAMES)}
        lines["gain of all that is released over plain DDIM"] = scores[RELEASED] - scores[PLAIN]
        lines |= {f"  of it: {NAMES[i]}": share for i, share in shares(scores).items()}
        result[key] = {line: interval_of(values) for line, values in lines.items()}
    return result


def table(found: dict[str, dict[str, dict]]) -> str:
    """Effects down, scores across, in the units of the published tables."""
    if not found:
        return "No factorial: the rows have none of its scores."
    lines = [["Prompt-to-Prompt, change of score [95 % interval]", *found]]
    for line in next(iter(found.values())):
        factors = [PIE_SCORES.get(parse_key(key)["name"], ("", 1.0))[1] for key in found]
        cells = [cell(found[key][line], factor) for key, factor in zip(found, factors, strict=True)]
        lines.append([line, *cells])
    return text_table(lines)
