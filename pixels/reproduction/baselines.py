"""What the paper argues against, and the control that its score cannot tell from success.

Each takes what surgery.edit takes and gives the edited picture [B, 3, H, W] in [0, 1].
"""

from dataclasses import replace

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pixels.backbones.backbone import Backbone, Generators
from pixels.edit_map import binarize, to_latent_grid
from pixels.surgery import Surgery, edit, noise_levels, stepper


def never_again(i: Tensor, n: int) -> Tensor:
    """A threshold that puts nothing back after the first step: no map is above 1."""
    return (i > 0).float()


def paste(backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator: Generators) -> Tensor:
    """The exemplar's own pixels where the binarised map says so, and no model at all: the control for CLIP-I."""
    picture = source
    for exemplar, edit_map in zip(exemplars, edit_maps, strict=True):
        picture = torch.where(binarize(to_latent_grid(edit_map, source.shape[-2:])) > 0, exemplar, picture)
    return picture


def cell_masks(backbone: Backbone, source: Tensor, edit_maps: list[Tensor]) -> list[Tensor]:
    """Binarised maps on the latent grid, 0 = exemplar, 1 = source."""
    size = backbone.latent_shape(source)[-2:]
    return [1 - binarize(to_latent_grid(edit_map, size)) for edit_map in edit_maps]


@torch.no_grad()
def latent_paste(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    generator: Generators,
) -> Tensor:  # fmt: skip
    """The naive solution (Sec. "A Naive Solution", Fig. 2): latents replaced under a binary mask, and decoded. The
    paper has it denoised too, but from no noise: at t = 0 there is no step to take."""
    z = backbone.encode(source, False, None)
    for exemplar, mask in zip(exemplars, cell_masks(backbone, source, edit_maps), strict=True):
        z = torch.where(mask.to(z.device) > 0, z, backbone.encode(exemplar, False, None))
    return backbone.decode(z)


def perturbed(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    generator: Generators,
) -> Tensor:  # fmt: skip
    """The naive solution under noise (Sec. "Traversing to the Real Image Manifold", the setting of Lemma 1): the
    surgical latent is noised to t_ds as a whole and denoised, and no source is put back."""
    masks = cell_masks(backbone, source, edit_maps)
    plain = replace(
        surgery, threshold=never_again, schedule="released", compare="gt", black_point=0.0, composite="none"
    )
    return edit(backbone, source, exemplars, masks, plain, generator).edited


@torch.no_grad()
def noise_scaling(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    generator: Generators,
) -> Tensor:  # fmt: skip
    """Sec. "Spatially Adjusting Noise": the noise of the surgical latent multiplied by the map (here 1 - mu, so that
    what changes most gets most), then plain denoising. It "tends to cause convergence to random single-color images".
    """
    timesteps, scheduler = backbone.start(), backbone.scheduler
    z = backbone.encode(source, surgery.posterior == "sample", generator)
    size = z.shape[-2:]
    mus = [to_latent_grid(edit_map.to(z.device), size) for edit_map in edit_maps]
    for exemplar, mask in zip(exemplars, cell_masks(backbone, source, edit_maps), strict=True):
        z = torch.where(mask.to(z.device) > 0, z, backbone.encode(exemplar, surgery.posterior == "sample", generator))
    signal, sigma = noise_levels(scheduler, timesteps, z)
    noise = randn_tensor(z.shape, generator, z.device, z.dtype)
    z = signal[0] * z + sigma[0] * noise * (1 - torch.stack(torch.broadcast_tensors(*mus)).amin(0)).to(z.dtype)
    step = stepper(scheduler, generator)
    for t in timesteps:
        z = step(backbone.predict(z, t), t, z)
    return backbone.decode(z)


def pixels(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    generator: Generators,
) -> Tensor:  # fmt: skip
    """The paper's method, surgery.edit."""
    return edit(backbone, source, exemplars, edit_maps, surgery, generator).edited


def with_threshold(name: str):
    """The paper's method under another threshold (Fig. 7, 10)."""

    def run(backbone, source, exemplars, edit_maps, surgery, generator):
        return pixels(backbone, source, exemplars, edit_maps, replace(surgery, threshold=name), generator)

    return run


METHODS = {
    "paste": paste,
    "latent_paste": latent_paste,
    "perturbed": perturbed,
    "noise_scaling": noise_scaling,
    "pixels": pixels,
    **{f"pixels_{name}": with_threshold(name) for name in ("quadratic", "cubic", "log", "sigmoid")},
}
