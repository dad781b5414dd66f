"""Small random inpainting models, in memory and in a folder; sample sheets of two steps."""

import pytest

from tests.image_inpaint.models import tiny_inpainter


@pytest.fixture(scope="module")
def pipe():
    return tiny_inpainter()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_inpainter(folder)
    return folder


@pytest.fixture(autouse=True)
def short_sheets(monkeypatch):
    monkeypatch.setattr("image_inpaint.samples.STEPS", 2)
