"""Reaching into a UNet's attention through diffusers' attention processors, for any Stable Diffusion or SDXL layout.

Layers are told apart by `attn1` (self) and `attn2` (cross) in their module path and by the number of picture tokens
they attend over at the moment of the call; never by class name or by position in a list.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from common.runs import InputError


class Control(Protocol):
    """What an engine does to attention. `tokens` is the number of picture tokens of the layer, B the UNet's batch,
    H its heads. The wants_ methods decide layer by layer whether the matching edit_ method is called; layers that
    nobody wants keep their own (fast) processor."""

    def wants_self(self, tokens: int) -> bool: ...

    def edit_self(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """query, key, value [B, H, tokens, d] of a self-attention layer, to be attended with instead."""
        ...

    def wants_cross(self, tokens: int) -> bool: ...

    def edit_cross(self, maps: torch.Tensor) -> torch.Tensor:
        """maps [B, H, tokens, L], rows summing to 1, of a cross-attention layer, to be used instead."""
        ...


class HookedAttention:
    """An attention processor that lets `control` change one layer's attention. It knows the projections of plain
    diffusers transformer blocks, without an attention mask; anything else is left to the layer's own processor."""

    def __init__(self, is_cross: bool, original, control: Control):
        self.is_cross, self.original, self.control = is_cross, original, control

    def __call__(
        self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs
    ) -> torch.Tensor:
        wants = self.control.wants_cross if self.is_cross else self.control.wants_self
        if attention_mask is not None or not wants(hidden_states.shape[1]):
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if self.is_cross:
            maps = attn.get_attention_scores(query.flatten(0, 1), key.flatten(0, 1))
            out = self.control.edit_cross(maps.unflatten(0, query.shape[:2])) @ value
        else:
            out = F.scaled_dot_product_attention(*self.control.edit_self(query, key, value))
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


@contextmanager
def hooked(unet: UNet2DConditionModel, control: Control) -> Iterator[None]:
    """Within this context `control` sees every attn1 and attn2 layer of `unet`; afterwards the processors that were
    there before are back, also after an error. Raises InputError if the UNet has no such layers."""
    before = unet.attn_processors
    hooks = {
        path: HookedAttention(path.endswith("attn2.processor"), processor, control)
        for path, processor in before.items()
        if path.endswith(("attn1.processor", "attn2.processor"))
    }
    if not hooks:
        raise InputError("this UNet has no attn1 / attn2 layers to hook into; a text-conditioned UNet is needed.")
    unet.set_attn_processor({**before, **hooks})
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))


def level_size(unet: UNet2DConditionModel, latent_size: tuple[int, int], level: int) -> tuple[int, int]:
    """Height and width, in tokens, of this UNet's cross-attention layers that play the part of those `level` halvings
    below Stable Diffusion's 64x64 latents; `latent_size` is the (h, w) of the latents at hand.

    Prompt-to-Prompt's fixed sizes are 32x32 tokens (level 1) and 16x16 (level 2). Elsewhere the same levels are meant,
    but none with fewer than 16 tokens on the short side, and only levels at which this UNet attends: the coarsest such
    level is taken, or else the finest there is. So 64x64 latents give 32x32 and 16x16, SDXL's 128x128 give 64x64 and
    32x32, and the picturebook's 16x16 give 16x16 for both.
    """
    paths = [path.split(".") for path in unet.attn_processors if ".attn2." in path]
    levels = sorted({int(path[1]) for path in paths if path[0] == "down_blocks"}) or [0]
    fine_enough = [own for own in levels if own <= level and min(latent_size) / 2**own >= 16]
    chosen = fine_enough[-1] if fine_enough else levels[0]
    return math.ceil(latent_size[0] / 2**chosen), math.ceil(latent_size[1] / 2**chosen)
