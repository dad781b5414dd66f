"""Inversions by name. Each: invert(pipe, schedule, latents [B,4,h,w], cond, **options) -> Inversion."""

from spdinv.inversions import ddim, spd
from spdinv.inversions.result import Inversion

INVERSIONS = {"ddim": ddim.invert, "spd": spd.invert}

__all__ = ["INVERSIONS", "Inversion"]
