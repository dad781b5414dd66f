"""What a perfect classifier would read in a picture, and the numbers that are in its file."""

import numpy as np
from PIL import Image

from common.picturebook.classifier import Reading
from common.picturebook.scenes import KINDS, Scene


def pixels(picture) -> np.ndarray:
    """Of a picture or a file, int [H, W, 3]."""
    picture = picture if isinstance(picture, Image.Image) else Image.open(picture)
    return np.asarray(picture.convert("RGB")).astype(int)


def reading_of(scene: Scene) -> Reading:
    """The kinds that are there, in order of presence, then those that are not."""
    things = [
        {"kind": t.kind, "color": t.color, "material": t.material, "hat": t.hat, "facing": t.facing, "pose": t.pose,
         "presence": 1.0}
        for t in scene.things
    ]  # fmt: skip
    absent = [kind for kind in KINDS if kind not in {t.kind for t in scene.things}]
    blank = {"color": "red", "material": "plain", "hat": False, "facing": "right", "pose": "standing", "presence": 0.0}
    return Reading(scene.background, scene.light, scene.style, things + [blank | {"kind": kind} for kind in absent])
