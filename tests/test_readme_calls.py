"""The Python of every paper's README runs as printed, on the picturebook, and leaves a picture."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.picturebook.drawing import draw
from common.picturebook.scenes import Scene, Thing

ROOT = Path(__file__).parents[1]
PAPERS = ("spdinv", "svdiff", "lipschitz_personalize", "pixels", "image_inpaint")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the READMEs name."""
    scene = Scene((Thing("cat", "red", size=0.3),))
    drawn = draw(scene)
    drawn.picture.save(tmp_path / "picture.png")
    other = replace(scene, things=(Thing("dog", "blue", size=0.3),), background="snow")
    draw(other).picture.save(tmp_path / "exemplar.png")
    Image.fromarray((255 * drawn.masks[0]).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))).save(tmp_path / "map.png")
    (tmp_path / "subject").mkdir()
    for number in range(3):
        picture = draw(Scene((Thing("cat", "red", x=0.4 + 0.1 * number, size=0.3, marking=7),), seed=number)).picture
        picture.save(tmp_path / "subject" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("paper", PAPERS)
def test_the_python_of_a_readme_runs_as_printed(here, paper):
    page = (ROOT / paper / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    known = {}
    exec(compile(blocks[0], f"{paper}/README.md", "exec"), known)  # noqa: S102
    edited = known["edited"]
    assert edited.size == (64, 64) and np.asarray(edited).std() > 5
    assert not np.array_equal(np.asarray(edited), np.asarray(Image.open(here / "picture.png")))
