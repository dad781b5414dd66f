"""Stable Diffusion 3 in miniature: two CLIPs, no T5 (as the published folder allows), a transformer, flow matching."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from tests.tiny import _finish, _text_config, _vae, tiny_tokenizer


def tiny_sd3(folder: Path | None = None, seed: int = 0) -> StableDiffusion3Pipeline:
    """Latents [B,4,8,8], VAE factor 4 with a shift, timesteps shifted by 3 as published. Random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad="!")
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=96, caption_projection_dim=16, pooled_projection_dim=24 + 40, out_channels=4,
            pos_embed_max_size=8,
        )  # fmt: skip
        pipe = StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(3, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, 32, projection_dim=24)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, 48, projection_dim=40)),
            tokenizer=tokenizer, tokenizer_2=tokenizer_2, text_encoder_3=None, tokenizer_3=None,
        )  # fmt: skip
    return _finish(pipe, folder)
