"""MasaCtrl (arXiv 2304.08465): the target picture looks up its self-attention's keys and values in the source picture.

From a certain step and layer on, so that the target prompt decides the layout and the source the looks (its Sec. 3.2).
"""

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.runs import InputError
from spdinv.engines.attention import Control, hooked, layers
from spdinv.sampling import Drawing

START_LAYER = 10 / 16  # the tenth of Stable Diffusion's sixteen, counted from 0; as deep in other UNets
# In which of the two pictures (0 source, 1 target) the target's queries find keys and values; twice one is as once.
SEEN = {"src": (0, 0), "joint": (0, 1), "none": (1, 1)}


class MutualSelfAttention(Control):
    """Attention control over a UNet batch [uncond_src, uncond_tgt, cond_src, cond_tgt]; source items see themselves.

    In steps start_step ... T - 1 and layers start_layer and up, the target's queries attend to the keys and values of
    the source item of the same half.

    pipe: for the layout of its UNet. steps: T. prompts, latent_size: what every engine's check is told; not used here.
    start_layer: counted from 0 in the order of the calls, all self-attention layers of the UNet; None is 10 of 16, in
    other UNets round(10 / 16 of their number): 44 of SDXL's 70, 4 of the picturebook's 7.
    inject_uncond, inject_cond: what the target sees in each half, the source ("src"), source and target ("joint", the
    released union variant) or itself ("none").
    Raises InputError where no layer or no step would be touched.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: list[str],
        steps: int,
        latent_size: tuple[int, int],
        start_step: int = 4,
        start_layer: int | None = None,
        inject_uncond: str = "src",
        inject_cond: str = "src",
    ):
        super().__init__()
        present = layers(pipe.unet, "attn1")
        start = round(START_LAYER * len(present)) if start_layer is None else start_layer
        self.layers, self.start_step = present[start:], start_step
        if not self.layers:
            raise InputError(
                f"MasaCtrl would touch no layer: it starts at layer {start}, counted from 0, and this UNet has "
                f"{len(present)} of self-attention; take a smaller start_layer."
            )
        if start_step >= steps:
            raise InputError(
                f"MasaCtrl would touch no step: it starts at step {start_step} of {steps}; take a smaller start_step."
            )
        # Item by item, whose keys and values it sees; where anyone sees two pictures, everyone's are listed twice.
        pairs = zip(SEEN[inject_uncond], SEEN[inject_cond], strict=True)
        self.sources = [[0, uncond, 2, 2 + cond] for uncond, cond in dict.fromkeys(pairs)]

    def wants_self(self, tokens: int) -> bool:
        return self.step >= self.start_step

    def edit_self(self, query, key, value):
        self.seen.add("self-attention")
        return query, *(torch.cat([x[items] for items in self.sources], dim=2) for x in (key, value))


check = MutualSelfAttention  # whose making raises what an edit would


@torch.no_grad()
def edit(drawing: Drawing, z: torch.Tensor, prompts: list[str], **settings) -> torch.Tensor:
    """Latents of [source_prompt, target_prompt] from their noise z [2,4,h,w]; settings: MutualSelfAttention's."""
    control = MutualSelfAttention(drawing.pipe, prompts, drawing.steps, z.shape[-2:], **settings)
    with hooked(drawing.pipe.unet, control, control.layers):
        for step in tqdm(range(drawing.steps), "MasaCtrl", leave=False, disable=None):
            z = drawing.step(z, step)
            control.end_step({"self-attention": step >= control.start_step})
    return z
