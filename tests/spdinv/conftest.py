import pytest

from tests.tiny import tiny_sd


@pytest.fixture(scope="module")
def pipe():
    """A small random Stable Diffusion."""
    return tiny_sd()
