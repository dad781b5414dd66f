import pytest

from tests.tiny import tiny_sd


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small random Stable Diffusion in a folder: 16x16 latents, 64x64 pictures."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_sd(folder)
    return folder
