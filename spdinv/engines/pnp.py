"""Plug-and-Play (arXiv 2211.12572): the target picture is drawn over the source picture's features and attention.

As the released code on diffusers does it: the UNet's batch is [source, target unconditional, target conditional]; the
source item is not sampled but read from the inversion's trajectory at every step, and told "".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from tqdm import tqdm

from common.pipelines import Conditioning, encode_prompt
from common.runs import InputError
from spdinv.engines.attention import check_caught, hooked, layers
from spdinv.inversions import nmg
from spdinv.sampling import Drawing, generate


def feature_layer(unet: UNet2DConditionModel) -> tuple[str, list[str]]:
    """Where features are injected, and the paths of the self-attention layers where queries and keys are.

    Features: the second residual block of the coarsest decoder block that has attention; attention: all of the
    decoder's from there on. That is up_blocks.1.resnets.1 and eight layers in Stable Diffusion 1.x and 2.x, as
    published, up_blocks.0.resnets.1 and 26 layers in SDXL, and up_blocks.1.resnets.1 and three in the picturebook.
    Raises InputError where the decoder has no attention.
    """
    decoder = [path.split(".") for path in layers(unet, "attn1") if path.startswith("up_blocks.")]
    if not decoder:
        raise InputError("Plug-and-Play found no self-attention layer in this UNet's decoder to reach into.")
    block = min(int(path[1]) for path in decoder)
    after = [path for path in decoder if (int(path[1]), int(path[3])) >= (block, 1)]
    return f"up_blocks.{block}.resnets.1", [".".join(path) for path in after]


class Injection:
    """Adds the source item to every UNet call, and gives the other items its features, queries and keys. told: what the
    source item is told. steps: T. feature_steps, attention_steps: fraction of the steps, from the noisy end, with
    injected features and with injected attention; int(T * fraction) steps."""

    def __init__(self, told: Conditioning, steps: int, feature_steps: float, attention_steps: float):
        self.told = told
        self.feature_until, self.attention_until = int(steps * feature_steps), int(steps * attention_steps)
        self.latent = None  # of the source [1,4,h,w], at the level of this step
        self.step = 0
        self.seen = set()

    def join(self, unet: UNet2DConditionModel, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Before a UNet call: the source item goes first."""
        z, t = args
        own = Conditioning(kwargs["encoder_hidden_states"], kwargs["added_cond_kwargs"])
        both = Conditioning.cat(self.told, own)
        kwargs = {**kwargs, "encoder_hidden_states": both.embeds, "added_cond_kwargs": both.added}
        return (torch.cat([self.latent.to(z), z]), t), kwargs

    def inject_features(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        """After the last convolution of a residual block; its output [3, C, h, w] will be added to its own input."""
        if self.step >= self.feature_until:
            return output
        self.seen.add("feature")
        return output[:1].expand_as(output)

    def wants_self(self, tokens: int) -> bool:
        return self.step < self.attention_until

    def edit_self(self, query, key, value):
        self.seen.add("self-attention")
        return query[:1].expand_as(query), key[:1].expand_as(key), value

    def end_step(self) -> None:
        """Raises InputError if the UNet did not come by with the layers to be injected into."""
        due = {"feature": self.step < self.feature_until, "self-attention": self.step < self.attention_until}
        check_caught("Plug-and-Play", due, self.seen)
        self.seen.clear()
        self.step += 1


@contextmanager
def injected(unet: UNet2DConditionModel, injection: Injection) -> Iterator[None]:
    """Within this context `injection` acts on `unet`; afterwards all hooks are off, also after an error."""
    block, paths = feature_layer(unet)
    with (
        unet.register_forward_pre_hook(injection.join, with_kwargs=True),
        unet.register_forward_hook(lambda unet, args, output: (output[0][1:],)),  # the source item leaves again
        unet.get_submodule(block).conv2.register_forward_hook(injection.inject_features),
        hooked(unet, injection, paths),
    ):
        yield


def check(pipe: DiffusionPipeline, prompts: list[str], steps: int, latent_size: tuple[int, int], **settings) -> None:
    """Raises InputError for UNets without the layers that the engine needs."""
    feature_layer(pipe.unet)


@torch.no_grad()
def edit(
    drawing: Drawing, z: torch.Tensor, prompts: list[str], feature_steps: float = 0.8, attention_steps: float = 0.5,
    negative_prompt: str = "ugly, blurry, black, low res, unrealistic", source_latents: str = "trajectory",
) -> torch.Tensor:  # fmt: skip
    """Edit one inverted picture; prompts are [source_prompt, target_prompt], z [2,4,h,w] their noise.

    negative_prompt: what the target's unconditional half is told, unless the inversion brings embeddings for it. PIE-
    Bench's runner tells these words to every inversion, Plug-and-Play's own example others.
    source_latents: where the source item comes from, the inversion's "trajectory" or a "reconstruction" from its noise.
    What an inversion does to a source branch has no place here, since there is none: Direct Inversion's corrections are
    left out (as in its own Plug-and-Play), noise map guidance is refused.
    Returns latents [2,4,h,w], where the source came out (with "trajectory" the very latents that were inverted) first.
    """
    pipe, inversion, steps = drawing.pipe, drawing.inversion, drawing.steps
    if getattr(inversion.step, "func", None) is nmg.step:
        raise InputError("noise map guidance steers a source branch, and pnp samples none: take inversion ddim there.")
    uncond, cond = encode_prompt(pipe, [negative_prompt]), encode_prompt(pipe, prompts[1:])
    target = replace(drawing, inversion=replace(inversion, corrections=None), uncond=uncond, cond=cond)
    source, z = inversion.trajectory, z[1:]
    if source_latents == "reconstruction":
        source = generate(pipe, drawing.schedule, inversion.noise, encode_prompt(pipe, prompts[:1]), 1.0)
    injection = Injection(encode_prompt(pipe, [""]), steps, feature_steps, attention_steps)
    with injected(pipe.unet, injection):
        for step in tqdm(range(steps), "Plug-and-Play", leave=False, disable=None):
            injection.latent = source[steps - step]
            z = target.step(z, step)
            injection.end_step()
    return torch.cat([source[0], z])
