"""Small random inpainting models, and published key names and shapes written out."""

import json
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.published import MODELS, NOISE, SD_UNET, VAE, _affine, _random, _write, _write_index, sd_unet, sd_vae
from tests.tiny import tiny_sd


def vision_tower(side: int = 32, width: int = 16, layers: int = 4) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        image_size=side, patch_size=8, projection_dim=32,
    )  # fmt: skip
    return CLIPVisionModel(config).eval()


def tiny_inpainter(folder: Path | None = None, seed: int = 0):
    """Paint-by-Example in miniature: 16x16 latents, 64-pixel pictures, 32-pixel references; every weight is random,
    those of the five extra channels too. Written to `folder` in the published layout when one is given."""
    from image_inpaint.conditioning import new_encoder, widen
    from image_inpaint.loading import assemble, save

    pipe = tiny_sd(seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, encoder = widen(pipe.unet).eval(), new_encoder(vision_tower(), 32)
        torch.nn.init.normal_(unet.conv_in.weight, std=0.1)
        processor = CLIPImageProcessor(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.25])
    made = assemble(unet, pipe.vae, encoder, pipe.scheduler, processor, Path(folder or "tiny"), "cpu")
    for part in (made.unet, made.vae, made.image_encoder):
        part.eval().requires_grad_(False)
    if folder:
        save(made, folder)
    return made


def encoder_shapes(width: int, layers: int, patches: int, projection: int) -> dict[str, tuple[int, ...]]:
    """image_encoder/ of Fantasy-Studio/Paint-by-Example, as transformers 4 wrote it; width 1024, 24 layers and
    projection 768 in the published file, whose mapper has five blocks."""
    tower = "model.vision_model"
    shapes = {f"{tower}.embeddings.class_embedding": (width,)}
    shapes |= {f"{tower}.embeddings.patch_embedding.weight": (width, 3, 8, 8)}
    shapes |= {f"{tower}.embeddings.position_embedding.weight": (patches + 1, width)}
    shapes |= _affine(f"{tower}.pre_layrnorm", width) | _affine(f"{tower}.post_layernorm", width)
    for layer in (f"{tower}.encoder.layers.{i}" for i in range(layers)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{layer}.self_attn.{name}", width, width)
        shapes |= _affine(f"{layer}.mlp.fc1", 4 * width, width) | _affine(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _affine(f"{layer}.layer_norm1", width) | _affine(f"{layer}.layer_norm2", width)
    for block in (f"mapper.blocks.{i}" for i in range((layers + 1) // 5)):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _affine(f"{block}.attn1.{name}", width, width)
        shapes |= _affine(f"{block}.norm1", width) | _affine(f"{block}.norm3", width)
        shapes |= _affine(f"{block}.ff.net.0.proj", 4 * width, width) | _affine(f"{block}.ff.net.2", width, 4 * width)
    shapes |= _affine("final_layer_norm", width) | _affine("proj_out", projection, width)
    return shapes | {"uncond_vector": (1, 1, projection)}


def write_published(folder: Path, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Fantasy-Studio/Paint-by-Example's files: layout, key names, index and configs as published, reduced widths.
    Returns the tensors."""
    width, layers, text = 16, 24, SD_UNET["cross_attention_dim"]
    unet = SD_UNET | {"in_channels": 9, "_diffusers_version": "0.9.0.dev0"}
    vision = {
        "architectures": ["PaintByExampleImageEncoder"], "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": "quick_gelu", "hidden_size": width, "image_size": 32, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 4 * width, "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model", "num_attention_heads": 2, "num_channels": 3, "num_hidden_layers": layers,
        "patch_size": 8, "projection_dim": text, "torch_dtype": "float32", "transformers_version": "4.25.0.dev0",
    }  # fmt: skip
    weights = {
        "unet": sd_unet(seed, 9),
        "vae": sd_vae(seed + 1),
        "image_encoder": _random(encoder_shapes(width, layers, 16, text), seed + 2),
    }
    position = {"model.vision_model.embeddings.position_ids": torch.arange(17)[None]}
    _write(folder / "unet", unet, weights["unet"], "diffusion_pytorch_model")
    _write(folder / "vae", VAE | {"sample_size": 512}, weights["vae"], "diffusion_pytorch_model")
    _write(folder / "image_encoder", vision, weights["image_encoder"] | position, "model")
    processor = {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_convert_rgb": True,
                 "do_normalize": True, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor",
                 "image_mean": [0.48145466, 0.4578275, 0.40821073], "resample": 3, "size": {"shortest_edge": 32},
                 "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(processor))
    index = {
        "_class_name": "PaintByExamplePipeline", "_diffusers_version": "0.9.0.dev0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"], "unet": MODELS["unet"], "vae": MODELS["vae"],
    }  # fmt: skip
    scheduler = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.9.0.dev0", "prediction_type": "epsilon"}
    _write_index(folder, index, NOISE | scheduler)
    return weights
