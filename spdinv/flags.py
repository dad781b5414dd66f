"""Types of flags, for argparse. Nothing heavy is imported here."""

import argparse
from collections.abc import Callable

from common.flags import number


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
