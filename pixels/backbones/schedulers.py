"""Schedulers by name, and which of them suit latent surgery."""

import logging

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from common.runs import InputError

logger = logging.getLogger(__name__)

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "ddpm": DDPMScheduler,
    "pndm": PNDMScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lms": LMSDiscreteScheduler,
}
MEMORIES = ("ets", "model_outputs", "derivatives")  # where multistep schedulers keep outputs of earlier steps


def make_scheduler(name: str, own: SchedulerMixin) -> SchedulerMixin:
    """A scheduler with the noise levels of the model's own. name: "own", or a key of SCHEDULERS.

    DDIM, Euler and DDPM are the reference. PNDM is what the released SD 2 path runs. Any other that remembers earlier
    steps is warned of.
    """
    if name == "own":
        scheduler = own
    else:
        config = {"clip_sample": False} | dict(own.config)
        if name in ("ddim", "euler", "pndm"):  # the spacing of the released runs
            config |= {"timestep_spacing": "leading", "steps_offset": config.get("steps_offset", 1)}
        if name == "pndm":
            config["skip_prk_steps"] = True
        scheduler = SCHEDULERS[name].from_config(config)
    if not hasattr(scheduler, "add_noise"):
        raise InputError(f"{type(scheduler).__name__} cannot add noise at a timestep; take another --scheduler")
    remembers = any(hasattr(scheduler, memory) for memory in MEMORIES)
    if (remembers or scheduler.order > 1) and not isinstance(scheduler, PNDMScheduler):
        logger.warning(
            "%s combines the network's outputs of several steps, but latent surgery replaces part of the latent "
            "between steps, so where the source was put back the earlier outputs belong to another latent; ddim, euler "
            "and ddpm have no such memory",
            type(scheduler).__name__,
        )
    return scheduler
