"""Stage unet: a text-conditioned UNet that predicts the noise in 16x16x4 latents, with Stable Diffusion's schedule."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from common.picturebook.stages.corpus import Corpus, order
from common.picturebook.stages.training import DEVICE, Run, fast, load, save
from common.picturebook.tokenizer import MAX_LENGTH

BATCH, PEAK, CAPTION_DROPOUT = 64, 8e-4, 0.1
# How often an epoch shows each scene of one, two and three things: which colour belongs to which of two things is
# learnt last.
SHOWN = {1: 1, 2: 2, 3: 1}
SNR_CAP = 20.0  # not 5: the levels above it draw outlines and eyes, and would hardly count


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's constants."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
    )  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """Three levels with cross-attention at 16x16, 8x8 and, in the middle, 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 160),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 4),  # diffusers' old name: the number of heads
        norm_num_groups=16,
    )


@torch.no_grad()
def latent_statistics(corpus: Corpus, vae: AutoencoderKL, work: Path) -> torch.Tensor:
    """Mean and standard deviation of the posterior of every training picture: float16 [count, 2, 4, 16, 16].

    Computed once per encoder, whose weights name the file.
    """
    weights = b"".join(weight.numpy().tobytes() for weight in vae.encoder.state_dict().values())
    path = work / f"latents_{len(corpus)}_{hashlib.sha256(weights).hexdigest()[:12]}.pt"
    vae.to(DEVICE, memory_format=torch.channels_last)
    if not path.exists():
        blocks = []
        for start in tqdm(range(0, len(corpus), 100), desc="latents", mininterval=10):
            pictures = corpus.batch(range(start, min(start + 100, len(corpus)))) * 2 - 1
            with fast():
                posterior = vae.encode(pictures.to(DEVICE, memory_format=torch.channels_last)).latent_dist
            blocks.append(torch.stack([posterior.mean.float(), posterior.std.float()], dim=1).half().cpu())
        save(path, latents=torch.cat(blocks))
    return load(path)["latents"].cpu()


def train(
    corpus: Corpus,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    work: Path,
    steps: int,
    unet: UNet2DConditionModel,
    compiled: bool = False,
) -> UNet2DConditionModel:
    """unet: to go on from where no checkpoint is left. compiled: 1.4 times faster once a compiler has run."""
    torch.manual_seed(0)
    statistics = latent_statistics(corpus, vae, work)
    scale = vae.config.scaling_factor
    alpha_bar = new_scheduler().alphas_cumprod
    text_encoder = text_encoder.to(DEVICE)
    unet = unet.requires_grad_(True).to(memory_format=torch.channels_last)
    unet.set_attn_processor(AttnProcessor())  # faster than SDPA backwards for heads this small
    predict = torch.compile(unet, dynamic=False) if compiled else unet
    run = Run("unet", work, unet, steps, PEAK, ema=0.999, betas=(0.9, 0.99), weight_decay=0.01)
    deck = np.repeat(np.arange(len(corpus)), [SHOWN[len(scene.things)] for scene in corpus.scenes])
    for step in run.todo():
        generator, rng = torch.Generator().manual_seed(step), random.Random(f"unet {step}")
        indices = deck[order(len(deck), BATCH, step)]
        captions = ["" if rng.random() < CAPTION_DROPOUT else text for text in corpus.captions(indices, rng)]
        ids = tokenizer(
            captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids
        with torch.no_grad(), fast():
            context = text_encoder(ids.to(DEVICE)).last_hidden_state.float()
        mean, std = statistics[indices].float().unbind(1)
        latents = scale * (mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        t = torch.randint(0, 1000, (BATCH,), generator=generator)
        a = alpha_bar[t][:, None, None, None]
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).to(DEVICE, memory_format=torch.channels_last)
        with fast():
            predicted = predict(noisy, t.to(DEVICE), context).sample.float()
        error = (predicted - noise.to(DEVICE)).square().mean((1, 2, 3))
        # min-SNR weighting (Hang et al. 2023): evens out the levels; its authors report 3.4 times fewer steps
        snr = (alpha_bar[t] / (1 - alpha_bar[t])).to(DEVICE)
        loss = (error * snr.clamp(max=SNR_CAP) / snr).mean()
        run.descend(step, loss, error=error.mean())
    unet.set_default_attn_processor()
    return run.finish()
