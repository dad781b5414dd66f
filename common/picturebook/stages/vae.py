"""Stage vae: an AutoencoderKL from 64x64 pictures to 16x16x4 latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run

BATCH, CROP, PEAK, KL_WEIGHT = 32, 32, 1.5e-3, 2e-4


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


def reconstruction_loss(made: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, and the absolute error of the gradients (outlines); pictures in [-1, 1]."""
    error = made - pictures
    edge = sum((a - b).abs().mean() for a, b in zip(edges(made), edges(pictures), strict=True))
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edge


def cut(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One random CROP x CROP window, the same for the whole batch."""
    top, left = torch.randint(0, 64 - CROP + 1, (2,), generator=generator).tolist()
    return pictures[..., top : top + CROP, left : left + CROP]


def train(corpus: Corpus, work: Path, steps: int, start: AutoencoderKL | None = None) -> AutoencoderKL:
    """Random windows at first; whole pictures for the last 30 %, because windows leave colour casts near borders.

    start: a trained one whose decoder is to improve. Its encoder stays frozen, so that latents (and a UNet trained on
    them) stay valid; whole pictures only, at half the learning rate.
    """
    torch.manual_seed(0)
    decoder_only = start is not None
    vae = (start or new_vae()).train().to(memory_format=torch.channels_last)
    vae.requires_grad_(True)
    if decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    name, peak = ("vae_decoder", PEAK / 2) if decoder_only else ("vae", PEAK)
    run = Run(name, work, vae, steps, peak, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in run.todo():
        generator = torch.Generator().manual_seed(step)
        whole = decoder_only or step > 0.7 * steps
        pictures = corpus.batch(order(len(corpus), BATCH, step)) * 2 - 1
        pictures = pictures[: BATCH // 4] if whole else cut(pictures, generator)
        pictures = pictures.to(DEVICE, memory_format=torch.channels_last)
        with torch.set_grad_enabled(not decoder_only):
            posterior = vae.encode(pictures).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
        noise = torch.randn(mean.shape, generator=generator).to(DEVICE)
        latents = mean if decoder_only else mean + (0.5 * logvar).exp() * noise
        made = vae.decode(latents).sample
        reconstruction = reconstruction_loss(made, pictures)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction + (0 if decoder_only else KL_WEIGHT * kl)
        psnr = -10 * torch.log10(((made.clamp(-1, 1) - pictures) / 2).detach().square().mean())
        run.descend(step, loss, reconstruction=reconstruction, kl=kl, psnr=psnr)
    return run.finish()


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, corpus: Corpus) -> float:
    """One over the latents' standard deviation, as SD's 0.18215 was found."""
    return float(1 / vae.encode(corpus.batch(range(512)) * 2 - 1).latent_dist.mean.std())
