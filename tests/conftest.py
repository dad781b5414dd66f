"""No test downloads anything, and all of them run on two threads, or in several processes on one thread each."""

import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # which has inherited the number of the process that started it
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

_connect = socket.socket.connect


def _local_only(self: socket.socket, address: object) -> None:
    """Let worker processes of one machine talk to each other, and nothing else."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"a test reached for the network: {address}")
    return _connect(self, address)


socket.socket.connect = _local_only

CAPTIONS = [
    ("a [red] cat on grass", "a [blue] cat on grass", "6", ("red", "blue")),
    ("a dog in the [snow]", "a dog in the [night sky]", "8", None),
    ("a [small] car", "a [big] car", "0", ("zebra", "big")),  # a word that its prompt lacks
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small random Stable Diffusion in a folder: 16x16 latents, 64x64 pictures."""
    from tests.tiny import tiny_sd

    folder = tmp_path_factory.mktemp("tiny")
    tiny_sd(folder)
    return folder


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Copies of the encoders of PIE-Bench, small and random."""
    from tests.tiny_encoders import write_encoders, write_trunk

    folder = write_encoders(tmp_path_factory.mktemp("encoders"))
    (folder / "clip").rename(folder / "clip-vit-large-patch14")
    (folder / "dino").rename(folder / "dino-vitb8")
    write_trunk("squeeze", folder / "squeezenet1_1-b8a52dc0.pth")
    return folder


@pytest.fixture(scope="session")
def benchmark(tmp_path_factory):
    """A PIE-Bench folder of three noise pictures of 64 pixels, with true edits; the second may change everywhere."""
    import numpy as np
    from PIL import Image

    from common.data import EditItem, write_pie_bench

    folder, rng, items = tmp_path_factory.mktemp("bench"), np.random.default_rng(0), []
    for number, (source, target, kind, words) in enumerate(CAPTIONS):
        for name in ("annotation_images", "truth"):
            (folder / name).mkdir(exist_ok=True)
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(folder / name / f"{number}.png")
        mask = (0, 64 * 64) if kind == "8" else (10 * 64, 20 * 64)  # start, length
        path, extras = folder / "annotation_images" / f"{number}.png", {"truth_path": f"truth/{number}.png"}
        items.append(EditItem(f"{number:012d}", path, source, target, "", kind, words, mask, (64, 64), extras=extras))
    write_pie_bench(folder, items)
    return folder
