"""The training pictures, drawn once into one array on disk, and their captions, worded anew each time."""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.picturebook.drawing import draw
from common.picturebook.hashes import drawing_hash
from common.picturebook.scenes import Scene, caption, sample_scene

FIRST_SEED = {"train": 0, "validation": 10_000_000, "test": 20_000_000, "held_out": 30_000_000}


def scene_of(split: str, index: int) -> Scene:
    """Scene `index` of a split; "held_out" are scenes of the colours and kinds that no other training sees together."""
    return sample_scene(FIRST_SEED[split] + index, held_out=split == "held_out")


def draw_block(split: str, indices: range) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [n, 64, 64, 3], and where things are, as packed bits uint8 [n, 512]."""
    drawings = [draw(scene_of(split, index)) for index in indices]
    covered = np.stack([np.maximum.reduce(drawing.masks).astype(bool).ravel() for drawing in drawings])
    return np.stack([np.asarray(drawing.picture) for drawing in drawings]), np.packbits(covered, axis=1)


class Corpus:
    """`count` scenes of a split: `pictures` uint8 [count, 64, 64, 3] and `covered` uint8 [count, 512] (the things'
    masks as bits), both memory-mapped, and `scenes`.

    The arrays are drawn by all cores at the first use and found again afterwards.
    """

    def __init__(self, folder: Path, count: int, split: str = "train"):
        self.scenes: list[Scene] = [scene_of(split, index) for index in range(count)]
        name = f"{split}_{count}_{drawing_hash()}.npy"
        paths = folder / f"pictures_{name}", folder / f"masks_{name}"
        if not all(path.exists() for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
            blocks = [range(start, min(start + 200, count)) for start in range(0, count, 200)]
            with ProcessPoolExecutor() as pool:
                made = pool.map(partial(draw_block, split), blocks)
                drawn = list(tqdm(made, total=len(blocks), desc="drawing", mininterval=5))
            for path, arrays in zip(paths, zip(*drawn, strict=True), strict=True):
                temporary = path.with_name(f"{path.name}.{os.getpid()}.part.npy")
                np.save(temporary, np.concatenate(arrays))
                temporary.replace(path)
        self.pictures, self.covered = (np.load(path, mmap_mode="r") for path in paths)

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, indices) -> torch.Tensor:
        """Pictures [B, 3, 64, 64] in [0, 1]."""
        return (
            torch.from_numpy(self.pictures[np.sort(indices)][np.argsort(np.argsort(indices))]).permute(0, 3, 1, 2) / 255
        )

    def masks(self, indices) -> torch.Tensor:
        """Where things are, [B, 1, 64, 64] in {0, 1}."""
        bits = np.unpackbits(self.covered[np.asarray(indices)], axis=1).reshape(-1, 1, 64, 64)
        return torch.from_numpy(bits).float()

    def captions(self, indices, rng: random.Random) -> list[str]:
        return [caption(self.scenes[index], rng) for index in indices]


def order(count: int, batch_size: int, step: int, seed: int = 0) -> np.ndarray:
    """The indices of training step `step`: every scene once per epoch, in an order fixed by seed and epoch."""
    per_epoch = count // batch_size
    epoch, within = divmod(step, per_epoch)
    return np.random.default_rng([seed, epoch]).permutation(count)[within * batch_size : (within + 1) * batch_size]
