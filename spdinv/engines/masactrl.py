"""MasaCtrl (arXiv 2304.08465): the target picture looks up its self-attention's keys and values in the source picture.

From a certain step and layer on, so that the target prompt decides the layout and the source the looks (its Sec. 3.2).
"""

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.runs import InputError
from spdinv.engines.alignment import word_mask
from spdinv.engines.attention import check_caught, hooked, layers, level_size, token_grid
from spdinv.sampling import Drawing

START_LAYER = 10 / 16  # the tenth of Stable Diffusion's sixteen, counted from 0; as deep in other UNets
MASK_THRESHOLD = 0.1
# In which of the two pictures (0 source, 1 target) the target's queries find keys and values; twice one is as once.
SEEN = {"src": (0, 0), "joint": (0, 1), "none": (1, 1)}


class MutualSelfAttention:
    """Attention control over a UNet batch [uncond_src, uncond_tgt, cond_src, cond_tgt]; source items see themselves.

    In steps start_step ... T - 1 and layers start_layer and up, the target's queries attend to the keys and values of
    the source item of the same half.

    prompts: [source, target]. steps: T. latent_size: (h, w). start_layer: of all self-attention layers in the order of
    the calls; None is 10 of 16, in other UNets round(10 / 16 of their number): 44 of SDXL's 70, 4 of the picturebook's
    7. inject_uncond, inject_cond: what the target sees in each half, the source ("src"), source and target ("joint",
    the released union variant) or itself ("none").
    mask_words: (source word, target word); the masks of MasaCtrl's Sec. 3.3 are read off these words' cross-attention
    in the layers of 16x16 tokens (attention.level_size) that the step has passed so far. masks: [H,W] of 0 and 1, of
    the source and of the target picture, given instead. With masks, a query of the target's foreground sees the
    source's foreground only, and one of the background the background (everything, where that is empty).
    Raises InputError where no layer or no step would be touched, and for words missing in their prompt.
    """

    def __init__(
        self, pipe: DiffusionPipeline, prompts: list[str], steps: int, latent_size: tuple[int, int],
        start_step: int = 4, start_layer: int | None = None, inject_uncond: str = "src", inject_cond: str = "src",
        mask_words: tuple[str, str] | None = None, masks: tuple[torch.Tensor, torch.Tensor] | None = None,
    ):  # fmt: skip
        present = layers(pipe.unet, "attn1")
        start = round(START_LAYER * len(present)) if start_layer is None else start_layer
        self.layers = present[start:]
        if not self.layers:
            raise InputError(f"MasaCtrl would touch no layer: it starts at layer {start}, counted from 0, and this "
                             f"UNet has {len(present)} of self-attention; take a smaller start_layer.")  # fmt: skip
        if start_step >= steps:
            raise InputError(f"MasaCtrl would touch no step: it starts at step {start_step} of {steps}; take a smaller "
                             "start_step.")  # fmt: skip
        if mask_words:
            self.words = word_mask(pipe.tokenizer, prompts, mask_words)
            self.map_size = level_size(pipe.unet, latent_size, 2)
            self.layers = self.layers + layers(pipe.unet, "attn2")
        # Item by item, whose keys and values it sees; where anyone sees two pictures, everyone's are listed twice.
        pairs = zip(SEEN[inject_uncond], SEEN[inject_cond], strict=True)
        self.sources = [[0, uncond, 2, 2 + cond] for uncond, cond in dict.fromkeys(pairs)]
        self.start_step, self.latent_size, self.mask_words, self.masks = start_step, latent_size, mask_words, masks
        self.step = 0
        self.seen = set()  # kinds of layers changed in this step
        self.total = None  # word attention [2, tokens] of this step, summed over layers

    def wants_self(self, tokens: int) -> bool:
        return self.step >= self.start_step

    def edit_self(self, query, key, value):
        self.seen.add("self-attention")
        mask = self.allowed(key.shape[2])
        key, value = (torch.cat([x[items] for items in self.sources], dim=2) for x in (key, value))
        return (query, key, value) if mask is None else (query, key, value, mask.to(query.device))

    def allowed(self, tokens: int) -> torch.Tensor | None:
        """bool [4, 1, tokens, keys]: which keys each query may see; None is all."""
        masks = self.masks_at(tokens)
        if masks is None:
            return None
        source, target = masks
        alike = target[:, None] == source  # [queries of the target, keys of the source]
        alike = alike | ~alike.any(1, keepdim=True)
        allowed = torch.ones(4, 1, tokens, len(self.sources), tokens, dtype=torch.bool, device=alike.device)
        for part, items in enumerate(self.sources):
            for item in (1, 3):
                if items[item] == item - 1:
                    allowed[item, 0, :, part] = alike
        return allowed.flatten(3)

    def masks_at(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Foreground of source and target in a layer of so many tokens, bool [tokens] each."""
        grid = token_grid(tokens, self.latent_size)
        if self.masks is not None:
            masks = [mask[None].float() > 0.5 for mask in self.masks]
        elif self.total is not None:
            low, high = self.total.amin(1, keepdim=True), self.total.amax(1, keepdim=True)
            masks = ((self.total - low) / (high - low) >= MASK_THRESHOLD).unflatten(1, self.map_size).split(1)
        else:
            return None
        source, target = (F.interpolate(mask[None].float(), grid).flatten() > 0 for mask in masks)  # nearest
        return source, target

    def wants_cross(self, tokens: int) -> bool:
        return self.step >= self.start_step and tokens == self.map_size[0] * self.map_size[1]

    def edit_cross(self, maps):
        """Reads the words' maps, changes nothing."""
        found = torch.einsum("bhql,bl->bq", maps[2:].float(), self.words.to(maps.device)) / maps.shape[1]
        self.total = found if self.total is None else self.total + found
        return maps

    def end_step(self) -> None:
        """Raises InputError if the UNet did not come by with the layers to be controlled."""
        check_caught("MasaCtrl", {"self-attention": self.step >= self.start_step}, self.seen)
        self.seen.clear()
        self.step, self.total = self.step + 1, None


check = MutualSelfAttention  # whose making raises what an edit would


@torch.no_grad()
def edit(drawing: Drawing, z: torch.Tensor, prompts: list[str], **settings) -> torch.Tensor:
    """Latents of [source_prompt, target_prompt] from their noise z [2,4,h,w]; settings: MutualSelfAttention's."""
    control = MutualSelfAttention(drawing.pipe, prompts, drawing.steps, z.shape[-2:], **settings)
    with hooked(drawing.pipe.unet, control, control.layers):
        for step in tqdm(range(drawing.steps), "MasaCtrl", leave=False, disable=None):
            z = drawing.step(z, step)
            control.end_step()
    return z
