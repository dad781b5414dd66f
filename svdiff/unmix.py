"""The unmix regularisation (paper, Sec. 3.3, last paragraph): on a cut-mixed sample a subject's special token is to
attend to its own half only; a mean squared error on the cross-attention maps outside of it.

The paper leaves its layers, its weight and the tokens open. Here: all cross-attention layers of one resolution (a
quarter of the latent's side, 16x16 for Stable Diffusion), the special token's pieces summed, heads and places averaged.
"""

import re
from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from common.runs import InputError
from svdiff.combine import inside, units
from svdiff.cut_mix import half_masks, identifier, split_prompt


class KeepMaps:
    """An attention processor that computes its layer's maps in the open and keeps them, [B, heads, places, words]."""

    def __init__(self):
        self.maps: Tensor | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states=None, attention_mask=None, temb=None, **_
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))
        maps = attn.get_attention_scores(query, key, attention_mask)
        if self.maps is None:  # a checkpointed layer runs again in the backward pass: the first maps count
            self.maps = maps.unflatten(0, (len(hidden_states), attn.heads))
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(maps @ value)))


def watch(unet: nn.Module, resolution: int | None = None) -> list[KeepMaps]:
    """Put a KeepMaps on every cross-attention layer of a resolution, in latent pixels; by default a quarter of the
    latent's side. Raises InputError where the UNet attends at no such resolution."""
    wanted = resolution or unet.config.sample_size // 4
    named = [unit for unit in units(unet) if unit.name]
    paths = inside(unet.attn_processors, [unit.path for unit in named if unit.name[0] == wanted])
    paths = [path for path in paths if path.endswith(".attn2.processor")]
    if not paths:
        there = ", ".join(str(size) for size in sorted({unit.name[0] for unit in named}))
        raise InputError(f"this model has no cross-attention at {wanted}x{wanted} latents; it has {there}")
    keepers = {path: KeepMaps() for path in paths}
    unet.set_attn_processor({**unet.attn_processors, **keepers})
    return list(keepers.values())


def whole(words: str, text: str, start: int = 0, end: int | None = None) -> re.Match | None:
    """Where `words` stand in a text, not as a part of longer words."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)").search(text, start, len(text) if end is None else end)


def token_places(tokenizer, prompt: str, words: str, among: str) -> list[int]:
    """The token positions of all of `words`, as they stand inside of the phrase `among`, in a prompt.

    Raises InputError if the prompt, cut to the tokenizer's length, does not hold them.
    """
    phrase = whole(among, prompt)
    spans = [whole(word, prompt, *phrase.span()) for word in words.split()] if phrase else [None]
    offsets = tokenizer(prompt, return_offsets_mapping=True, truncation=True)["offset_mapping"]
    of_each = [
        [place for place, (low, high) in enumerate(offsets) if span and span.start() <= low < high <= span.end()]
        for span in spans
    ]
    places = sorted(place for found in of_each for place in found)
    if not all(of_each):
        raise InputError(f"the words {words!r} are not in the prompt {prompt!r}, or lie beyond the tokenizer's limit")
    return places


def mixed_places(tokenizer, batch, concepts: Sequence) -> list[tuple[bool, tuple[list[int], list[int]]] | None]:
    """Per sample of a samples.Batch what unmix_loss asks for: how it is stacked and where the words that tell the two
    subjects from their classes stand in its prompt."""
    found: list = []
    for mix, prompt in zip(batch.mixes, batch.prompts, strict=False):  # prompts of classes follow
        if mix is None:
            found.append(None)
            continue
        pair = [concepts[which] for which in mix.pair]
        places = [
            token_places(tokenizer, prompt, identifier(one.instance_prompt, one.class_prompt),
                         split_prompt(one.instance_prompt)[1]) for one in pair
        ]  # fmt: skip
        found.append((mix.stacked, tuple(places)))
    return found


def unmix_loss(maps: Sequence[Tensor], samples: Sequence[tuple[bool, tuple[list[int], list[int]]] | None]) -> Tensor:
    """mean((A_k (1 - M_k))^2) over layers, cut-mixed samples, the two subjects, heads and places.

    maps: per layer [B, heads, places, words]. samples: per item of the batch (stacked, token positions of the first and
    of the second subject), or None for an item that is not cut-mixed. Zero where no item is.
    """
    losses = []
    for of_layer in maps:
        side = round(of_layer.shape[2] ** 0.5)
        for item, sample in enumerate(samples):
            if sample is None:
                continue
            stacked, subjects = sample
            outside = 1 - half_masks(stacked, side).flatten(1).to(of_layer)  # [2, places]
            for tokens, elsewhere in zip(subjects, outside, strict=True):
                attention = of_layer[item, :, :, tokens].float().sum(-1)  # [heads, places]
                losses.append((attention * elsewhere).square().mean())
    return torch.stack(losses).mean() if losses else maps[0].new_zeros(())
