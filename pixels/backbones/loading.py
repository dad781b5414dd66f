"""From a name to a loaded model with the scheduler of its own folder."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, SchedulerMixin

from common.flags import chosen_device
from common.model_files import MODELS, PIPELINES, find_folder, inspect_folder, load_whole
from common.pipelines import load_pipeline
from common.runs import InputError
from pixels.options import PIPELINE_KINDS

logger = logging.getLogger(__name__)

SCHEDULERS = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler,
              "ddpm": diffusers.DDPMScheduler, "pndm": diffusers.PNDMScheduler}  # fmt: skip
CORRECTED = {"steps_offset": 1, "clip_sample": False}  # by Stable Diffusion's pipelines, the released one too
MEMORIES = ("ets", "model_outputs", "derivatives")  # where multistep schedulers keep outputs of earlier steps
REFINER = {"StableDiffusionXLImg2ImgPipeline": diffusers.StableDiffusionXLImg2ImgPipeline}
# the decoder; what its folders call it differs
KANDINSKY = dict.fromkeys(("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline"), diffusers.KandinskyV22Pipeline)
PRIOR = {"KandinskyV22PriorPipeline": diffusers.KandinskyV22PriorPipeline}
DECODER_MODELS = {"unet": diffusers.UNet2DConditionModel, "movq": diffusers.VQModel}
PRIOR_MODELS = {"prior": diffusers.PriorTransformer, "image_encoder": transformers.CLIPVisionModelWithProjection,
                "text_encoder": transformers.CLIPTextModelWithProjection}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model. kind: "sd", "sdxl", "refiner" (alone) or "kandinsky". refiner: SDXL's second stage, or None.
    prior: Kandinsky's. scheduler: the one that edits run."""

    kind: str
    pipe: DiffusionPipeline
    scheduler: SchedulerMixin
    refiner: DiffusionPipeline | None = None
    prior: DiffusionPipeline | None = None

    @property
    def stages(self) -> list[DiffusionPipeline]:
        return [self.pipe, self.refiner] if self.refiner else [self.pipe]

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return self.pipe.movq_scale_factor if self.kind == "kandinsky" else self.pipe.vae_scale_factor

    @property
    def unit(self) -> int:
        """Pixels that a frame's sides are multiples of: of all networks Kandinsky's alone cannot halve odd latents."""
        halvings = len(self.pipe.unet.config.block_out_channels) - 1 if self.kind == "kandinsky" else 0
        return self.factor * 2**halvings

    @property
    def native_resolution(self) -> int:
        return self.pipe.unet.config.sample_size * self.factor


def load_model(
    name: str, scheduler: str = "own", refiner: str | None = None, prior: str | None = None, device: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:  # fmt: skip
    """Load a model by name (picturebook, folder, hub id), frozen, with its own or another scheduler. refiner: SDXL's
    second stage after a base. prior: Kandinsky's. Raises InputError for what cannot be loaded whole or does not belong
    together."""
    device = chosen_device(device)
    folder = find_folder(str(name), accepted=PIPELINES | REFINER | KANDINSKY)
    kind = PIPELINE_KINDS[inspect_folder(folder, PIPELINES | REFINER | KANDINSKY, ())[0].__name__]
    if kind in ("sd", "sdxl"):
        pipe = load_pipeline(folder, device, dtype)
        pipe.scheduler = own_scheduler(folder, kind)
    else:
        accepted, models = (REFINER, MODELS) if kind == "refiner" else (KANDINSKY, DECODER_MODELS)
        pipe = load_whole(folder, accepted, models, dtype).to(device)
    if refiner and kind != "sdxl":
        raise InputError(f"a refiner follows an SDXL base, and {name} is of the kind {kind}")

    def named(other: str, accepted: dict[str, type], models: dict[str, type]) -> DiffusionPipeline:
        return load_whole(find_folder(str(other), accepted=accepted), accepted, models, dtype).to(device)

    second = named(refiner, REFINER, MODELS) if refiner else None
    its_prior = named(prior, PRIOR, PRIOR_MODELS) if prior and kind == "kandinsky" else None
    return Model(kind, pipe, make_scheduler(scheduler, pipe.scheduler), second, its_prior)


def own_scheduler(folder: Path, kind: str) -> SchedulerMixin:
    """The scheduler that the folder of a model of this kind names (common.pipelines puts DDIM in its place)."""
    files = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    index, config = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    name = (index.get("scheduler") or [None])[-1]  # as diffusers does; the config may have been another class's
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        raise InputError(f"{folder} names the scheduler {name!r}, which diffusers {diffusers.__version__} has not")
    scheduler = cls.from_config(config)
    if kind == "sd":
        scheduler.register_to_config(**{key: value for key, value in CORRECTED.items() if key in scheduler.config})
    return scheduler


def make_scheduler(name: str, own: SchedulerMixin) -> SchedulerMixin:
    """A scheduler with the noise levels of the model's own. name: "own", or a key of SCHEDULERS. One that remembers
    earlier steps is warned of, but for PNDM, which the released SD 2 path runs."""
    scheduler, config = own, own.config
    if name != "own":
        told = {"clip_sample": config.get("clip_sample", False)}
        if name != "ddpm":  # the spacing of the released runs
            told |= {"timestep_spacing": "leading", "steps_offset": config.get("steps_offset", 1)}
        if name == "pndm":
            told["skip_prk_steps"] = True
        scheduler = SCHEDULERS[name].from_config(config, **told)  # in a config, what its file left out does not count
    if not hasattr(scheduler, "add_noise"):
        raise InputError(f"{type(scheduler).__name__} cannot add noise at a timestep; take another --scheduler")
    remembers = any(hasattr(scheduler, memory) for memory in MEMORIES)
    if (remembers or scheduler.order > 1) and not isinstance(scheduler, diffusers.PNDMScheduler):
        logger.warning("%s combines the network's outputs of several steps, and where latent surgery puts the source "
                       "back between them the earlier ones belong to another latent; ddim, euler and ddpm have no such "
                       "memory", type(scheduler).__name__)  # fmt: skip
    return scheduler
