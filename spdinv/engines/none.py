"""Plain sampling from the inverted noise, no attention control: the reconstruction, with the source prompt alone."""

import torch
from tqdm import tqdm

from spdinv.sampling import Drawing


def check(pipe, prompts, steps, latent_size) -> None:
    """Every model will do."""


@torch.no_grad()
def edit(drawing: Drawing, z: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Latents [len(prompts), 4, h, w] of each prompt from their noise z."""
    for step in tqdm(range(drawing.steps), "sampling", leave=False, disable=None):
        z = drawing.step(z, step)
    return z
