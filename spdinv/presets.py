"""The extras that SPDInv's released code puts on top of its inversion, each a switch of its own, and the presets: which
settings of engines and extras go together. Imports nothing heavy.
"""

import argparse
from typing import Any

from common.flags import number
from spdinv.flags import setting

_SWITCH = {"action": argparse.BooleanOptionalAction}
# Keyword arguments of extras.apply, and color_fix.
SWITCH_SETTINGS = (
    setting("negative_prompt_embedding", False, "the source prompt as unconditional text (masactrl: of the source)",
            **_SWITCH),
    setting("proximal", False, "proximal guidance: what is small of the guidance is removed", **_SWITCH),
    setting("inversion_guidance", False, "unedited places of late latents are drawn to the inversion's", **_SWITCH),
    setting("color_fix", False, "the edited picture gets the source's colours (low frequencies)", **_SWITCH),
)  # fmt: skip
PROXIMAL_SETTINGS = (
    setting("proximal_mode", "soft", "soft: what the released code does under the name l0; hard: what l0 means",
            choices=("soft", "hard")),
    setting("proximal_quantile", 0.7, "of the guidance's size, the threshold; -x means x itself",
            number(float, -1000, 1)),
    setting("proximal_recon_lr", 1.0, "how far latents are drawn back; 1 is all the way", number(float, 0)),
    setting("proximal_recon_t", 400, "timesteps below it are held; of a negative one -t, those above t",
            number(int, -1000, 1000)),
    setting("proximal_dilation", 1, "places around an edited one that are free too", number(int, 0, 64)),
)  # fmt: skip
EXTRAS: dict[str, Any] = {one.name: one.default for one in SWITCH_SETTINGS + PROXIMAL_SETTINGS}
# What settings of an extra need: any of these to be on.
NEEDS = {
    "proximal_mode": ("proximal",), "proximal_quantile": ("proximal", "inversion_guidance"),
    **dict.fromkeys(("proximal_recon_lr", "proximal_recon_t", "proximal_dilation"), ("inversion_guidance",)),
}  # fmt: skip
# Per engine, what differs from the defaults.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "inversion_only": {},
    "npi": {engine: {"negative_prompt_embedding": True} for engine in ("p2p", "masactrl", "pnp")},
    "as_released": {
        "p2p": {"cross_replace_steps": 0.8, "negative_prompt_embedding": True, "proximal": True,
                "proximal_quantile": 0.7, "inversion_guidance": True},
        "masactrl": {"source_guidance_scale": 1.0, "negative_prompt_embedding": True, "proximal": True,
                     "proximal_quantile": 0.6},
        "pnp": {"color_fix": True},
    },
    "source_guidance_1": {engine: {"source_guidance_scale": 1.0} for engine in ("p2p", "masactrl")},
}  # fmt: skip
# Plug-and-Play's source where --source_latents is not given. PIE-Bench's runners, behind the published numbers, read
# DDIM's from a reconstruction and Direct Inversion's from its trajectory: that is all that tells the two apart.
SOURCE_LATENTS = {"ddim": "reconstruction"}  # all others: trajectory
