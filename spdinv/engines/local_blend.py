"""LocalBlend of Prompt-to-Prompt (arXiv 2208.01626, Sec. 4): edit only where the attention of the blended words is."""

import torch
import torch.nn.functional as F

THRESHOLD = 0.3
START = 0.2  # fraction of the steps after which blending begins


def blend_mask(maps: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """bool [2, 1, h, w]: where either the source's or each picture's word map exceeds 0.3 of its own maximum.

    maps [2, 1, mh, mw] >= 0, source first; one of zeros only, of a missing word, has no say. The largest of 3x3
    neighbours counts; upsampling is nearest.
    """
    maps = F.interpolate(F.max_pool2d(maps, 3, stride=1, padding=1), size=latent_size)
    mask = maps / maps.amax(dim=(2, 3), keepdim=True) > THRESHOLD  # 0 / 0 is above nothing
    return mask[:1] | mask


class LocalBlend:
    """Sums word maps over layers, heads and steps, and pastes the source latent outside their mask.

    words: [2, L], 1 on the tokens of the words of the source and of the target prompt (see alignment.word_mask).
    map_size: height and width of the maps that `add` gets.
    """

    def __init__(self, words: torch.Tensor, map_size: tuple[int, int], steps: int):
        self.words, self.map_size = words, map_size
        self.start = int(START * steps)
        self.step = 0
        self.total = 0.0

    def add(self, maps: torch.Tensor) -> None:
        """Take in one layer's maps [2, H, mh * mw, L] of the source and target item."""
        self.total = self.total + torch.einsum("bhql,bl->bq", maps, self.words.to(maps)).float()

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Called once per step, on the latents [2, 4, h, w] that the scheduler has just made."""
        self.step += 1
        if self.step <= self.start:
            return z
        mask = blend_mask(self.total.unflatten(-1, self.map_size)[:, None], z.shape[-2:])
        return torch.where(mask, z, z[:1])
