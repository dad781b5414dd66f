"""SDEdit (Meng et al., ICLR 2022, Alg. 1 without mask): noise a pasted picture, and denoise all of it."""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pixels.backbones import Backbone
from pixels.reproduction.baselines import paste
from pixels.surgery import Surgery, noise_levels, stepper


@torch.no_grad()
def edit(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery, generator
) -> Tensor:
    """The edited picture [B, 3, H, W] in [0, 1]. The guide is the paste of the binarised map, as SDEdit's image
    compositing has it; nothing is put back, so that the source changes too."""
    timesteps, scheduler = backbone.start(), backbone.scheduler
    step = stepper(scheduler, generator)
    guide = paste(backbone, source, exemplars, edit_maps, surgery, generator)
    z = backbone.encode(guide, surgery.posterior == "sample", generator)
    signal, sigma = noise_levels(scheduler, timesteps, z)
    z = signal[0] * z + sigma[0] * randn_tensor(z.shape, generator, z.device, z.dtype)
    for t in timesteps:
        z = step(backbone.predict(z, t), t, z)
    return backbone.decode(z)
