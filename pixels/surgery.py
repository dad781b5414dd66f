"""Latent surgery: Algorithms 1 and 2 of PIXELS. `prepare` is lines 4 to 6, `loop` lines 7 to 17, `edit` both.

The defaults are those of the released code; where it and the printed algorithms differ, the printed variant is an
option of `Surgery`. Algorithm 1 is Algorithm 2 with one exemplar. Its line numbers stand beside the code as "l. 10",
those of Algorithm 2 as "2: l. 14".
"""

from __future__ import annotations  # what is given back stands last

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
    noise: "fixed", one per picture (released); "fresh", the source gets a new one at every step (as l. 13 may be read);
    "shared", the exemplars use the source's. posterior: "sample" (released) or "mean".
    composite: "none" (both), "latent" or "pixel": put the source back once more where white keeps it to the end.
    black_point: grey levels up to it count as black.
    """

    threshold: Threshold = "linear"
    schedule: str = "released"
    noise: str = "fixed"
    posterior: str = "sample"
    composite: str = "none"
    black_point: float = 0.0


DEFAULTS = Surgery()


@torch.no_grad()
def edit(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor],
    surgery: Surgery = DEFAULTS, generator: Generators = None, trace: list[Trace] | None = None,
) -> Edit:  # fmt: skip
    """Edit source [B, 3, H, W] in [0, 1] after K exemplars of the same shape, under K maps [1 or B, 1, any size], all
    in one pass (l. 1-3; 2: l. 1-3). Where several maps are black, the last exemplar wins; each cell keeps the source
    while the least of its maps is above the threshold: K exemplars are one composite under the minimum of the maps.

    generator: on the CPU; a list of B makes each picture of the batch independent of the others. Draws in the released
    order: per exemplar its VAE sample and its noise, then the source's, then whatever the scheduler draws.
    trace: filled with one Trace per step. Raises InputError for shapes that do not fit.
    """
    patient = prepare(backbone, source, exemplars, edit_maps, surgery, generator)  # l. 4-6; 2: l. 4-8
    z = loop(backbone, patient, surgery, generator, trace)  # l. 7-17; 2: l. 9-22
    if surgery.composite == "latent":
        z = torch.where(least(patient.mus) > patient.tau[-1], patient.z_source, z)
    edited = backbone.decode(z)  # l. 18-20; 2: l. 23-25
    if surgery.composite == "pixel" and (last := patient.tau[-1]) < 1:
        full = least([to_latent_grid(edit_map, source.shape[-2:]) for edit_map in patient.maps])
        kept = ((full - last) / (1 - last)).clamp(0, 1)
        edited = source.to(edited) * kept + edited * (1 - kept)
    distances = [(z_exemplar - patient.z_source).float().flatten(1).norm(dim=1) for z_exemplar in patient.z_exemplars]
    return Edit(edited, patient.mus, patient.tau.cpu(), torch.stack(distances, dim=1).cpu())


@torch.no_grad()
def prepare(
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor], surgery: Surgery,
    generator: Generators,
) -> Patient:  # fmt: skip
    """Lines 4 to 6: pictures to latents, maps to the latent grid; and the noise that lines 7, 8 and 13 will add, on the
    fly, so that no noised trajectories are stored. Arguments and errors as of edit; warns of maps without black."""
    if not exemplars or len(exemplars) != len(edit_maps):
        raise InputError(f"{len(exemplars)} exemplars and {len(edit_maps)} maps: each exemplar needs a map of its own")
    for exemplar in exemplars:
        if exemplar.shape != source.shape:
            raise InputError(f"exemplar {tuple(exemplar.shape)} and source {tuple(source.shape)} differ in shape")
    timesteps = backbone.start()

    def ldm_encode(picture: Tensor) -> Tensor:
        return backbone.encode(picture, surgery.posterior == "sample", generator)

    def new_noise(dtype: torch.dtype) -> Tensor:
        return randn_tensor(backbone.latent_shape(source), generator, backbone.device, dtype)

    z_exemplars, exemplar_noises = [], []
    for dtype in backbone.discarded_draws:
        new_noise(dtype)
    for exemplar in exemplars:
        z_exemplars.append(ldm_encode(exemplar))  # l. 5; 2: l. 5-6
        exemplar_noises.append(new_noise(z_exemplars[-1].dtype))
    z_source = ldm_encode(source)  # l. 4; 2: l. 4
    noise = new_noise(z_source.dtype)
    if surgery.noise == "shared":
        exemplar_noises = [noise] * len(exemplars)

    maps = [histogram(check(edit_map.to(z_source.device)), surgery.black_point) for edit_map in edit_maps]
    size = z_source.shape[-2:]
    mus = [to_latent_grid(edit_map, size) for edit_map in maps]  # l. 6; 2: l. 7-8
    tau = thresholds(surgery.threshold, len(timesteps), surgery.schedule).to(z_source.device)
    if not (least(mus) <= tau[0]).any():
        logger.warning(
            "No cell of the map is black on the %d x %d latent grid (the darkest is %.4f), so the exemplar does not "
            "enter; paint it wholly black, or raise the black point", *size, least(mus).min(),
        )  # fmt: skip
    levels = noise_levels(backbone.scheduler, timesteps, z_source)  # of l. 7-8 and l. 13
    return Patient(z_source, z_exemplars, noise, exemplar_noises, maps, mus, tau, timesteps, *levels)


@torch.no_grad()
def loop(
    backbone: Backbone, patient: Patient, surgery: Surgery, generator: Generators, trace: list[Trace] | None = None
) -> Tensor:
    """Lines 7 to 17: the surgical latent, denoised, with the source put back ever less. Gives z_mix^0 [B, 4, h, w]."""
    z_source, noise, tau = patient.z_source, patient.noise, patient.tau
    signal, sigma, mu = patient.signal, patient.sigma, least(patient.mus)
    step = stepper(backbone.scheduler, generator)
    # l. 12 and 17; 2: l. 16 and 22
    for i, t in enumerate(tqdm(patient.timesteps, "surgery", leave=False, disable=None)):
        if surgery.noise == "fresh" and i > 0:
            noise = randn_tensor(z_source.shape, generator, z_source.device, z_source.dtype)
        z_source_t = signal[i] * z_source + sigma[i] * noise  # l. 7, l. 13; 2: l. 9, 17
        if i == 0:
            z = z_source_t
            for z_exemplar, exemplar_noise, mu_k in zip(
                patient.z_exemplars, patient.exemplar_noises, patient.mus, strict=True
            ):
                z_exemplar_t = signal[0] * z_exemplar + sigma[0] * exemplar_noise  # l. 8; 2: l. 10-11
                z = torch.where(mu_k > tau[0], z, z_exemplar_t)  # l. 9-10; 2: l. 12-14
        else:
            keep = mu > tau[i]  # l. 14; 2: l. 18-19
            if trace is not None:
                trace.append(Trace(float(t), z_source_t, z, keep))
            z = torch.where(keep, z_source_t, z)  # l. 15; 2: l. 20
        output = backbone.predict(z, t)  # l. 11, l. 16; 2: l. 15, 21: the network under guidance, …
        z = step(output, t, z)  # … and the scheduler's step
    return z


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
    backbone: Backbone, source: Tensor, exemplars: list[Tensor], edit_maps: list[Tensor],
    surgery: Surgery = DEFAULTS, generator: Generators = None,
) -> list[Edit]:  # fmt: skip
    """One exemplar at a time, each edit being the next one's source (Appendix 2); the last one is the result."""
    edits: list[Edit] = []
    for exemplar, edit_map in zip(exemplars, edit_maps, strict=True):
        edits.append(edit(backbone, source, [exemplar], [edit_map], surgery, generator))
        source = edits[-1].edited.to(source)
    return edits


# -------------------------------------------------------------------------------------------------- what is given back


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


@dataclass(frozen=True, eq=False)
class Patient:
    """What lines 4 to 8 make of the pictures, once. Latents and noises [B, 4, h, w]; maps [B or 1, 1, h, w]; signal,
    sigma [N]: factors of add_noise(z, eps, t_i) = signal_i z + sigma_i eps."""

    z_source: Tensor  # z_1^init
    z_exemplars: list[Tensor]  # z_2^init, ...
    noise: Tensor  # the source's
    exemplar_noises: list[Tensor]
    maps: list[Tensor]  # as given, black point applied
    mus: list[Tensor]  # on the latent grid
    tau: Tensor  # [N]
    timesteps: Tensor
    signal: Tensor
    sigma: Tensor
