"""Data sets and encoders in miniature, in the published layouts."""

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data import LIVE_CLASSES, EditItem, Subject, write_pie_bench, write_subjects
from common.files import write_json

CAPTIONS = [
    ("a [red] cat on grass", "a [blue] cat on grass", "6", ("red", "blue")),
    ("a dog in the [snow]", "a dog in the [night sky]", "8", None),
    ("a [small] car", "a [big] car", "0", ("zebra", "big")),  # a word that its prompt lacks
]


BOXES = {"0.png": [10, 12, 40, 50], "1.png": [5, 20, 33, 60], "2.png": [30, 8, 60, 44]}  # left, top, right, bottom


class MeanColor:
    """In place of an encoder: a picture's mean colour, two numbers of a prompt, squared differences for LPIPS."""

    def __init__(self, label: str = "toy"):
        self.label = label

    def embed(self, pictures):
        return torch.nn.functional.normalize(pictures.mean((2, 3)), dim=-1)

    def embed_text(self, prompts):
        return torch.tensor([[1.0, len(prompt) / 100, 0] for prompt in prompts])

    def layer_maps(self, a, b):
        return [((a - b) ** 2).mean(1, keepdim=True)]


def noise(size=(64, 64), seed: int = 0) -> Image.Image:
    """A picture of this width and height."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save_noise(path: Path, size=(64, 64), seed: int = 0) -> Path:
    noise(size, seed).save(path)
    return path


def save_mask(path: Path, size=(64, 64), box=(10, 12, 40, 50)) -> Path:
    """White inside of the box, black elsewhere."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return path


def write_boxed(folder: Path) -> Path:
    """Three pictures of 64 pixels, and boxes.json beside them."""
    folder.mkdir()
    for number, name in enumerate(BOXES):
        save_noise(folder / name, seed=number)
    (folder / "boxes.json").write_text(json.dumps(BOXES))
    return folder


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Bomb:
    """In a pickle: code that makes a folder where it is run."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def write_pie_encoders(folder: Path) -> Path:
    """Copies of the encoders of PIE-Bench, small and random."""
    from tests.tiny_encoders import write_encoders, write_trunk

    write_encoders(folder)
    (folder / "clip").rename(folder / "clip-vit-large-patch14")
    (folder / "dino").rename(folder / "dino-vitb8")
    write_trunk("squeeze", folder / "squeezenet1_1-b8a52dc0.pth")
    return folder


def write_noise(folder: Path, sizes=((32, 32), (32, 32)), seed: int = 0) -> tuple[Path, ...]:
    """Pictures of noise of these widths and heights: 0.png, 1.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    paths, rng = tuple(folder / f"{number}.png" for number in range(len(sizes))), np.random.default_rng(seed)
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def write_subject_set(folder: Path, classes: dict[str, str], prompts: dict[str, list[str]]) -> Path:
    """Subjects, by name their class, of two pictures each in the DreamBooth dataset's layout. prompts: by kind."""
    subjects = [Subject(name, kind, kind in LIVE_CLASSES, write_noise(folder / name, seed=number))
                for number, (name, kind) in enumerate(classes.items())]  # fmt: skip
    write_subjects(folder, subjects, prompts)
    return folder


def write_benchmark(folder: Path) -> Path:
    """A PIE-Bench folder of three noise pictures of 64 pixels, with true edits; the second may change everywhere."""
    rng, items = np.random.default_rng(0), []
    for number, (source, target, kind, words) in enumerate(CAPTIONS):
        for name in ("annotation_images", "truth"):
            (folder / name).mkdir(exist_ok=True, parents=True)
            picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            picture.save(folder / name / f"{number}.png")
        mask = (0, 64 * 64) if kind == "8" else (10 * 64, 20 * 64)  # start, length
        path, extras = folder / "annotation_images" / f"{number}.png", {"truth_path": f"truth/{number}.png"}
        items.append(EditItem(f"{number:012d}", path, source, target, "", kind, words, mask, (64, 64), extras=extras))
    write_pie_bench(folder, items)
    return folder


def write_pairs(folder: Path) -> Path:
    """A folder of three exemplar pairs of 64 pixels, one with two exemplars."""
    from tests.tiny_encoders import pictures

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures(6, 64)):
        pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    line = np.clip((np.arange(64) / 64 - 0.25) * 5, 0, 1)  # white from 0.45 on
    for name, grey in (("a", line), ("b", line[::-1])):
        Image.fromarray((255 * grey[None].repeat(64, 0)).astype(np.uint8)).save(folder / f"{name}.png")
    entries = [
        {"name": "p0", "source": "0.png", "exemplars": ["1.png"], "edit_maps": ["a.png"]},
        {"name": "p1", "source": "2.png", "exemplars": ["3.png"], "edit_maps": ["b.png"]},
        {"name": "p2", "source": "4.png", "exemplars": ["5.png", "1.png"], "edit_maps": ["a.png", "b.png"]},
    ]
    write_json(folder / "pairs.json", entries)
    return folder
