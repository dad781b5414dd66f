"""What the paper argues against, and the controls that its score cannot tell from success.

Each takes what surgery.edit takes and gives the edited picture [B, 3, H, W] in [0, 1]. All read the maps that PIXELS
reads, black point and all, so that they are given the same region.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from scipy.sparse import csr_array
from scipy.sparse.linalg import spsolve
from torch import Tensor

from pixels.backbones.backbone import Backbone, Generators
from pixels.edit_map import binarize, histogram, to_latent_grid
from pixels.surgery import Surgery, edit, least, noise_levels, stepper
from pixels.thresholds import THRESHOLDS


def reduced(edit_maps: list[Tensor], size, surgery: Surgery) -> list[Tensor]:
    """The maps on a grid, after the black point: what PIXELS reads."""
    return [to_latent_grid(histogram(edit_map, surgery.black_point), size) for edit_map in edit_maps]


# ----------------------------------------------------------------------------------------------------- without a model


def nothing(backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator: Generators) -> Tensor:
    """The source as it is."""
    return source


def paste(backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator: Generators) -> Tensor:
    """The exemplar's own pixels where the binarised map says so, and no model at all: the control for CLIP-I."""
    picture = source
    for exemplar, mu in zip(exemplars, reduced(edit_maps, source.shape[-2:], surgery), strict=True):
        picture = torch.where(binarize(mu) > 0, exemplar, picture)
    return picture


def alpha(backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator: Generators) -> Tensor:
    """Alpha blending: the map as opacity of the source."""
    picture = source
    for exemplar, mu in zip(exemplars, reduced(edit_maps, source.shape[-2:], surgery), strict=True):
        picture = mu * picture + (1 - mu) * exemplar
    return picture


def poisson(backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator: Generators) -> Tensor:
    """Poisson blending (Perez et al., SIGGRAPH 2003, Eq. 7): the exemplar's gradients inside of the binarised map, the
    source's colours along its border. A batch of one."""
    picture = source
    for exemplar, mu in zip(exemplars, reduced(edit_maps, source.shape[-2:], surgery), strict=True):
        inside = binarize(mu)[0, 0].numpy() > 0
        if inside.any() and not inside.all():
            picture = torch.from_numpy(seamless(picture[0].numpy(), exemplar[0].numpy(), inside))[None].to(source)
    return picture.clamp(0, 1)


def seamless(target: np.ndarray, guide: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """target, guide [3, H, W]; inside, bool [H, W]: |N_p| f_p - sum of f_q inside = sum of target_q outside + sum of
    guide_p - guide_q, over the neighbours q that p has in the picture."""
    index = np.full(inside.shape, -1)
    index[inside] = np.arange(inside.sum())
    rows, columns, values, right = [], [], [], np.zeros((inside.sum(), 3))
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        p = np.argwhere(inside)
        q = p + step
        there = ((q >= 0) & (q < inside.shape)).all(1)
        (py, px), (qy, qx), at = p[there].T, q[there].T, index[tuple(p[there].T)]
        right[at] += (guide[:, py, px] - guide[:, qy, qx]).T
        known = ~inside[qy, qx]
        right[at[known]] += target[:, qy[known], qx[known]].T
        rows += [at, at[~known]]
        columns += [at, index[qy[~known], qx[~known]]]
        values += [np.ones(len(at)), -np.ones((~known).sum())]
    matrix = csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (len(right),) * 2)
    result = target.copy()
    result[:, inside] = np.asarray(spsolve(matrix, right)).reshape(right.shape).T
    return result


# ---------------------------------------------------------------------------------------------------- with the model's


def cell_masks(backbone: Backbone, source: Tensor, edit_maps: list[Tensor], surgery: Surgery) -> list[Tensor]:
    """mask_T on the latent grid (l. 9), 0 = exemplar, 1 = source: controls start from the same latents as PIXELS."""
    size = backbone.latent_shape(source)[-2:]
    return [(mu > 0).float() for mu in reduced(edit_maps, size, surgery)]


def surgical_latent(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    sample: bool = False, generator: Generators = None,
) -> Tensor:  # fmt: skip
    """z_surgical (Sec. "A Naive Solution"): the source's latents, replaced by each exemplar's under its mask."""
    z = backbone.encode(source, sample, generator)
    for exemplar, mask in zip(exemplars, cell_masks(backbone, source, edit_maps, surgery), strict=True):
        z = torch.where(mask.to(z.device) > 0, z, backbone.encode(exemplar, sample, generator))
    return z


@torch.no_grad()
def latent_paste(backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator) -> Tensor:
    """The naive solution (Sec. "A Naive Solution", Fig. 2): latents replaced under a binary mask, and decoded. The
    paper has it denoised too, but from no noise: at t = 0 there is no step to take."""
    return backbone.decode(surgical_latent(backbone, source, exemplars, edit_maps, surgery))


def perturbed(backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator) -> Tensor:
    """The naive solution under noise (Sec. "Traversing to the Real Image Manifold", the setting of Lemma 1): the
    surgical latent is noised to t_ds as a whole and denoised, and no source is put back: no map is above 1."""
    masks, never = cell_masks(backbone, source, edit_maps, surgery), lambda i, n: (i > 0).float()
    plain = replace(surgery, threshold=never, schedule="released", black_point=0.0, composite="none")
    return edit(backbone, source, exemplars, masks, plain, generator).edited


@torch.no_grad()
def noise_scaling(backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator) -> Tensor:
    """Sec. "Spatially Adjusting Noise": the noise of the surgical latent multiplied by the map (here 1 - mu, so that
    what changes most gets most), then plain denoising. It "tends to cause convergence to random single-color images".
    """
    timesteps, scheduler = backbone.start(), backbone.scheduler
    z = surgical_latent(backbone, source, exemplars, edit_maps, surgery, surgery.posterior == "sample", generator)
    mu = least(reduced([edit_map.to(z.device) for edit_map in edit_maps], z.shape[-2:], surgery))
    signal, sigma = noise_levels(scheduler, timesteps, z)
    noise = randn_tensor(z.shape, generator, z.device, z.dtype)
    z = signal[0] * z + sigma[0] * noise * (1 - mu).to(z.dtype)
    step = stepper(scheduler, generator)
    for t in timesteps:
        z = step(backbone.predict(z, t), t, z)
    return backbone.decode(z)


def pixels(
    backbone: Backbone, source: Tensor, exemplars, edit_maps, surgery: Surgery, generator, threshold: str | None = None
) -> Tensor:
    """The paper's method, surgery.edit; under another threshold for Figures 7 and 10."""
    surgery = replace(surgery, threshold=threshold or surgery.threshold)
    return edit(backbone, source, exemplars, edit_maps, surgery, generator).edited


def through_vae(backbone: Backbone, picture: Tensor) -> Tensor:
    """A picture encoded and decoded: what the best of edits could be."""
    return backbone.decode(backbone.encode(picture, False, None))


TRUE = {"truth": lambda backbone, truth: truth, "truth_vae": through_vae}  # of the true picture, where it is known
REFERENCES = (*TRUE, "nothing", "paste", "alpha", "poisson")  # shown apart: they take no part in the contest
METHODS = {
    "nothing": nothing,
    "paste": paste,
    "alpha": alpha,
    "poisson": poisson,
    "latent_paste": latent_paste,
    "perturbed": perturbed,
    "noise_scaling": noise_scaling,
    "pixels": pixels,
    **{f"pixels_{name}": partial(pixels, threshold=name) for name in THRESHOLDS if name != "linear"},
}
