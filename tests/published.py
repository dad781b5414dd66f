"""Model folders as they were published on the hub, written from the published layout and not by the libraries.

Every tensor name, shape rule and config field is spelled out here from the files of CompVis/stable-diffusion-v1-4
(old VAE attention names, `text_model.` level, PNDM scheduler) and stabilityai/stable-diffusion-xl-base-1.0 (Euler
scheduler), with all blocks and layers, at reduced width. The tensor counts are those of the published files.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.tiny import write_tokenizer

Shapes = dict[str, tuple[int, ...]]


def _affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resnet(name: str, c_in: int, c_out: int, time: int = 0) -> Shapes:
    shapes = _affine(f"{name}.norm1", c_in) | _affine(f"{name}.conv1", c_out, c_in, 3, 3)
    shapes |= _affine(f"{name}.norm2", c_out) | _affine(f"{name}.conv2", c_out, c_out, 3, 3)
    if time:
        shapes |= _affine(f"{name}.time_emb_proj", c_out, time)
    if c_in != c_out:
        shapes |= _affine(f"{name}.conv_shortcut", c_out, c_in, 1, 1)
    return shapes


def _transformer(name: str, c: int, text: int, depth: int, linear: bool) -> Shapes:
    kernel = () if linear else (1, 1)
    shapes = _affine(f"{name}.norm", c)
    shapes |= _affine(f"{name}.proj_in", c, c, *kernel) | _affine(f"{name}.proj_out", c, c, *kernel)
    for block in (f"{name}.transformer_blocks.{d}" for d in range(depth)):
        for attention, width in (("attn1", c), ("attn2", text)):
            shapes |= {f"{block}.{attention}.to_q.weight": (c, c)}
            shapes |= {f"{block}.{attention}.to_{x}.weight": (c, width) for x in "kv"}
            shapes |= _affine(f"{block}.{attention}.to_out.0", c, c)
        shapes |= _affine(f"{block}.ff.net.0.proj", 8 * c, c) | _affine(f"{block}.ff.net.2", c, 4 * c)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _affine(f"{block}.{norm}", c)
    return shapes


def unet_shapes(channels: list[int], depths: list[int], text: int, linear: bool, added: int = 0) -> Shapes:
    """depths: transformer layers per level, 0 for a level without attention."""
    first, last, time = channels[0], channels[-1], 4 * channels[0]
    shapes = _affine("conv_in", first, 4, 3, 3) | _affine("conv_norm_out", first) | _affine("conv_out", 4, first, 3, 3)
    shapes |= _affine("time_embedding.linear_1", time, first) | _affine("time_embedding.linear_2", time, time)
    if added:
        shapes |= _affine("add_embedding.linear_1", time, added) | _affine("add_embedding.linear_2", time, time)
    skips, c = [first], first
    for i, (c_out, depth) in enumerate(zip(channels, depths, strict=True)):
        for j in range(2):
            shapes |= _resnet(f"down_blocks.{i}.resnets.{j}", c, c_out, time)
            if depth:
                shapes |= _transformer(f"down_blocks.{i}.attentions.{j}", c_out, text, depth, linear)
            c = c_out
            skips.append(c)
        if i < len(channels) - 1:
            shapes |= _affine(f"down_blocks.{i}.downsamplers.0.conv", c, c, 3, 3)
            skips.append(c)
    for j in range(2):
        shapes |= _resnet(f"mid_block.resnets.{j}", last, last, time)
    shapes |= _transformer("mid_block.attentions.0", last, text, depths[-1] or 1, linear)
    for i, (c_out, depth) in enumerate(zip(channels[::-1], depths[::-1], strict=True)):
        for j in range(3):
            shapes |= _resnet(f"up_blocks.{i}.resnets.{j}", c + skips.pop(), c_out, time)
            if depth:
                shapes |= _transformer(f"up_blocks.{i}.attentions.{j}", c_out, text, depth, linear)
            c = c_out
        if i < len(channels) - 1:
            shapes |= _affine(f"up_blocks.{i}.upsamplers.0.conv", c, c, 3, 3)
    return shapes


def vae_shapes(channels: list[int], attention: tuple[str, str, str, str]) -> Shapes:
    """attention: the names of query, key, value and output projection in the mid blocks."""
    last = channels[-1]
    shapes = _affine("quant_conv", 8, 8, 1, 1) | _affine("post_quant_conv", 4, 4, 1, 1)
    shapes |= _affine("encoder.conv_in", channels[0], 3, 3, 3) | _affine("encoder.conv_out", 8, last, 3, 3)
    shapes |= _affine("decoder.conv_in", last, 4, 3, 3) | _affine("decoder.conv_out", 3, channels[0], 3, 3)
    shapes |= _affine("encoder.conv_norm_out", last) | _affine("decoder.conv_norm_out", channels[0])
    for side, block, widths, layers, sampler in (
        ("encoder", "down_blocks", channels, 2, "downsamplers"),
        ("decoder", "up_blocks", channels[::-1], 3, "upsamplers"),
    ):
        c = widths[0]
        for i, c_out in enumerate(widths):
            for j in range(layers):
                shapes |= _resnet(f"{side}.{block}.{i}.resnets.{j}", c, c_out)
                c = c_out
            if i < len(widths) - 1:
                shapes |= _affine(f"{side}.{block}.{i}.{sampler}.0.conv", c, c, 3, 3)
        shapes |= _resnet(f"{side}.mid_block.resnets.0", last, last)
        shapes |= _resnet(f"{side}.mid_block.resnets.1", last, last)
        shapes |= _affine(f"{side}.mid_block.attentions.0.group_norm", last)
        for name in attention:
            shapes |= _affine(f"{side}.mid_block.attentions.0.{name}", last, last)
    return shapes


def text_shapes(width: int, layers: int, vocabulary: int, projection: int = 0) -> Shapes:
    shapes = {"text_model.embeddings.token_embedding.weight": (vocabulary, width)}
    shapes |= {"text_model.embeddings.position_embedding.weight": (77, width)}
    shapes |= _affine("text_model.final_layer_norm", width)
    for layer in (f"text_model.encoder.layers.{i}" for i in range(layers)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{layer}.self_attn.{name}", width, width)
        shapes |= _affine(f"{layer}.mlp.fc1", 4 * width, width) | _affine(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _affine(f"{layer}.layer_norm1", width) | _affine(f"{layer}.layer_norm2", width)
    return shapes | ({"text_projection.weight": (projection, width)} if projection else {})


def _random(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator) * 0.02
        is_norm = name.endswith(".weight") and len(shape) == 1
        weights[name] = 1 + noise if is_norm else noise * (5 if len(shape) > 1 else 1)
    return weights


def _write(folder: Path, config: dict, weights: dict[str, torch.Tensor], stem: str) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(weights, folder / f"{stem}.safetensors", metadata={"format": "pt"})
    return weights


def _write_tokenizer(folder: Path, pad: str) -> int:
    """As published: special tokens as objects, and a special_tokens_map.json. Returns the size of the vocabulary."""
    write_tokenizer(folder)
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = token | {"content": "<|startoftext|>"}, token | {"content": "<|endoftext|>"}
    special = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    typed = {k: v if isinstance(v, str) else {"__type": "AddedToken"} | v for k, v in special.items()}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77} | typed
    config |= {"special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))


def _text_config(width: int, layers: int, heads: int, vocabulary: int, act: str, name: str, projection: int) -> dict:
    """eos_token_id is wrong in the published files; the libraries know."""
    return {
        "architectures": [name], "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "dropout": 0.0, "hidden_act": act, "hidden_size": width, "initializer_factor": 1.0, "initializer_range": 0.02,
        "intermediate_size": 4 * width, "layer_norm_eps": 1e-05, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": heads, "num_hidden_layers": layers,
        "projection_dim": projection, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
        "vocab_size": vocabulary,
    }  # fmt: skip


UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "center_input_sample": False, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 4, "out_channels": 4,
}  # fmt: skip
CHANNELS, TEXT = [8, 16, 24, 24], 24  # of Stable Diffusion 1.x here
SD_UNET = UNET | {
    "attention_head_dim": 2, "block_out_channels": CHANNELS, "cross_attention_dim": TEXT, "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [4, 8, 16, 16], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 4, "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
NOISE = {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip


MODELS = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _write_index(folder: Path, index: dict, scheduler: dict) -> None:
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))


def sd_unet(seed: int, inputs: int = 4) -> dict[str, torch.Tensor]:
    shapes = unet_shapes(CHANNELS, [1, 1, 1, 0], TEXT, linear=False)
    return _random(shapes | {"conv_in.weight": (CHANNELS[0], inputs, 3, 3)}, seed)


def sd_vae(seed: int) -> dict[str, torch.Tensor]:
    return _random(vae_shapes(VAE["block_out_channels"], ("query", "key", "value", "proj_attn")), seed)


def write_sd(folder: str | Path, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """SD 1.4 as published (686 + 248 + 197 tensors), 64x64 latents. Returns the tensors of every file."""
    folder = Path(folder)
    vocabulary = _write_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    weights = {
        "unet": sd_unet(seed),
        "vae": sd_vae(seed + 1),
        "text_encoder": _random(text_shapes(TEXT, 12, vocabulary), seed + 2),
    }
    weights["text_encoder"]["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _write(folder / "unet", SD_UNET, weights["unet"], "diffusion_pytorch_model")
    _write(folder / "vae", VAE | {"sample_size": 512}, weights["vae"], "diffusion_pytorch_model")
    config = _text_config(TEXT, 12, 2, vocabulary, "quick_gelu", "CLIPTextModel", 24)
    _write(folder / "text_encoder", config, weights["text_encoder"], "model")
    index = MODELS | {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.2.2",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }  # fmt: skip
    _write_index(folder, index, {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0"} | NOISE)
    return weights


def write_sdxl(folder: str | Path, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """SDXL base 1.0 as published (1680 + 248 + 196 + 517 tensors), 128x128 latents. Returns the tensors."""
    folder, channels, depths, widths, pooled = Path(folder), [8, 16, 24], [0, 2, 10], (16, 24), 24
    vocabulary = _write_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    _write_tokenizer(folder / "tokenizer_2", pad="!")
    unet = UNET | {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "attention_head_dim": [2, 4, 4],
        "block_out_channels": channels, "cross_attention_dim": sum(widths), "sample_size": 128,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "projection_class_embeddings_input_dim": 6 * 8 + pooled, "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True, "_diffusers_version": "0.19.0.dev0",
    }  # fmt: skip
    shapes = unet_shapes(channels, depths, sum(widths), linear=True, added=6 * 8 + pooled)
    names = ("to_q", "to_k", "to_v", "to_out.0")
    weights = {
        "unet": _random(shapes, seed),
        "vae": _random(vae_shapes(VAE["block_out_channels"], names), seed + 1),
        "text_encoder": _random(text_shapes(widths[0], 12, vocabulary), seed + 2),
        "text_encoder_2": _random(text_shapes(widths[1], 32, vocabulary, pooled), seed + 3),
    }
    vae = VAE | {"force_upcast": True, "scaling_factor": 0.13025, "sample_size": 1024}
    _write(folder / "unet", unet, weights["unet"], "diffusion_pytorch_model")
    _write(folder / "vae", vae, weights["vae"], "diffusion_pytorch_model")
    config = _text_config(widths[0], 12, 2, vocabulary, "quick_gelu", "CLIPTextModel", 16)
    _write(folder / "text_encoder", config, weights["text_encoder"], "model")
    config = _text_config(widths[1], 32, 2, vocabulary, "gelu", "CLIPTextModelWithProjection", pooled)
    _write(folder / "text_encoder_2", config, weights["text_encoder_2"], "model")
    index = MODELS | {
        "_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0.dev0",
        "force_zeros_for_empty_prompt": True, "add_watermarker": None,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    euler = {"interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0}
    euler |= {"timestep_spacing": "leading", "use_karras_sigmas": False}
    _write_index(folder, index, {"_class_name": "EulerDiscreteScheduler"} | NOISE | euler)
    return weights
