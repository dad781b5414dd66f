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

# How a sample is stacked, and the token positions of its first and second subject; None where it is not cut-mixed
Mixed = tuple[bool, tuple[list[int], list[int]]] | None


class KeepMaps:
    """An attention processor that computes its layer's maps in the open and keeps those of the UNet's last forward
    pass, [B, heads, places, words]."""

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
    sizes = {path: name[0] for path, name in units(unet).items() if name}
    paths = inside(unet.attn_processors, [path for path, size in sizes.items() if size == wanted])
    paths = [path for path in paths if path.endswith(".attn2.processor")]
    if not paths:
        there = ", ".join(map(str, sorted(set(sizes.values()))))
        raise InputError(f"this model has no cross-attention at {wanted}x{wanted} latents; it has {there}")
    keepers = {path: KeepMaps() for path in paths}
    unet.set_attn_processor({**unet.attn_processors, **keepers})

    def forget(*_) -> None:
        for keeper in keepers.values():
            keeper.maps = None

    unet.register_forward_pre_hook(forget)
    return list(keepers.values())


def whole(words: str, text: str, start: int = 0, end: int | None = None) -> re.Match | None:
    """Where `words` stand in a text, not as a part of longer words."""
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)").search(text, start, len(text) if end is None else end)


def token_places(tokenizer, prompt: str, words: str, among: str) -> list[int]:
    """The token positions of all of `words`, as they stand inside of the phrase `among`, in a prompt. Raises InputError
    if the prompt, cut to the tokenizer's length, does not hold them."""
    phrase = whole(among, prompt)
    spans = [whole(word, prompt, *phrase.span()) for word in words.split()] if phrase else [None]
    offsets = tokenizer(prompt, return_offsets_mapping=True, truncation=True)["offset_mapping"]
    found = [[place for place, (low, high) in enumerate(offsets) if span and span.start() <= low < high <= span.end()]
             for span in spans]  # fmt: skip
    if not all(found):
        raise InputError(f"the words {words!r} are not in the prompt {prompt!r}, or lie beyond the tokenizer's limit")
    return sorted(place for places in found for place in places)


def mixed_places(tokenizer, batch, concepts: Sequence) -> list[Mixed]:
    """Per sample of a samples.Batch what unmix_loss asks for. The words that tell a subject from its class count."""

    def places(prompt: str, one) -> list[int]:
        words, phrase = identifier(one.instance_prompt, one.class_prompt), split_prompt(one.instance_prompt)[1]
        return token_places(tokenizer, prompt, words, phrase)

    of_subjects = zip(batch.mixes, batch.prompts, strict=False)  # prompts of classes follow
    return [mix and (mix.stacked, tuple(places(prompt, concepts[which]) for which in mix.pair))
            for mix, prompt in of_subjects]  # fmt: skip


def unmix_loss(maps: Sequence[Tensor], samples: Sequence[Mixed]) -> Tensor:
    """mean((A_k (1 - M_k))^2) over layers, cut-mixed samples, the two subjects, heads and places; zero without any.
    maps: per layer [B, heads, places, words]. samples: one for each item of the batch, or of its first half."""
    mixed, losses = [(item, *sample) for item, sample in enumerate(samples) if sample], []
    for of_layer in maps:
        side = round(of_layer.shape[2] ** 0.5)
        for item, stacked, subjects in mixed:
            outside = 1 - half_masks(stacked, side).flatten(1).to(of_layer)  # [2, places]
            for tokens, elsewhere in zip(subjects, outside, strict=True):
                attention = of_layer[item, :, :, tokens].float().sum(-1)  # [heads, places]
                losses.append((attention * elsewhere).square().mean())
    return torch.stack(losses).mean() if losses else maps[0].new_zeros(())
