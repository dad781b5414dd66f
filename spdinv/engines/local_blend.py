"""LocalBlend of Prompt-to-Prompt (arXiv 2208.01626, Sec. 4): edit only where the attention of the blended words is."""

import torch
import torch.nn.functional as F

THRESHOLD = 0.3
START = 0.2  # fraction of the steps after which blending begins


def blend_mask(maps: torch.Tensor, latent_size: tuple[int, int], pool: bool) -> torch.Tensor:
    """bool [2, 1, h, w]: where either the source's or each picture's word map exceeds 0.3 of its own maximum.

    maps [2, 1, mh, mw] >= 0, source first; one of zeros only, of a missing word, has no say. pool: take the largest of
    3x3 neighbours first. Upsampling is nearest.
    """
    if pool:
        maps = F.max_pool2d(maps, 3, stride=1, padding=1)
    maps = F.interpolate(maps, size=latent_size)
    mask = maps / maps.amax(dim=(2, 3), keepdim=True) > THRESHOLD  # 0 / 0 is above nothing
    return mask[:1] | mask


class LocalBlend:
    """Sums word maps over layers, heads and steps, and pastes the source latent outside their mask.

    words, substruct_words: [2, L], 1 on the tokens of the words of the source and of the target prompt (see
    alignment.word_mask); where the attention of substruct_words is, the source stays. map_size: height and width of
    the maps that `add` gets.
    """

    def __init__(
        self, words: torch.Tensor, map_size: tuple[int, int], steps: int, substruct_words: torch.Tensor | None = None
    ):
        self.words = words if substruct_words is None else torch.cat([words, substruct_words])
        self.map_size = map_size
        self.start = int(START * steps)
        self.step = 0
        self.total = 0.0

    def add(self, maps: torch.Tensor) -> None:
        """Take in one layer's maps [2, H, mh * mw, L] of the source and target item."""
        weights = self.words.to(maps).unflatten(0, (-1, 2))  # [1 or 2 kinds of words, 2, L]
        self.total = self.total + torch.einsum("bhql,kbl->kbq", maps, weights).float()

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Called once per step, on the latents [2, 4, h, w] that the scheduler has just made."""
        self.step += 1
        if self.step <= self.start:
            return z
        maps = self.total.unflatten(-1, self.map_size)[:, :, None]  # [kinds, 2, 1, mh, mw]
        mask = blend_mask(maps[0], z.shape[-2:], pool=True)
        for substruct in maps[1:]:
            mask = mask & ~blend_mask(substruct, z.shape[-2:], pool=False)
        return torch.where(mask, z, z[:1])
