"""The UNet on scenes with known answers: its error by noise level, where its words look, inversion, seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline

from common.picturebook.drawing import draw
from common.picturebook.quality import (
    STEPS,
    Result,
    all_words,
    drawn,
    generate,
    held_out_scenes,
    pipeline,
    psnr,
)
from common.picturebook.scenes import Scene, sample_scene
from common.picturebook.stages.corpus import FIRST_SEED
from common.picturebook.tokenizer import MAX_LENGTH

LEVELS = (21, 61, 121, 241, 481, 721, 961)


def text_states(pipe: StableDiffusionPipeline, prompts: list[str]) -> torch.Tensor:
    settings = dict(padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    return pipe.text_encoder(pipe.tokenizer(prompts, **settings).input_ids).last_hidden_state


def encoded(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents [B, 4, 16, 16] and text states [B, 77, D] of scenes and their captions."""
    latents = [pipe.vae.encode(part * 2 - 1).latent_dist.mean for part in drawn(scenes).split(100)]
    return torch.cat(latents) * pipe.vae.config.scaling_factor, text_states(pipe, [all_words(s) for s in scenes])


def noised(pipe: StableDiffusionPipeline, latents: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(noisy latents at level t, the noise); the noise of a level is always the same."""
    noise, a = torch.randn(latents.shape, generator=torch.Generator().manual_seed(t)), pipe.scheduler.alphas_cumprod[t]
    return a.sqrt() * latents + (1 - a).sqrt() * noise, noise


@torch.inference_mode()
def denoising(count: int) -> Iterator[Result]:
    """Mean squared error of the predicted noise, told the caption; a UNet that predicts nothing has 1."""
    pipe = pipeline()
    latents, context = encoded(pipe, [sample_scene(FIRST_SEED["test"] + k, marked=0.0) for k in range(count)])
    for t in LEVELS:
        noisy, noise = noised(pipe, latents, t)
        parts = zip(noisy.split(100), context.split(100), strict=True)
        made = torch.cat([pipe.unet(x, t, c).sample for x, c in parts])
        yield Result(f"UNet: error of the noise at t = {t}", float((made - noise).square().mean()), count,
                     at_least=False)  # fmt: skip


class Watch:
    """An attention processor that computes plain attention and keeps the cross-attention maps of 16x16 queries."""

    def __init__(self, maps: list[torch.Tensor]):
        self.maps = maps

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        weights = attn.get_attention_scores(q, k)
        if encoder_hidden_states is not None and q.shape[1] == 256:
            self.maps.append(weights.unflatten(0, (len(hidden_states), -1)).mean(1))
        return attn.to_out[0](attn.batch_to_head_dim(weights @ v))


@torch.inference_mode()
def noun_maps(pipe: StableDiffusionPipeline, scenes: list[Scene]) -> torch.Tensor:
    """Cross-attention of the first thing's noun, averaged over the 16x16 maps at three noise levels: [B, 16, 16]."""
    maps: list[torch.Tensor] = []
    latents, context = encoded(pipe, scenes)
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(Watch(maps))
    try:
        for t in (301, 501, 701):
            pipe.unet(noised(pipe, latents, t)[0], t, context)
    finally:
        pipe.unet.set_attn_processor(before)
    nouns = [
        pipe.tokenizer(all_words(scene)).input_ids.index(pipe.tokenizer(scene.things[0].kind).input_ids[1])
        for scene in scenes
    ]
    return torch.stack(maps).mean(0)[torch.arange(len(scenes)), :, nouns].unflatten(1, (16, 16))


def attention(count: int) -> Iterator[Result]:
    """The noun's map above half its range, against the thing's true mask."""
    pipe, scenes, overlaps = pipeline(), held_out_scenes(count, 1), []
    for start in range(0, count, 50):
        part = scenes[start : start + 50]
        heat = F.interpolate(noun_maps(pipe, part)[:, None], (64, 64), mode="bilinear")[:, 0]
        low, high = (f(heat, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
        found = (heat - low) / (high - low) > 0.5
        true = torch.from_numpy(np.stack([draw(scene).masks[0] for scene in part])) > 0
        overlaps += ((found & true).sum((1, 2)) / (found | true).sum((1, 2))).tolist()
    yield Result(
        "word attention of the noun against the thing's mask (IoU)", float(np.mean(overlaps)), count, 0.45, 0.6
    )


@torch.inference_mode()
def inversion(count: int) -> Iterator[Result]:
    """DDIM inversion with the scene's caption at guidance 1, sampled back, against the VAE's own reconstruction.

    As in null-text inversion's code the network sees the timestep that a step goes to.
    """
    pipe, count = pipeline(), min(count, 40)
    latents, context = encoded(pipe, [sample_scene(FIRST_SEED["test"] + k, marked=0.0) for k in range(count)])
    pipe.scheduler.set_timesteps(STEPS)
    alpha_bar, z = pipe.scheduler.alphas_cumprod, latents

    def move(z, noise, start, end):
        a, b = alpha_bar[max(start, 0)], alpha_bar[max(end, 0)]
        return b.sqrt() * (z - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise

    stride = 1000 // STEPS
    for t in reversed(pipe.scheduler.timesteps.tolist()):
        z = move(z, pipe.unet(z, t, context).sample, t - stride, t)
    for t in pipe.scheduler.timesteps.tolist():
        z = move(z, pipe.unet(z, t, context).sample, t, t - stride)
    made, own = (
        (pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1) for x in (z, latents)
    )
    back = float(psnr(made, own).mean())
    yield Result("DDIM inversion and back, guidance 1, against the VAE's own (dB)", back, count, 35)


def seconds(count: int) -> Iterator[Result]:
    pipe, prompts = pipeline(), ["a red cat in a meadow"] * 16
    generate(pipe, prompts[:2])
    start = time.time()
    generate(pipe, prompts)
    yield Result("16 samples of 50 steps at guidance 7.5 (seconds)", time.time() - start, 16, 12, 10, at_least=False)
