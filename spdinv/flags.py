"""A setting of an inversion or an engine, and the flag that gives it. Nothing heavy is imported here."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from common.flags import number


@dataclass(frozen=True)
class Setting:
    """A keyword argument of an inversion's or engine's function, with its default there; flag: without the dashes.
    options: further arguments of argparse (type, choices, nargs, …)."""

    name: str
    default: Any
    flag: str
    help: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def setting(
    name: str, default: Any, help: str = "", type: Callable | None = None, owner: str = "", **options: Any
) -> Setting:
    """A setting with the flag --<owner>_<name>, or --<name> where it has no owner."""
    options |= {"type": type} if type else {}
    return Setting(name, default, f"{owner}_{name}" if owner else name, help, options)


def word_number(low: float, high: float = float("inf"), bare: str | None = None) -> Callable[[str], tuple[str, float]]:
    """An argparse type: WORD=NUMBER, the number from low to high; where `bare` is a word, NUMBER alone is for that."""
    value = number(float, low, high)

    def parse(text: str):
        word, equals, rest = text.rpartition("=")
        if word:
            return word, value(rest)
        if bare is None or equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not WORD=NUMBER, such as blue=2")
        return bare, value(rest)

    return parse
