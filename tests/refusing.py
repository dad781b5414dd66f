"""How tests ask whether wrong input is refused."""

from collections.abc import Callable

import pytest

from common.files import InputError


def refuses(words: str, call: Callable, *arguments, **named) -> None:
    """The call raises InputError, whose one sentence matches the words."""
    with pytest.raises(InputError, match=words or ".") as refusal:
        call(*arguments, **named)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 600
