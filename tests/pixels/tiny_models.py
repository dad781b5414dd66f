"""Small random folders of what tests/tiny.py does not have: SDXL's refiner, Kandinsky 2.2's decoder and prior.

Classes, file names, configuration and schedulers are those of the published folders; widths are not.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PNDMScheduler,
    PriorTransformer,
    StableDiffusionXLImg2ImgPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from transformers import CLIPImageProcessorPil as ImageProcessor
from transformers import CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from common.encoders import Embedder
from tests.tiny import _text_config, tiny_sd, tiny_sdxl, tiny_tokenizer

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def write_sd2(folder: Path) -> Path:
    """Stable Diffusion with the scheduler of stable-diffusion-2-1-base."""
    pipe = tiny_sd(latent=8)
    pipe.scheduler = PNDMScheduler(**LATENT, skip_prk_steps=True, set_alpha_to_one=False)
    pipe.save_pretrained(folder)
    return folder


def write_sdxl(folder: Path) -> Path:
    pipe = tiny_sdxl(latent=8)
    pipe.scheduler = EulerDiscreteScheduler(**LATENT, timestep_spacing="leading")
    pipe.save_pretrained(folder)
    return folder


def write_refiner(folder: Path) -> Path:
    """One text encoder (the second), an aesthetic score among the time ids, its index as published."""
    base = tiny_sdxl(latent=8)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        widths = {"cross_attention_dim": 48, "projection_class_embeddings_input_dim": 5 * 8 + 40}
        unet = UNet2DConditionModel.from_config(dict(base.unet.config) | widths)
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=base.vae, text_encoder=None, text_encoder_2=base.text_encoder_2, tokenizer=None,
        tokenizer_2=base.tokenizer_2, unet=unet, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False,
        scheduler=EulerDiscreteScheduler(**LATENT, timestep_spacing="leading"), add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["text_encoder"] == [None, None] and index["requires_aesthetics_score"] is True
    return folder


def write_kandinsky(folder: Path) -> tuple[Path, Path]:
    """(decoder, prior)."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=8,  # noise and variance
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(16, 32), layers_per_block=1,
            encoder_hid_dim=12, encoder_hid_dim_type="image_proj", addition_embed_type="image", cross_attention_dim=8,
            attention_head_dim=4, norm_num_groups=8, resnet_time_scale_shift="scale_shift",
        )  # fmt: skip
        movq = VQModel(
            block_out_channels=(32, 32, 32, 32), latent_channels=4, vq_embed_dim=4, num_vq_embeddings=16,
            down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3, norm_num_groups=4,
            norm_type="spatial",
        )  # fmt: skip
        scheduler = DDPMScheduler(
            beta_schedule="linear", beta_start=0.00085, beta_end=0.012, variance_type="learned_range",
            prediction_type="epsilon", clip_sample=True, clip_sample_range=2.0,
        )  # fmt: skip
        decoder = KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)
        tokenizer = tiny_tokenizer()
        vision = CLIPVisionConfig(hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                  projection_dim=12, image_size=32, patch_size=8)  # fmt: skip
        prior = PriorTransformer(num_attention_heads=2, attention_head_dim=6, embedding_dim=12, num_layers=1)
        prior.clip_std.data.fill_(1)
        pipe_prior = KandinskyV22PriorPipeline(
            prior=prior, image_encoder=CLIPVisionModelWithProjection(vision),
            text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, 12, projection_dim=12)),
            tokenizer=tokenizer,
            scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample=True,
                                      clip_sample_range=5.0),
            image_processor=ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        )  # fmt: skip
    decoder.save_pretrained(folder / "decoder")
    pipe_prior.save_pretrained(folder / "prior")
    return folder / "decoder", folder / "prior"


def write_eyes(encoders: Path, folder: Path) -> Path:
    """What pixels.eval --metric_encoders takes, from the folder of small PIE-Bench encoders."""
    shutil.copytree(encoders / "clip-vit-large-patch14", folder / "clip-vit-base-patch32")
    shutil.copy(encoders / "squeezenet1_1-b8a52dc0.pth", folder)
    return folder


def few_numbers() -> Embedder:
    """In place of Inception: every 32nd pixel."""
    return Embedder("inception", lambda pictures: pictures[..., ::32, ::32].flatten(1))
