"""Small random pipelines with the parts of the real ones: the same classes, file layout, scheduler and tokenizer."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# These are one token each; any other text falls back to its letters (bytes).
WORDS = "a an the of on in and with to photo picture cat dog bird car house tree red blue green round small big".split()
WORDS += "white sitting standing left right grass snow sky night day hat".split()


def write_tokenizer(folder: str | Path, words: list[str] = WORDS, max_length: int = 77, pad: str | None = None) -> Path:
    """CLIPTokenizer files (vocab.json, merges.txt, tokenizer_config.json) whose merges make one token of each word."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    merges: list[tuple[str, str]] = []
    for word in words:
        while len(pieces := _bpe(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys(tokens + ["<|startoftext|>", "<|endoftext|>"]))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special["pad_token"] = pad or "<|endoftext|>"
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _bpe(word: str, merges: list[tuple[str, str]]) -> list[str]:
    pieces = [*word[:-1], word[-1] + "</w>"]
    for pair in merges:  # in rank order, which is how BPE applies them
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == pair:
                pieces[i : i + 2] = ["".join(pair)]
            i += 1
    return pieces


def tiny_tokenizer(max_length: int = 77, pad: str | None = None) -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return CLIPTokenizer.from_pretrained(write_tokenizer(folder, max_length=max_length, pad=pad))


def _text_config(tokenizer: CLIPTokenizer, width: int, **kw) -> CLIPTextConfig:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, **ids, **kw,
    )  # fmt: skip


def _vae(levels: int, scaling_factor: float, **kw) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        scaling_factor=scaling_factor, **kw,
    )  # fmt: skip


def _scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip


def tiny_sd(
    folder: str | Path | None = None, prediction_type: str = "epsilon", latent: int = 16, seed: int = 0,
    channels: tuple[int, ...] = (16, 32, 32), layers: int = 1, vae_levels: int = 3, max_length: int = 77,
) -> StableDiffusionPipeline:  # fmt: skip
    """SD 1.x in miniature (SD 2.x with prediction_type="v_prediction"): latents [B,4,latent,latent], VAE factor
    2 ** (vae_levels - 1), one UNet level per entry of channels, cross-attention in all but the last. Random weights
    that depend on the seed alone; saved to `folder` in diffusers layout when one is given."""
    cross = len(channels) - 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer(max_length)
        unet = UNet2DConditionModel(
            sample_size=latent, block_out_channels=channels, layers_per_block=layers, cross_attention_dim=32,
            down_block_types=("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * cross,
            attention_head_dim=2,  # the number of heads, in spite of its name, as in SD 1.x
            norm_num_groups=8,
        )  # fmt: skip
        pipe = StableDiffusionPipeline(
            vae=_vae(vae_levels, 0.18215), text_encoder=CLIPTextModel(_text_config(tokenizer, 32)),
            tokenizer=tokenizer, unet=unet, scheduler=_scheduler(prediction_type), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    return _finish(pipe, folder)


def tiny_sdxl(folder: str | Path | None = None, latent: int = 16, seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL in miniature: two text encoders (widths 32 and 48, the second with pooled output), added time ids, several
    transformer layers per block, a VAE that asks for float32."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer, tokenizer_2 = tiny_tokenizer(), tiny_tokenizer(pad="!")
        unet = UNet2DConditionModel(
            sample_size=latent, block_out_channels=(16, 32, 32), layers_per_block=1, cross_attention_dim=32 + 48,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2), attention_head_dim=(2, 4, 4), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 40, norm_num_groups=8,
        )  # fmt: skip
        pipe = StableDiffusionXLPipeline(
            vae=_vae(3, 0.13025, force_upcast=True), text_encoder=CLIPTextModel(_text_config(tokenizer, 32)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer_2, 48, projection_dim=40)),
            tokenizer=tokenizer, tokenizer_2=tokenizer_2, unet=unet, scheduler=_scheduler("epsilon"),
            add_watermarker=False,
        )  # fmt: skip
    return _finish(pipe, folder)


def tiny_sd3(folder: Path | None = None, seed: int = 0) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 in miniature: two CLIPs, no T5 (as the published folder allows), a transformer, flow matching.
    Latents [B,4,8,8], VAE factor 4 with a shift, timesteps shifted by 3 as published. Random weights."""
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


def _finish(pipe, folder):
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            getattr(pipe, name).eval().requires_grad_(False)
    if folder is not None:
        pipe.save_pretrained(folder)
        pipe.register_to_config(_name_or_path=str(folder))
    return pipe
