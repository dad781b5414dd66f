"""Pictures of noise and edit maps of 32x48 pixels, 4x6 latent cells, with black and white corners."""

import numpy as np
import torch

GENERATOR = np.random.default_rng(3)
SOURCE, FIRST, SECOND, THIRD = (torch.from_numpy(GENERATOR.random((1, 3, 32, 48))) for _ in range(4))
MAP = torch.from_numpy(GENERATOR.random((1, 1, 32, 48))).float()
MAP[..., :16, :16] = 0
MAP[..., 16:, 32:] = 1
OTHER = torch.from_numpy(GENERATOR.random((1, 1, 32, 48))).float()
OTHER[..., 8:24, 8:40] = 0
