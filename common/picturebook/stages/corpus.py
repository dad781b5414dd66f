"""The training pictures, drawn once into one array on disk, and their captions, worded anew each time."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.picturebook.drawing import draw
from common.picturebook.scenes import Scene, caption, sample_scene

FIRST_SEED = {"train": 0, "validation": 10_000_000, "test": 20_000_000}


def draw_block(seeds: range) -> np.ndarray:
    return np.stack([np.asarray(draw(sample_scene(seed)).picture) for seed in seeds])


class Corpus:
    """`count` training scenes: `pictures` uint8 [count, 64, 64, 3] (memory-mapped) and `scenes`.

    The array is drawn by all cores at the first use and found again afterwards.
    """

    def __init__(self, folder: Path, count: int, split: str = "train"):
        first = FIRST_SEED[split]
        self.scenes: list[Scene] = [sample_scene(first + index) for index in range(count)]
        path = folder / f"pictures_{split}_{count}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            blocks = [range(start, min(start + 200, first + count)) for start in range(first, first + count, 200)]
            with ProcessPoolExecutor() as pool:
                drawn = list(tqdm(pool.map(draw_block, blocks), total=len(blocks), desc="drawing", mininterval=5))
            temporary = path.with_suffix(".part.npy")
            np.save(temporary, np.concatenate(drawn))
            temporary.replace(path)
        self.pictures = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, indices) -> torch.Tensor:
        """Pictures [B, 3, 64, 64] in [0, 1]."""
        return (
            torch.from_numpy(self.pictures[np.sort(indices)][np.argsort(np.argsort(indices))]).permute(0, 3, 1, 2) / 255
        )

    def captions(self, indices, rng: random.Random) -> list[str]:
        return [caption(self.scenes[index], rng) for index in indices]


def order(count: int, batch_size: int, step: int, seed: int = 0) -> np.ndarray:
    """The indices of training step `step`: every scene once per epoch, in an order fixed by seed and epoch."""
    per_epoch = count // batch_size
    epoch, within = divmod(step, per_epoch)
    return np.random.default_rng([seed, epoch]).permutation(count)[within * batch_size : (within + 1) * batch_size]
