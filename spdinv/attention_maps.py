"""Where words look: cross-attention maps of an edit, summed up while it is drawn, saved and drawn as one picture.

The map of a word is the share of a place's attention that goes to the word's tokens, averaged over steps, layers and
heads, for each resolution at which the UNet attends.
"""

import json
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerBase

from common.images import grid
from common.runs import InputError, atomic_path
from spdinv.engines import ENGINES
from spdinv.engines.alignment import word_tokens
from spdinv.engines.attention import token_grid

CELL = 160  # pixels


class Recorder:
    """An attention control that changes nothing, and sums up what it sees (after the engine's own control)."""

    def __init__(self, engine: str):
        self.batch, self.items = ENGINES[engine].batch, ENGINES[engine].sees
        self.sums: dict[int, torch.Tensor] = {}  # tokens -> [branches, tokens, L]
        self.counts: dict[int, int] = {}

    def wants_self(self, tokens: int) -> bool:
        return False

    def wants_cross(self, tokens: int) -> bool:
        return True

    def edit_cross(self, maps: torch.Tensor) -> torch.Tensor:
        if len(maps) == self.batch:  # not a call of the network that only some branches take part in
            tokens = maps.shape[2]
            seen = maps[list(self.items.values())].float().mean(1)
            self.sums[tokens] = self.sums[tokens] + seen if tokens in self.sums else seen
            self.counts[tokens] = self.counts.get(tokens, 0) + 1
        return maps

    def words(
        self, tokenizer: PreTrainedTokenizerBase, prompts: list[str], latent_size: tuple[int, int]
    ) -> dict[str, tuple[list[str], dict[tuple[int, int], torch.Tensor]]]:
        """Per branch ("source", "target"): its words, and by resolution (h, w), finest first, maps [words, h, w].
        prompts: [source, target], or the source alone. Raises InputError if no map came by."""
        if not self.sums:
            raise InputError("no cross-attention map came by: this UNet's attention is not of the plain kind.")
        found = {}
        for row, branch in enumerate(self.items):
            prompt = dict(zip(("source", "target"), prompts, strict=False))[branch]
            tokens = word_tokens(tokenizer, prompt)
            named = [(word, places) for word, places in zip(prompt.split(" "), tokens, strict=True) if word and places]
            maps = {}
            for size in sorted(self.sums, reverse=True):
                mean = (self.sums[size][row] / self.counts[size]).cpu()
                shape = token_grid(size, latent_size)
                shares = [mean[:, places].sum(1).reshape(shape) for _, places in named]
                maps[shape] = torch.stack(shares) if shares else mean.new_zeros(0, *shape)
            found[branch] = [word for word, _ in named], maps
        return found


def save(path: Path, found: dict) -> None:
    """Tensors "source_16x16" [words, 16, 16] and so on; the words, in order, as JSON lists in the file's metadata."""
    from safetensors.torch import save_file

    tensors = {f"{branch}_{h}x{w}": maps.contiguous() for branch, (_, by_size) in found.items()
               for (h, w), maps in by_size.items()}  # fmt: skip
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={branch: json.dumps(words) for branch, (words, _) in found.items()})


def heat(word_map: torch.Tensor, picture: Image.Image) -> Image.Image:
    """The map [h, w] over the greyed picture, scaled to its own largest value: dark, red, yellow."""
    scaled = (word_map / word_map.max().clamp(min=1e-12) * 255).to(torch.uint8).numpy()
    strength = Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC)
    colours = ImageOps.colorize(strength, "#000030", "#fff060", mid="#d02020")
    return Image.blend(ImageOps.grayscale(picture).convert("RGB"), colours, 0.65)


def draw(found: dict, pictures: dict[str, Image.Image]) -> Image.Image:
    """One sheet: a block for each branch, its words with their maps under them, finest resolution first. pictures: by
    branch, what the maps are laid over."""
    blocks = []
    for branch, (words, by_size) in found.items():
        picture = pictures[branch].resize((CELL, CELL), Image.Resampling.LANCZOS)
        rows = [[picture, *(heat(word_map, picture) for word_map in maps)] for maps in by_size.values()]
        blocks.append(grid(rows, [f"{h} x {w} places" for h, w in by_size], [branch, *words]))
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet
