"""The unconditional model of blended diffusion: OpenAI's weights by published key names, the same sums in diffusers."""

import math

import pytest
import torch
import torch.nn.functional as F

from common.runs import InputError
from spdinv.reproduction.baselines import guided_diffusion
from tests.spdinv.reproduction.test_baselines import small_unet

SHAPE = {"widths": (32, 64, 64), "attending": (1, 2), "blocks": 2, "head": 16, "size": 32}


def openai_weights():
    """guided-diffusion's names and shapes for SHAPE, spelled out from its unet.py; random values."""
    shapes = {}

    def affine(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def res(name, c_in, c_out):
        affine(f"{name}.in_layers.0", c_in)
        affine(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        affine(f"{name}.emb_layers.1", 2 * c_out, 128)
        affine(f"{name}.out_layers.0", c_out)
        affine(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            affine(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attend(name, c):
        affine(f"{name}.norm", c)
        affine(f"{name}.qkv", 3 * c, c, 1)
        affine(f"{name}.proj_out", c, c, 1)

    affine("time_embed.0", 128, 32)
    affine("time_embed.2", 128, 128)
    affine("input_blocks.0.0", 32, 3, 3, 3)
    n, c, skips = 1, 32, [32]
    for level, width in enumerate(SHAPE["widths"]):
        for _ in range(2):
            res(f"input_blocks.{n}.0", c, width)
            c = width
            if level in SHAPE["attending"]:
                attend(f"input_blocks.{n}.1", c)
            skips.append(c)
            n += 1
        if level < 2:
            res(f"input_blocks.{n}.0", c, c)
            skips.append(c)
            n += 1
    res("middle_block.0", c, c)
    attend("middle_block.1", c)
    res("middle_block.2", c, c)
    n = 0
    for level in (2, 1, 0):
        for j in range(3):
            width = SHAPE["widths"][level]
            res(f"output_blocks.{n}.0", c + skips.pop(), width)
            c = width
            if level in SHAPE["attending"]:
                attend(f"output_blocks.{n}.1", c)
            if j == 2 and level > 0:
                res(f"output_blocks.{n}.{2 if level in SHAPE['attending'] else 1}", c, c)
            n += 1
    affine("out.0", 32)
    affine("out.2", 6, 32, 3, 3)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def openai_forward(w, x, t):
    """The released UNet's sums by key name, float64: scale-shift norms, resampling residual blocks, per-head qkv."""
    w = {name: value.double() for name, value in w.items()}

    def norm(name, h):
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv(name, h, padding=1):
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def res(name, h, resample=lambda h: h):
        inner = conv(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", h))))
        e = F.linear(F.silu(emb), w[f"{name}.emb_layers.1.weight"], w[f"{name}.emb_layers.1.bias"])[..., None, None]
        scale, shift = e.chunk(2, dim=1)
        inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        inner = conv(f"{name}.out_layers.3", F.silu(inner))
        h = resample(h)
        return inner + (conv(f"{name}.skip_connection", h, 0) if f"{name}.skip_connection.weight" in w else h)

    def attend(name, h):
        b, c, height, width = h.shape
        qkv = F.conv1d(norm(f"{name}.norm", h).flatten(2), w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
        heads = []
        for q, k, v in (part.split(SHAPE["head"], dim=1) for part in qkv.split(3 * SHAPE["head"], dim=1)):
            heads.append(v @ torch.softmax(q.mT @ k / SHAPE["head"] ** 0.5, dim=-1).mT)
        out = F.conv1d(torch.cat(heads, 1), w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
        return h + out.reshape(h.shape)

    def block(name, h, resample):
        for part in sorted({int(key.split(".")[2]) for key in w if key.startswith(f"{name}.")}):
            if f"{name}.{part}.qkv.weight" in w:
                h = attend(f"{name}.{part}", h)
            else:
                h = res(f"{name}.{part}", h, resample if part == resampling.get(name) else lambda h: h)
        return h

    resampling = {"input_blocks.3": 0, "input_blocks.6": 0, "output_blocks.2": 2, "output_blocks.5": 2}
    frequencies = torch.exp(-math.log(10000) * torch.arange(16, dtype=torch.float64) / 16)
    emb = torch.cat([torch.cos(t * frequencies), torch.sin(t * frequencies)])[None]
    emb = F.silu(F.linear(emb, w["time_embed.0.weight"], w["time_embed.0.bias"]))
    emb = F.linear(emb, w["time_embed.2.weight"], w["time_embed.2.bias"])
    h, skips = conv("input_blocks.0.0", x), []
    skips.append(h)
    for n in range(1, 9):
        h = block(f"input_blocks.{n}", h, lambda h: F.avg_pool2d(h, 2))
        skips.append(h)
    h = res("middle_block.2", attend("middle_block.1", res("middle_block.0", h)))
    for n in range(9):
        h = block(f"output_blocks.{n}", torch.cat([h, skips.pop()], 1), lambda h: F.interpolate(h, scale_factor=2))
    return conv("out.2", F.silu(norm("out.0", h)))


def test_the_released_checkpoint_does_the_same_sums_in_diffusers(tmp_path):
    weights, x = openai_weights(), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    unet = guided_diffusion.from_openai(weights, tmp_path / "x.pt", SHAPE).double()
    with torch.no_grad():
        for t in (0, 517):
            expected = openai_forward(weights, x, t)
            torch.testing.assert_close(unet(x, t).sample, expected, rtol=1e-5, atol=1e-5)  # its time is float32
    assert not any(value.requires_grad for value in unet.parameters())


def test_the_released_shape():
    """256x256_diffusion_uncond.pt holds 552,814,086 numbers, 18 output blocks, attention from input block 10 on."""
    shape = guided_diffusion.RELEASED
    assert sum(value.numel() for value in guided_diffusion.empty_unet(shape).parameters()) == 552_814_086
    places = list(guided_diffusion.places(shape))
    assert len({theirs for theirs, _ in places}) == len(places) == len({ours for _, ours in places})
    assert places[-1] == ("output_blocks.17.0", "up_blocks.5.resnets.2")
    assert ("input_blocks.10.1", "down_blocks.3.attentions.0") in places


def test_models_of_pixels_from_folders_and_what_is_none(tmp_path, tiny_folder):
    small_unet(3).float().save_pretrained(tmp_path / "unet")
    unet, alpha_bar = guided_diffusion.load_unconditional(tmp_path)
    assert torch.equal(unet.conv_in.weight, small_unet(3).float().conv_in.weight)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(alpha_bar, (1 - betas).cumprod(0), rtol=1e-5, atol=1e-6)
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pt")
    for place, message in ((tmp_path / "x.pt", "no 256x256_diffusion_uncond.pt"), (tmp_path / "no", "cannot be read"),
                           (tiny_folder, "no (whole UNet2DModel|unconditional model)")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            guided_diffusion.load_unconditional(place)
