"""Prompt-to-Prompt (arXiv 2208.01626): the target picture is drawn with the source picture's attention maps.

Semantics are those of the released null-text code, which SPDInv and PIE-Bench use; it differs from the first release
in replacing self-attention up to 32x32 tokens (not 16x16) and in starting LocalBlend after a fifth of the steps.
"""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from tqdm import tqdm

from spdinv.engines.alignment import cross_replace_schedule, equalizer_weights, refine_mapper, replace_matrix, word_mask
from spdinv.engines.attention import check_caught, hooked, level_size
from spdinv.sampling import Drawing

THRESHOLD, START = 0.3, 0.2  # of LocalBlend: share of a map's maximum; fraction of the steps after which it begins


class PromptToPrompt:
    """Attention control over a UNet batch [uncond_src, uncond_tgt, cond_src, cond_tgt]; only the last half is touched.

    Self-attention: for the first int(T * self_replace_steps) steps, layers of at most 32x32 tokens give the target the
    source's map. Cross-attention: layers of every size, for the steps and words of cross_replace_schedule.
    (Sizes are those at 64x64 latents; attention.level_size says what they are elsewhere.)

    prompts: [source, target]. steps: T. latent_size: (h, w). controller: "refine" (tokens aligned, new ones free) or
    "replace" (word for word). cross_replace_steps, self_replace_steps: fraction of the steps, from the noisy end, under
    control; the first may be a dict, see alignment.cross_replace_schedule. blended_words: (source word, target word),
    edit only where they are; substruct_words: such a pair to spare. equalizer: {target word: factor on its attention}.
    Raises InputError for words missing in their prompt and for prompts that the controller cannot match.
    """

    def __init__(
        self, pipe: DiffusionPipeline, prompts: list[str], steps: int, latent_size: tuple[int, int],
        controller: str = "refine", cross_replace_steps: float | dict[str, float] = 0.4,
        self_replace_steps: float = 0.6, blended_words: tuple[str, str] | None = None,
        substruct_words: tuple[str, str] | None = None, equalizer: dict[str, float] | None = None,
    ):  # fmt: skip
        tokenizer, (source, target) = pipe.tokenizer, prompts
        self.replace = replace_matrix(tokenizer, source, target) if controller == "replace" else None
        self.refine = refine_mapper(tokenizer, source, target) if controller == "refine" else None
        self.equalizer = equalizer_weights(tokenizer, target, equalizer or {})
        self.cross_alpha = cross_replace_schedule(tokenizer, target, steps, cross_replace_steps)
        self.self_replace_until = int(steps * self_replace_steps)
        self.self_size = level_size(pipe.unet, latent_size, 1)
        self.blend_size = level_size(pipe.unet, latent_size, 2)
        self.local_blend = None
        if blended_words:
            words = word_mask(tokenizer, prompts, blended_words)
            spared = word_mask(tokenizer, prompts, substruct_words) if substruct_words else None
            self.local_blend = LocalBlend(words, self.blend_size, steps, spared)
        self.step = 0
        self.seen = set()  # kinds of layers that came by in this step

    def wants_self(self, tokens: int) -> bool:
        small = tokens <= self.self_size[0] * self.self_size[1]
        return small and self.step < self.self_replace_until

    def edit_self(self, query, key, value):
        """The target attends with the source's queries and keys: its map is the source's, its values are its own."""
        self.seen.add("self-attention")
        src, tgt = len(query) // 2, len(query) // 2 + 1
        query[tgt], key[tgt] = query[src], key[src]
        return query, key, value

    def blends(self, tokens: int) -> bool:
        return self.local_blend is not None and tokens == self.blend_size[0] * self.blend_size[1]

    def wants_cross(self, tokens: int) -> bool:
        return bool(self.cross_alpha[self.step].any()) or self.blends(tokens)

    def edit_cross(self, maps):
        self.seen.add("cross-attention")
        source, target = maps[len(maps) // 2 :]  # [H, tokens, L] each
        alpha = self.cross_alpha[self.step].to(maps)
        maps[-1] = alpha * self.edited(source, target) + (1 - alpha) * target
        if self.blends(maps.shape[2]):
            self.seen.add("LocalBlend")
            self.local_blend.add(maps[len(maps) // 2 :])  # the edited maps, as released
        return maps

    def edited(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """AttentionReplace or AttentionRefine, then AttentionReweight; maps [H, tokens, L]."""
        if self.replace is not None:
            target = source @ self.replace.to(source)
        else:
            mapper, aligned = self.refine[0].to(source.device), self.refine[1].to(source)
            target = source[..., mapper] * aligned + target * (1 - aligned)
        return target * self.equalizer.to(target)  # rows no longer sum to 1, as released

    def end_step(self, z: torch.Tensor) -> torch.Tensor:
        """After the scheduler: LocalBlend. Raises InputError if the UNet has none of the layers to be controlled."""
        due = {
            "self-attention": self.step < self.self_replace_until,
            "cross-attention": bool(self.cross_alpha[self.step].any()),
            "LocalBlend": self.local_blend is not None,
        }
        check_caught("Prompt-to-Prompt", due, self.seen)
        self.seen.clear()
        self.step += 1
        return self.local_blend(z) if self.local_blend else z


check = PromptToPrompt  # whose making raises what an edit would


@torch.no_grad()
def edit(drawing: Drawing, z: torch.Tensor, prompts: list[str], **settings) -> torch.Tensor:
    """Latents of [source_prompt, target_prompt] from their noise z [2,4,h,w]; settings: PromptToPrompt's."""
    control = PromptToPrompt(drawing.pipe, prompts, drawing.steps, z.shape[-2:], **settings)
    with hooked(drawing.pipe.unet, control):
        for step in tqdm(range(drawing.steps), "Prompt-to-Prompt", leave=False, disable=None):
            z = control.end_step(drawing.step(z, step))
    return z


def blend_mask(maps: torch.Tensor, latent_size: tuple[int, int], pool: bool) -> torch.Tensor:
    """bool [2,1,h,w]: where either the source's or each picture's word map exceeds 0.3 of its own maximum. maps
    [2,1,mh,mw] >= 0, source first; one of zeros only, of a missing word, has no say. pool: take the largest of 3x3
    neighbours first. Upsampling is nearest."""
    if pool:
        maps = F.max_pool2d(maps, 3, stride=1, padding=1)
    maps = F.interpolate(maps, size=latent_size)
    mask = maps / maps.amax(dim=(2, 3), keepdim=True) > THRESHOLD  # 0 / 0 is above nothing
    return mask[:1] | mask


class LocalBlend:
    """Edit only where the attention of the blended words is (Sec. 4): sums word maps over layers, heads and steps, and
    pastes the source latent outside their mask.

    words, substruct_words: [2, L], 1 on the tokens of the words of the source and of the target prompt (see
    alignment.word_mask); where the attention of substruct_words is, the source stays. map_size: height and width of
    the maps that `add` gets.
    """

    def __init__(
        self, words: torch.Tensor, map_size: tuple[int, int], steps: int, substruct_words: torch.Tensor | None = None
    ):
        self.words = words if substruct_words is None else torch.cat([words, substruct_words])
        self.map_size = map_size
        self.start = int(START * steps)
        self.step = 0
        self.total = 0.0

    def add(self, maps: torch.Tensor) -> None:
        """Take in one layer's maps [2, H, mh * mw, L] of the source and target item."""
        weights = self.words.to(maps).unflatten(0, (-1, 2))  # [1 or 2 kinds of words, 2, L]
        self.total = self.total + torch.einsum("bhql,kbl->kbq", maps, weights).float()

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Called once per step, on the latents [2, 4, h, w] that the scheduler has just made."""
        self.step += 1
        if self.step <= self.start:
            return z
        maps = self.total.unflatten(-1, self.map_size)[:, :, None]  # [kinds, 2, 1, mh, mw]
        mask = blend_mask(maps[0], z.shape[-2:], pool=True)
        for substruct in maps[1:]:
            mask = mask & ~blend_mask(substruct, z.shape[-2:], pool=False)
        return torch.where(mask, z, z[:1])
