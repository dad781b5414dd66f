import random

import pytest

from common.images import save_png
from eval.tracks.track import Item, Picture, Run, Track
from tests.small_data import noise
from tests.tiny import tiny_sd

METHODS = {"ddim+p2p": "DDIM + P2P", "spd+p2p": "SPDInv + P2P"}


def make_row(method, item, metrics, **extra):
    row = {"paper": "spdinv", "method": method, "item": item, "seed": 0, "metrics": metrics, "edit_type": "6",
           "seconds": 2.0, "inversion_seconds": 1.0, "peak_memory_mb": 10.0}  # fmt: skip
    return row | extra


def pairs(key, baseline, method):
    """Rows of two methods whose scores on item 0, 1, … are the given ones."""
    return [make_row(name, str(number), {key: value}) for name, values in zip(METHODS, (baseline, method), strict=True)
            for number, value in enumerate(values)]  # fmt: skip


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A folder of a Stable Diffusion of two levels: pictures of 32 pixels, latents of 8."""
    folder = tmp_path_factory.mktemp("model")
    tiny_sd(folder, latent=8, channels=(16, 32))
    return folder


@pytest.fixture
def track(tmp_path):
    """A track of ten synthetic items with pictures, ready for the report."""
    rng, rows, items = random.Random(0), [], []
    for number in range(10):
        place, item = tmp_path / "pictures" / str(number), f"item{number}"
        for name in ("source", *METHODS):
            save_png(place / f"{name}.png", noise((8, 8)))
        pictures = [Picture("source", place / "source.png")]
        for shift, method in enumerate(METHODS):
            score = 20 + 5 * shift + rng.random()
            metrics = {"edit_success (picturebook)": float(number % 2), "psnr_reconstruction": score}
            metrics |= {"psnr/pie_official": score, "lpips/pie_official (picturebook)": 0.1 - 0.05 * shift}
            rows.append(make_row(method, item, metrics))
            pictures.append(Picture("edit", place / f"{method}.png", method, bool(number % 2)))
        items.append(Item(item, "change color", f"a red cat number {number}", f"a blue cat number {number}", pictures))
    config = {"dataset": "picturebook", "metric_encoders": "picturebook", "date": "2026-01-02", "limit": 10,
              "provenance": {"git_revision": "0123456789abcdef", "dirty": False, "torch": "2.x"}}  # fmt: skip
    return Track(
        name="text_editing", title="Text-driven editing", about="Two methods.", methods=METHODS,
        columns=["edit_success", "psnr/pie_official", "lpips/pie_official", "psnr_reconstruction", "seconds"],
        runs=[Run("this run", rows, config)], items=items,
        commands={name: f"python -m spdinv.eval --inversions {name}" for name in METHODS},
        papers={"A paper": "https://arxiv.org/abs/2403.11105"}, published="spdinv:1",
        breakdown=["psnr/pie_official"], own="spd+p2p",
    )  # fmt: skip
