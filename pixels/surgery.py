"""Latent surgery: Algorithms 1 and 2 of PIXELS, in one loop.

The defaults are those of the released code; where it and the printed algorithms differ, the printed variant is an
option of `Surgery`. Algorithm 1 is Algorithm 2 with one exemplar. Its line numbers stand beside the code as "l. 10",
those of Algorithm 2 as "2: l. 14".
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from tqdm import tqdm

from common.runs import InputError
from pixels.backbones.backbone import Backbone, Generators
from pixels.edit_map import Coverage, Threshold, check, coverage, histogram, thresholds, to_latent_grid

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surgery:
    """What a user may choose besides prompt, strength and guidance, which belong to the backbone.

    threshold: a key of edit_map.THRESHOLDS or a function. schedule: "released" or "paper" (edit_map.thresholds).
    compare: "gt", mu > tau (both), or "ge" from the second step on; the first stays strict, since mu >= 0 would leave
    no cell to the exemplar. noise: "fixed", one per picture (released); "fresh", the source gets a new one at every
    step (as l. 13 may be read); "shared", the exemplars use the source's. posterior: "sample" (released) or "mean".
    composite: "none" (both), "latent" or "pixel": put the source back once more where white keeps it to the end.
    black_point: grey levels up to it count as black. antialias: average the map over each cell.
    """

    threshold: Threshold = "linear"
    schedule: str = "released"
    compare: str = "gt"
    noise: str = "fixed"
    posterior: str = "sample"
    composite: str = "none"
    black_point: float = 0.0
    antialias: bool = False


@dataclass(frozen=True, eq=False)
class Edit:
    """edited [B, 3, H, W] in [0, 1]; mus: the K maps on the latent grid, [B or 1, 1, h, w] each; tau [N];
    distances [B, K]: Euclidean, of each exemplar's latents from the source's (Fig. 6)."""

    edited: Tensor
    mus: list[Tensor]
    tau: Tensor
    distances: Tensor

    @property
    def mu(self) -> Tensor:
        """The least of the maps."""
        return least(self.mus)

    @property
    def coverage(self) -> Coverage:
        """Of the batch's first picture."""
        return coverage(self.mu[:1], self.tau)


@dataclass(frozen=True, eq=False)
class Trace:
    """One step of the loop, for Figure 3: what line 15 mixes. noised, residue [B, 4, h, w]; keep [B or 1, 1, h, w]."""

    timestep: float
    noised: Tensor  # z_1^t
    residue: Tensor  # z_mix^(t+1)
    keep: Tensor  # mask_t


@torch.no_grad()
def edit(
    backbone: Backbone,
    source: Tensor,
    exemplars: list[Tensor],
    edit_maps: list[Tensor],
    surgery: Surgery = Surgery(),  # noqa: B008  (frozen)
    generator: Generators = None,
    trace: list[Trace] | None = None,
) -> Edit:
    """Edit source [B, 3, H, W] in [0, 1] after K exemplars of the same shape, under K maps [1 or B, 1, any size].

    All K enter in one pass. Where several maps are black, the last exemplar wins; each cell keeps the source while
    the least of its maps is above the threshold: K exemplars are one composite under the minimum of the maps.

    generator: on the CPU; a list of B makes each picture of the batch independent of the others. Draws in the released
    order: per exemplar its VAE sample and its noise, then the source's, then whatever the scheduler draws.
    trace: filled with one Trace per step. Raises InputError for shapes that do not fit.
    """
    if not exemplars or len(exemplars) != len(edit_maps):
        raise InputError(f"{len(exemplars)} exemplars and {len(edit_maps)} maps: each exemplar needs a map of its own")
    for exemplar in exemplars:
        if exemplar.shape != source.shape:
            raise InputError(f"exemplar {tuple(exemplar.shape)} and source {tuple(source.shape)} differ in shape")
    timesteps, scheduler = backbone.start(), backbone.scheduler
    tau = thresholds(surgery.threshold, len(timesteps), surgery.schedule)

    def ldm_encode(picture: Tensor) -> Tensor:
        return backbone.encode(picture, surgery.posterior == "sample", generator)

    def new_noise(dtype: torch.dtype) -> Tensor:
        return randn_tensor(backbone.latent_shape(source), generator, backbone.device, dtype)

    for dtype in backbone.discarded_draws:
        new_noise(dtype)
    exemplar_latents, exemplar_noises = [], []
    for exemplar in exemplars:
        exemplar_latents.append(ldm_encode(exemplar))  # l. 5; 2: l. 5-6
        exemplar_noises.append(new_noise(exemplar_latents[-1].dtype))
    z_source = ldm_encode(source)  # l. 4
    noise = new_noise(z_source.dtype)
    if surgery.noise == "shared":
        exemplar_noises = [noise] * len(exemplars)

    size = z_source.shape[-2:]
    maps = [histogram(check(edit_map.to(z_source.device)), surgery.black_point) for edit_map in edit_maps]
    mus = [to_latent_grid(edit_map, size, surgery.antialias) for edit_map in maps]  # l. 6; 2: l. 7-8
    mu = least(mus)
    levels = tau.to(mu.device)
    if not (mu <= levels[0]).any():
        logger.warning(
            "No cell of the map is black on the %d x %d latent grid (the darkest is %.4f), so the exemplar does not "
            "enter; paint it wholly black, or raise the black point",
            *size,
            mu.min(),
        )
    signal, sigma = noise_levels(scheduler, timesteps, z_source)
    step = stepper(scheduler, generator)

    for i, t in enumerate(tqdm(timesteps, "surgery", leave=False, disable=None)):
        if surgery.noise == "fresh" and i > 0:
            noise = new_noise(z_source.dtype)
        z_source_t = signal[i] * z_source + sigma[i] * noise  # l. 7, l. 13
        if i == 0:
            z = z_source_t
            for z_exemplar, exemplar_noise, mu_k in zip(exemplar_latents, exemplar_noises, mus, strict=True):
                z_exemplar_t = signal[0] * z_exemplar + sigma[0] * exemplar_noise  # l. 8; 2: l. 10-11
                z = torch.where(mu_k > levels[0], z, z_exemplar_t)  # l. 9-10; 2: l. 12-14
        else:
            keep = mu > levels[i] if surgery.compare == "gt" else mu >= levels[i]  # l. 14; 2: l. 18-19
            if trace is not None:
                trace.append(Trace(float(t), z_source_t, z, keep))
            z = torch.where(keep, z_source_t, z)  # l. 15; 2: l. 20
        output = backbone.predict(z, t)  # l. 11, l. 16: the network under guidance, then the scheduler
        z = step(output, t, z)

    if surgery.composite == "latent":
        z = torch.where(mu > levels[-1], z_source, z)
    edited = backbone.decode(z)  # l. 18
    if surgery.composite == "pixel":
        full = least([to_latent_grid(edit_map, source.shape[-2:]) for edit_map in maps])
        kept = ((full - levels[-1]) / (1 - levels[-1])).clamp(0, 1) if levels[-1] < 1 else torch.zeros_like(full)
        edited = source.to(edited) * kept + edited * (1 - kept)
    distances = [(z_exemplar - z_source).float().flatten(1).norm(dim=1) for z_exemplar in exemplar_latents]
    return Edit(edited, mus, tau, torch.stack(distances, dim=1).cpu())


def least(maps: list[Tensor]) -> Tensor:
    """The minimum of several maps, cell by cell."""
    return torch.stack(torch.broadcast_tensors(*maps)).amin(0)


def stepper(scheduler, generator: Generators) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(network's output, t, z) -> the scheduler's next z; what it draws, if anything, comes from the generator."""
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return lambda output, t, z: scheduler.step(output, t, z, return_dict=False, **draws)[0]


def noise_levels(scheduler, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Factors a, s [N] of add_noise(z, eps, t_i) = a_i z + s_i eps, in the latents' number format.

    sqrt(alpha_bar) and sqrt(1 - alpha_bar) for DDIM, DDPM and PNDM; 1 and sigma for Euler. Asked of the scheduler once,
    so that the loop adds noise on the fly: no stored trajectories, and no look-up per step that a GPU would wait for.
    """
    one = torch.ones(len(timesteps), 1, 1, 1, dtype=like.dtype, device=like.device)
    nil = torch.zeros_like(one)
    return scheduler.add_noise(one, nil, timesteps).flatten(), scheduler.add_noise(nil, one, timesteps).flatten()


def edit_iteratively(
    backbone: Backbone,
    source: Tensor,
    exemplars: list[Tensor],
    edit_maps: list[Tensor],
    surgery: Surgery = Surgery(),  # noqa: B008  (frozen)
    generator: Generators = None,
) -> list[Edit]:
    """One exemplar at a time, each edit being the next one's source (Appendix 2); the last one is the result."""
    edits: list[Edit] = []
    for exemplar, edit_map in zip(exemplars, edit_maps, strict=True):
        edits.append(edit(backbone, source, [exemplar], [edit_map], surgery, generator))
        source = edits[-1].edited.to(source)
    return edits
