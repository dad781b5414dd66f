"""Inversions by name. Each: invert(pipe, schedule, latents [B,4,h,w], cond, **options) -> Inversion."""

from spdinv.inversions import aidi, ddim, direct, edict, fixed_point, negative_prompt, nmg, null_text, proximal, spd
from spdinv.inversions.result import Inversion

INVERSIONS = {
    "ddim": ddim.invert,
    "null_text": null_text.invert,
    "negative_prompt": negative_prompt.invert,
    "proximal": proximal.invert,
    "aidi": aidi.invert,
    "nmg": nmg.invert,
    "direct": direct.invert,
    "spd": spd.invert,
    "fixed_point": fixed_point.invert,
    "edict": edict.invert,
}

__all__ = ["INVERSIONS", "Inversion"]
