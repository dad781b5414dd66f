"""Unconditional models of pixels: a diffusers folder, or the checkpoint that OpenAI released (arXiv 2105.05233).

256x256_diffusion_uncond.pt is the model of the original blended diffusion. Its parts stand in another order and under
other names than those of diffusers' UNet2DModel, which can do the same sums.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from common.files import InputError, read_json, refused_as
from common.model_files import load_model
from spdinv.customised.loading import read

# 256x256_diffusion_uncond.pt: channels of the six levels, which of them attend, residual blocks in each.
RELEASED = {"widths": (256, 256, 512, 512, 1024, 1024), "attending": (3, 4, 5), "blocks": 2, "head": 64, "size": 256}
RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
          "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip
ENDS = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}  # fmt: skip


def load_unconditional(path: str | Path, device: str = "cpu") -> tuple[UNet2DModel, torch.Tensor]:
    """The model and its alpha_bar [1000], float64, from a folder of diffusers (a pipeline's, with unet/ and scheduler/,
    or the UNet's own) or from OpenAI's .pt. Raises InputError for anything else."""
    path, scheduler = Path(os.path.expanduser(path)), DDPMScheduler()  # linear, 1e-4 to 0.02, as OpenAI's
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        if (path / "scheduler").is_dir():
            scheduler = DDPMScheduler.from_config(read_json(path / "scheduler" / "scheduler_config.json"))
        with refused_as(f"{folder} holds no whole UNet2DModel"):
            unet = load_model(UNet2DModel, folder, torch.float32)
        if unet.config.in_channels != 3 or unet.config.out_channels not in (3, 6) or unet.config.class_embed_type:
            raise InputError(f"the model in {folder} is no unconditional model of RGB pixels")
    else:
        unet = from_openai(read(path), path)
    return unet.to(device), scheduler.alphas_cumprod.double()


def from_openai(weights: dict[str, torch.Tensor], path: Path, shape: dict[str, Any] = RELEASED) -> UNet2DModel:
    """A guided-diffusion model (resblock_updown, use_scale_shift_norm, learn_sigma) as a UNet2DModel, frozen."""
    unet = empty_unet(shape)
    with refused_as(f"{path} is no 256x256_diffusion_uncond.pt"):
        unet.load_state_dict(renamed(weights, shape), assign=True)
    return unet.float().eval().requires_grad_(False)


def empty_unet(shape: dict[str, Any]) -> UNet2DModel:
    """The model without memory for its weights."""
    levels = [level in shape["attending"] for level in range(len(shape["widths"]))]
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=shape["size"], out_channels=6, block_out_channels=shape["widths"],
            layers_per_block=shape["blocks"], attention_head_dim=shape["head"], resnet_time_scale_shift="scale_shift",
            down_block_types=["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in levels],
            up_block_types=["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in levels[::-1]],
            downsample_type="resnet", upsample_type="resnet",
            attn_norm_num_groups=32,  # or else the middle attends without a norm
        )  # fmt: skip


def renamed(weights: dict[str, torch.Tensor], shape: dict[str, Any]) -> dict[str, torch.Tensor]:
    """guided-diffusion's state_dict under diffusers' names."""
    result = {}

    def take(theirs: str, ours: str) -> None:
        result.update({f"{ours}.{end}": weights[f"{theirs}.{end}"] for end in ("weight", "bias")})

    for theirs, ours in ENDS.items():
        take(theirs, ours)
    for theirs, ours in places(shape):
        if "attentions" not in ours:
            for part, own in RESNET.items():
                if f"{theirs}.{part}.weight" in weights:  # skip_connection is not everywhere
                    take(f"{theirs}.{part}", f"{ours}.{own}")
            continue
        take(f"{theirs}.norm", f"{ours}.group_norm")
        for end in ("weight", "bias"):
            qkv = weights[f"{theirs}.qkv.{end}"]  # head after head, each with its queries, keys and values
            qkv = qkv.reshape(-1, 3, shape["head"], *qkv.shape[1:2]).transpose(0, 1).flatten(1, 2)
            result |= {f"{ours}.to_{x}.{end}": value for x, value in zip("qkv", qkv, strict=True)}
            result[f"{ours}.to_out.0.{end}"] = weights[f"{theirs}.proj_out.{end}"].squeeze(-1)
    return result


def places(shape: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(guided-diffusion's path, diffusers' path) of every residual block and attention layer."""
    for n, ours in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{n}", f"mid_block.{ours}"
    last = len(shape["widths"]) - 1
    for side, way, more in (("input", "down", 0), ("output", "up", 1)):  # the way up has a block more in each level
        n = 1 - more  # input_blocks.0 is the first convolution
        for place in range(last + 1):
            attends = (last - place if more else place) in shape["attending"]
            for j in range(shape["blocks"] + more):
                yield f"{side}_blocks.{n}.0", f"{way}_blocks.{place}.resnets.{j}"
                if attends:
                    yield f"{side}_blocks.{n}.1", f"{way}_blocks.{place}.attentions.{j}"
                n += 1
            if place < last and more:  # upsampling closes the block before
                yield f"output_blocks.{n - 1}.{1 + attends}", f"up_blocks.{place}.upsamplers.0"
            elif place < last:
                yield f"input_blocks.{n}.0", f"down_blocks.{place}.downsamplers.0"
                n += 1
