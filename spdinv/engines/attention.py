"""Reaching into a UNet's attention through diffusers' attention processors, for any Stable Diffusion or SDXL layout.

Layers are told apart by `attn1` (self) and `attn2` (cross) in their module path and by the number of picture tokens
they attend over at the moment of the call; never by class name or by position in a list.
"""

import math
from collections.abc import Iterable, Iterator
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
    nobody wants keep their own (fast) processor.

    edit_self: query, key, value [B, H, tokens, d] of a self-attention layer; returns those to attend with instead, keys
    and values of any number, and, where wanted, a bool mask [B, 1, queries, keys] of who may see whom.
    edit_cross: maps [B, H, tokens, L], rows summing to 1, of a cross-attention layer; returns those to use instead.
    """

    def wants_self(self, tokens: int) -> bool: ...

    def edit_self(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]: ...

    def wants_cross(self, tokens: int) -> bool: ...

    def edit_cross(self, maps: torch.Tensor) -> torch.Tensor: ...


class HookedAttention:
    """An attention processor that lets `controls`, one after the other, change one layer's attention. It knows the
    projections of plain diffusers transformer blocks, without an attention mask; anything else is left to the layer's
    own processor."""

    def __init__(self, is_cross: bool, original, controls: list[Control]):
        self.is_cross, self.original, self.controls = is_cross, original, controls

    def __call__(
        self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **kwargs
    ) -> torch.Tensor:
        tokens = hidden_states.shape[1]
        acting = [c for c in self.controls if (c.wants_cross(tokens) if self.is_cross else c.wants_self(tokens))]
        if attention_mask is not None or not acting:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attn.norm_cross and encoder_hidden_states is not None:
            context = attn.norm_encoder_hidden_states(context)
        projected = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in projected)
        if self.is_cross:
            maps = attn.get_attention_scores(query.flatten(0, 1), key.flatten(0, 1)).unflatten(0, query.shape[:2])
            for control in acting:
                maps = control.edit_cross(maps)
            out = maps @ value
        else:
            mask = []
            for control in acting:
                query, key, value, *mask = control.edit_self(query, key, value)
            out = F.scaled_dot_product_attention(query, key, value, *mask)
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def layers(unet: UNet2DConditionModel, kind: str) -> list[str]:
    """Paths of the processors of all layers of `kind`, "attn1" (self) or "attn2" (cross), in the order of the calls:
    down the encoder, through the middle, up the decoder."""
    stages = ("down_blocks", "mid_block", "up_blocks")

    def place(path: str) -> tuple[int, list[int]]:
        parts = path.split(".")
        return stages.index(parts[0]), [int(part) for part in parts if part.isdigit()]

    return sorted((path for path in unet.attn_processors if path.endswith(f".{kind}.processor")), key=place)


@contextmanager
def hooked(unet: UNet2DConditionModel, control: Control, only: Iterable[str] | None = None) -> Iterator[None]:
    """Within this context `control` sees every attn1 and attn2 layer of `unet`, or `only` those with these paths (see
    `layers`); afterwards the processors that were there before are back, also after an error. Where contexts are
    nested the inner control acts first. Raises InputError if the UNet has no such layers."""
    before = unet.attn_processors
    hooks = {}
    for path in layers(unet, "attn1") + layers(unet, "attn2") if only is None else only:
        own = before[path]
        original, outer = (own.original, own.controls) if isinstance(own, HookedAttention) else (own, [])
        hooks[path] = HookedAttention(path.endswith("attn2.processor"), original, [control, *outer])
    if not hooks:
        raise InputError("this UNet has no attn1 / attn2 layers to hook into; a text-conditioned UNet is needed.")
    unet.set_attn_processor({**before, **hooks})
    try:
        yield
    finally:
        unet.set_attn_processor(dict(before))


def check_caught(engine: str, due: dict[str, bool], seen: set[str]) -> None:
    """Raises InputError unless all kinds of layers that were due in a step were seen in it."""
    if missed := [kind for kind, is_due in due.items() if is_due and kind not in seen]:
        raise InputError(f"{engine}'s hooks caught no {' and no '.join(missed)} layer of this UNet; it needs plain "
                         "attention of the usual sizes.")  # fmt: skip


def token_grid(tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a layer of that many picture tokens, for latents of (h, w): so many halvings below."""
    height, width = latent_size
    while height * width > tokens:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return height, width


def level_size(unet: UNet2DConditionModel, latent_size: tuple[int, int], level: int) -> tuple[int, int]:
    """Height and width, in tokens, of this UNet's cross-attention layers that play the part of those `level` halvings
    below Stable Diffusion's 64x64 latents; `latent_size` is the (h, w) of the latents at hand.

    Prompt-to-Prompt's fixed sizes are 32x32 tokens (level 1) and 16x16 (level 2). Elsewhere the same levels are meant,
    but none with fewer than 16 tokens on the short side, and only levels at which this UNet attends: the coarsest such
    level, or else the finest there is. SDXL's 128x128 latents give 64x64 and 32x32, the picturebook's 16x16 themselves.
    """
    paths = [path.split(".") for path in unet.attn_processors if ".attn2." in path]
    levels = sorted({int(path[1]) for path in paths if path[0] == "down_blocks"}) or [0]
    fine_enough = [own for own in levels if own <= level and min(latent_size) / 2**own >= 16]
    chosen = fine_enough[-1] if fine_enough else levels[0]
    return math.ceil(latent_size[0] / 2**chosen), math.ceil(latent_size[1] / 2**chosen)
