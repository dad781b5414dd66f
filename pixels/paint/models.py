"""What the page has to know of a model without loading it: the side of its frame, pixels per latent, its scheduler."""

import json
from pathlib import Path

from diffusers import DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, SchedulerMixin

from common.flags import local_folder
from common.runs import InputError
from pixels.backbones.loading import make_scheduler, own_scheduler

# Of the published models, for hub ids that are not on this disk: side, pixels per latent, scheduler.
PUBLISHED = {"sd": (512, 8, PNDMScheduler), "sdxl": (1024, 8, EulerDiscreteScheduler),
             "refiner": (1024, 8, EulerDiscreteScheduler), "kandinsky": (512, 8, DDPMScheduler)}  # fmt: skip


def folder_of(name: str) -> Path | None:
    """The model's folder, where it is one."""
    folder = local_folder(name)
    return folder if (folder / "model_index.json").is_file() else None


def frame_of(name: str, kind: str) -> tuple[int, int]:
    """(native side in pixels, pixels per latent cell)."""
    folder = folder_of(name)
    if folder is None:
        return PUBLISHED[kind][:2]
    try:
        vae = "movq" if kind == "kandinsky" else "vae"
        unet, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", vae))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return unet["sample_size"] * factor, factor
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} does not say in unet/config.json and vae/config.json the size of latents") from None


def scheduler_of(name: str, kind: str, wanted: str) -> SchedulerMixin:
    """The scheduler that edits run, with the spacing of the released runs where the model is not on this disk."""
    folder = folder_of(name)
    if folder is not None:
        return make_scheduler(wanted, own_scheduler(folder, kind))
    own = PUBLISHED[kind][2]
    skip = {"skip_prk_steps": True} if own is PNDMScheduler else {}
    return make_scheduler(wanted, own(timestep_spacing="leading", steps_offset=1, **skip))
