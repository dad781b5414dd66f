"""Stage vae: an AutoencoderKL from 64x64 pictures to 16x16x4 latents."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run, fast

BATCH, PEAK, KL_WEIGHT = 12, 1e-3, 2e-5
THINGS = 6.0  # how much more an error inside of a thing counts: things are a fifth of a picture, and what it is about


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def edges(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def weights_of(masks: torch.Tensor) -> torch.Tensor:
    """One over the background, 1 + THINGS inside of things and one pixel around them; its mean over a batch is one."""
    weights = 1 + THINGS * F.max_pool2d(masks, 3, 1, 1)
    return weights / weights.mean()


def reconstruction_loss(made: torch.Tensor, pictures: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the gradients (outlines), weighted by pixel [B, 1, 64, 64];
    pictures in [-1, 1]."""
    error = made - pictures
    at_edges = (weights[..., 1:], weights[..., 1:, :])
    edge = sum((w * (a - b).abs()).mean() for w, a, b in zip(at_edges, edges(made), edges(pictures), strict=True))
    return (weights * (error.abs() + 2 * error.square())).mean() + 0.5 * edge


def train(
    corpus: Corpus, work: Path, steps: int, start: AutoencoderKL | None = None, decoder_only=False, compiled=False
) -> AutoencoderKL:
    """The trained VAE. start: one to go on from; with decoder_only its encoder stays frozen, so that latents (and a
    UNet trained on them) stay valid, at half the learning rate."""
    torch.manual_seed(0)
    vae = (start or new_vae()).train().to(memory_format=torch.channels_last).requires_grad_(True)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    name, peak = ("vae_decoder", PEAK / 2) if decoder_only else ("vae", PEAK)
    run = Run(name, work, vae, steps, peak, betas=(0.9, 0.99), weight_decay=1e-4)
    encode, decode = vae.encoder, vae.decoder
    if compiled:
        encode, decode = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)
    for step in run.todo():
        generator = torch.Generator().manual_seed(step)
        indices = order(len(corpus), BATCH, step)
        pictures = (corpus.batch(indices) * 2 - 1).to(DEVICE, memory_format=torch.channels_last)
        weights = weights_of(corpus.masks(indices)).to(DEVICE)
        with fast():
            with torch.set_grad_enabled(not decoder_only):
                moments = DiagonalGaussianDistribution(vae.quant_conv(encode(pictures)).float())
            mean, logvar = moments.mean, moments.logvar
            noise = torch.randn(mean.shape, generator=generator).to(DEVICE)
            latents = mean if decoder_only else mean + (0.5 * logvar).exp() * noise
            made = decode(vae.post_quant_conv(latents)).float()
        reconstruction = reconstruction_loss(made, pictures, weights)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + (0 if decoder_only else KL_WEIGHT * kl)
        wrong = ((made.clamp(-1, 1) - pictures) / 2).detach().square().mean(1, keepdim=True)
        inside = (weights > 1).float()
        decibel = {"psnr": wrong.mean(), "inside": (wrong * inside).sum() / inside.sum()}
        decibel = {key: -10 * torch.log10(value) for key, value in decibel.items()}
        run.descend(step, loss, reconstruction=reconstruction, kl=kl, **decibel)
    return run.finish()


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, corpus: Corpus) -> float:
    """One over the latents' standard deviation, as SD's 0.18215 was found."""
    return float(1 / vae.encode(corpus.batch(range(512)) * 2 - 1).latent_dist.mean.std())
