"""From the rows of the paper's tables to methods with every setting, each under a name of its own.

A name is the inversion and the engine, and after @ what departs from preset inversion_only and from the flags' values:
spd+p2p, spd+p2p@as_released, spd+p2p@proximal, spd+p2p@spd_rounds=5.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from common.tables import published_table
from spdinv import options, presets
from spdinv.engines import ENGINES
from spdinv.inversions import INVERSIONS, OWN

FACTORS = SWITCHES = tuple(one.name for one in presets.SWITCH_SETTINGS)  # extras that are on or off


@dataclass(frozen=True)
class Row:
    """One line of a published table. name: of its method in result rows. method: None for a baseline. needs: what is
    lacking to run it, if anything is."""

    label: list[str]
    name: str
    method: options.Method | None
    needs: str = ""

    def config(self) -> dict[str, Any]:
        """For --print_config: everything that is settled about the row."""
        settled, needs = vars(self.method) if self.method else {}, {"needs": self.needs} if self.needs else {}
        return {"row": " ".join(self.label), "name": self.name, **settled, **needs}


def named(args: argparse.Namespace, inversion: str, engine: str, **settings: Any) -> tuple[str, options.Method]:
    """One inversion and engine, with these settings in the place of the flags': its name in result rows, and the
    method with all settings."""
    own = argparse.Namespace(**{**vars(args), **settings})
    preset = presets.PRESETS[own.preset].get(engine, {})
    tags = [own.preset] if own.preset != "inversion_only" else []
    for switch in SWITCHES:
        value = getattr(own, switch)
        if value is not None and value != preset.get(switch, False):
            tags.append(switch if value else f"no_{switch}")
    tags += ["null_source_prompt"] if getattr(own, "null_source_prompt", False) else []
    tags += ["elite"] if own.elite else []
    tags += [Path(path).stem for path in own.adapter or []]
    others = settings.keys() - {"preset", "elite", "adapter", *SWITCHES}
    tags += [f"{name}={settings[name]:g}" for name in sorted(others) if settings[name] != getattr(args, name)]
    name = f"{inversion}+{engine}" + ("@" + ",".join(tags) if tags else "")
    return name, options.method_of(own, inversion, engine)


def parts(name: str) -> tuple[str, str, str]:
    """spd+p2p@as_released is ("spd", "p2p", "as_released"); what a name lacks is ""."""
    pair, _, tags = name.partition("@")
    return *pair.partition("+")[::2], tags


def title(name: str) -> str:
    """What tables and pages call a method: "spd+p2p@as_released" is "SPDInv + P2P, as released"."""
    inversion, engine, tags = parts(name)
    known = ((INVERSIONS, inversion), (ENGINES, engine))
    called = [entries[one].title if one in entries else one for entries, one in known if one]
    return ", ".join([" + ".join(called), *filter(None, tags.replace("_", " ").split(","))])


def order(names: Iterable[str]) -> list[str]:
    """As tables and pages show them: engine by engine, in each preset by preset, in each the inversions in order."""

    def place(name: str) -> tuple:
        inversion, engine, tags = parts(name)
        known = ((ENGINES, engine), (presets.PRESETS, tags or "inversion_only"), (INVERSIONS, inversion))
        return (*([*listed].index(one) if one in listed else len(listed) for listed, one in known), name)

    return sorted(names, key=place)


def every() -> list[str]:
    """The names of all inversions under all engines and presets, as pages show them."""
    tags = ("" if preset == "inversion_only" else f"@{preset}" for preset in presets.PRESETS)
    return order(f"{inversion}+{engine}{tag}" for tag in tags for engine in [*ENGINES][1:] for inversion in INVERSIONS)


def table_rows(args: argparse.Namespace, preset: str) -> list[Row]:
    """The rows of table `args.table`, in its order. preset: of the rows with the paper's own inversion; the others have
    no extras, as in the published runs."""
    table, rows = published_table("spdinv", args.table), []
    for line in table["rows"]:
        pair = line.get("method") or table.get("method")
        if pair is None:
            asked = line["baseline"] in args.baselines
            rows.append(Row(line["label"], line["baseline"], None, "" if asked else line["needs"]))
            continue
        inversion, engine = pair.split("+")
        settings = {"preset": preset if inversion == OWN else "inversion_only", **line.get("settings", {})}
        wants_elite = "elite" in settings  # and then it is the only row to be run, on ELITE's words
        if args.elite and wants_elite:
            settings["elite"] = args.elite
        needs = "" if wants_elite == bool(args.elite) else line.get("needs", "a model without --elite")
        name, method = named(args, inversion, engine, **settings)
        rows.append(Row(line["label"], name, method, needs))
    return rows


def chosen(args: argparse.Namespace, row: Row) -> bool:
    """Whether a row is to be run: it can be, and --inversions and --engines, where given, have it."""
    if row.needs or row.method is None:
        return not row.needs  # a baseline is run where --baselines asks for it
    return row.method.inversion in (args.inversions or INVERSIONS) and row.method.engine in (args.engines or ENGINES)


def measured_lines(args: argparse.Namespace, summary: dict[str, dict]) -> dict[str, list[dict | None]]:
    """Per preset what was measured of each row of the table; a row that no preset changes stands under the first."""
    lines, shown = {}, set()
    for preset in args.presets:
        table = list(enumerate(table_rows(args, preset)))
        lines[preset] = [summary.get(row.name) if chosen(args, row) and (i, row.name) not in shown else None
                         for i, row in table]  # fmt: skip
        shown |= {(i, row.name) for i, row in table}
    return lines


def factorial(args: argparse.Namespace) -> dict[tuple[bool, ...], tuple[str, options.Method]]:
    """Every combination of inversion and extras under p2p: (spd, not ddim, and each of FACTORS on) -> name, method."""
    cells = {}
    for own, *on in product((False, True), repeat=1 + len(FACTORS)):
        extras = dict(zip(FACTORS, on, strict=True))
        cells[own, *on] = named(args, OWN if own else "ddim", "p2p", preset="inversion_only", **extras)
    return cells


def plan(args: argparse.Namespace) -> dict[str, options.Method]:
    """All methods that the flags ask for, each once, under their names."""
    wanted: list[tuple[str, options.Method]] = []
    for preset in args.presets:
        if args.table:
            wanted += [(row.name, row.method) for row in table_rows(args, preset) if row.method and chosen(args, row)]
        elif args.inversions or args.engines or not args.factorial:
            wanted += [named(args, inversion, engine, preset=preset) for engine in args.engines or ["p2p"]
                       for inversion in args.inversions or ["ddim", OWN]]  # fmt: skip
    return dict(wanted) | dict(factorial(args).values() if args.factorial else ())
