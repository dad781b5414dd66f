"""The unconditional model of blended diffusion: OpenAI's weights by published key names, the same sums in diffusers."""

import math

import torch
import torch.nn.functional as F

from spdinv.reproduction.baselines import guided_diffusion
from tests.refusing import refuses
from tests.spdinv.reproduction.test_baselines import small_unet

SHAPE = {"widths": (32, 64, 64), "attending": (1, 2), "blocks": 2, "head": 16, "size": 32}


def openai_model(w, x, t):
    """The released UNet's sums by key name, float64: scale-shift norms, resampling residual blocks, per-head qkv. What
    is not in `w` yet gets a random tensor of the published shape."""
    generator, attending = torch.Generator().manual_seed(len(w)), SHAPE["attending"]

    def ask(name, *shape):
        for end, size in (("weight", shape), ("bias", shape[:1])):
            if f"{name}.{end}" not in w:
                w[f"{name}.{end}"] = torch.randn(size, generator=generator) / 4
        return w[f"{name}.weight"].double(), w[f"{name}.bias"].double()

    def norm(name, h):
        return F.group_norm(h, 32, *ask(name, h.shape[1]))

    def conv(name, h, c, size=3):
        return F.conv2d(h, *ask(name, c, h.shape[1], size, size), padding=size // 2)

    def linear(name, e, c):
        return F.linear(e, *ask(name, c, e.shape[1]))

    def res(name, h, c, resample=lambda h: h):
        inner = conv(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", h))), c)
        scale, shift = linear(f"{name}.emb_layers.1", F.silu(emb), 2 * c)[..., None, None].chunk(2, dim=1)
        inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        inner, h = conv(f"{name}.out_layers.3", F.silu(inner), c), resample(h)
        return inner + (h if h.shape[1] == c else conv(f"{name}.skip_connection", h, c, 1))

    def attend(name, h):
        c, heads = h.shape[1], []
        qkv = F.conv1d(norm(f"{name}.norm", h).flatten(2), *ask(f"{name}.qkv", 3 * c, c, 1))
        for q, k, v in (part.split(SHAPE["head"], dim=1) for part in qkv.split(3 * SHAPE["head"], dim=1)):
            heads.append(v @ torch.softmax(q.mT @ k / SHAPE["head"] ** 0.5, dim=-1).mT)
        return h + F.conv1d(torch.cat(heads, 1), *ask(f"{name}.proj_out", c, c, 1)).reshape(h.shape)

    frequencies = torch.exp(-math.log(10000) * torch.arange(16, dtype=torch.float64) / 16)
    emb = torch.cat([torch.cos(t * frequencies), torch.sin(t * frequencies)])[None]
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", emb, 128)), 128)
    skips, n = [conv("input_blocks.0.0", x, 32)], 1
    for level, width in enumerate(SHAPE["widths"]):
        for _ in range(2):
            h = res(f"input_blocks.{n}.0", skips[-1], width)
            skips.append(attend(f"input_blocks.{n}.1", h) if level in attending else h)
            n += 1
        if level < 2:
            skips.append(res(f"input_blocks.{n}.0", skips[-1], width, lambda h: F.avg_pool2d(h, 2)))
            n += 1
    h = attend("middle_block.1", res("middle_block.0", skips[-1], width))
    h = res("middle_block.2", h, width)
    for n in range(9):
        level, block = 2 - n // 3, f"output_blocks.{n}"
        h = res(f"{block}.0", torch.cat([h, skips.pop()], 1), SHAPE["widths"][level])
        h = attend(f"{block}.1", h) if level in attending else h
        if n % 3 == 2 and level:
            last = f"{block}.{2 if level in attending else 1}"
            h = res(last, h, h.shape[1], lambda h: F.interpolate(h, scale_factor=2))
    return conv("out.2", F.silu(norm("out.0", h)), 6)


def test_the_released_checkpoint_does_the_same_sums_in_diffusers(tmp_path):
    weights, x = {}, torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        openai_model(weights, x, 0)
        unet = guided_diffusion.from_openai(dict(weights), tmp_path / "x.pt", SHAPE).double()
        for t in (0, 517):
            expected = openai_model(weights, x, t)
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
        refuses(message, guided_diffusion.load_unconditional, place)
