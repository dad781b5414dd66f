"""Nine channels in Paint-by-Example's order and polarity, the mapper, published weights, sampling as in diffusers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from image_inpaint import conditioning, loading
from image_inpaint.painting import paint
from image_inpaint.sampling import Sampling, make_scheduler, sample
from tests.image_inpaint.models import vision_tower, write_published
from tests.refusing import refuses
from tests.small_data import noise
from tests.tiny import tiny_sd

TWO = Sampling("ddim", num_inference_steps=2)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def hole(size, left, top, right, bottom):
    """[height, width] of a picture of this width and height."""
    fill = torch.zeros(size[1], size[0])
    fill[top:bottom, left:right] = 1
    return fill


@pytest.fixture(scope="module")
def inputs():
    """Two pictures, holes, references."""
    (generator,) = seeded(0)
    source, reference = torch.rand(2, 3, 64, 64, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)
    fill = torch.zeros(2, 1, 64, 64)
    fill[0, :, 10:40, 20:50], fill[1, :, 30:64, 0:33] = 1, 1
    return source, fill, reference


def test_order_and_polarity_are_not_those_of_sd_inpainting():
    noisy, masked, fill = torch.full((1, 4, 2, 2), 1.0), torch.full((1, 4, 2, 2), 2.0), torch.ones(1, 1, 2, 2)
    ours = conditioning.nine_channels(noisy, masked, 1 - fill)
    assert ours[0, :, 0, 0].tolist() == [1] * 4 + [2] * 4 + [0]  # theirs: noisy, mask (1 = hole), masked


def test_the_hole_is_mid_grey_and_the_keep_mask_one_outside():
    source, fill = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    fill[..., :3] = 1
    masked = conditioning.masked_picture(source, fill)
    assert (masked[..., :3] == 0.5).all() and torch.equal(masked[..., 3:], source[..., 3:])
    nearest = conditioning.keep_on_latents(fill, (2, 2), "nearest")
    bilinear = conditioning.keep_on_latents(fill, (2, 2))
    assert nearest[0, 0].tolist() == [[0, 1], [0, 1]]
    assert bilinear[0, 0].tolist() == [[0, 1], [0, 1]]  # the mean of columns 1 and 2, and of 5 and 6
    rim = torch.full((1, 1, 8, 8), 0.25)  # what resizing leaves at the rim of a training mask: as released, not rounded
    assert torch.allclose(conditioning.masked_picture(source, rim), 0.75 * source + 0.125)
    assert (conditioning.keep_on_latents(rim, (2, 2)) == 0.75).all()
    soft = torch.zeros(1, 1, 8, 8)
    soft[..., :2] = 1
    assert conditioning.keep_on_latents(soft, (2, 2))[0, 0].tolist() == [[0.5, 1], [0.5, 1]]


@torch.no_grad()
def test_a_widened_unet_does_the_same_at_first_and_without_the_prior_does_not():
    unet = tiny_sd().unet
    z, context = torch.randn(1, 4, 16, 16), torch.randn(1, 3, 32)
    channels = torch.cat([z, torch.randn(1, 5, 16, 16)], 1)
    before = unet(z, 300, context).sample
    assert torch.allclose(conditioning.widen(unet)(channels, 300, context).sample, before, atol=1e-6)
    assert not torch.allclose(conditioning.widen(unet, False)(channels, 300, context).sample, before, atol=1e-2)
    refuses("4 input channels", conditioning.widen, conditioning.widen(unet))


@torch.no_grad()
def test_the_mapper_against_its_equations():
    """With one token attention is out(V(LN x)): pre-norm blocks, exact GELU, final norm, projection, in float64."""
    torch.manual_seed(0)
    encoder = conditioning.new_encoder(vision_tower(layers=9), 24).double()  # (9 + 1) // 5 = 2 blocks
    assert len(encoder.mapper.blocks) == 2
    for parameter in conditioning.trained_part(encoder).values():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(3, 16, dtype=torch.float64)
    weights = encoder.state_dict()

    def affine(x, name):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-5).sqrt() * weights[name + ".weight"] + weights[name + ".bias"]

    x = tokens
    for block in ("mapper.blocks.0", "mapper.blocks.1"):
        x = x + affine(affine(norm(x, f"{block}.norm1"), f"{block}.attn1.to_v"), f"{block}.attn1.to_out.0")
        hidden = affine(norm(x, f"{block}.norm3"), f"{block}.ff.net.0.proj")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + affine(hidden, f"{block}.ff.net.2")
    expected = affine(norm(x, "final_layer_norm"), "proj_out")
    assert torch.allclose(conditioning.context_of(encoder, tokens)[:, 0], expected, atol=1e-10)


@torch.no_grad()
def test_the_reference_is_squashed_normalised_and_read_by_the_class_token(pipe):
    reference = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]))
    expected = pipe.image_encoder((reference - mean) / std)
    assert torch.allclose(conditioning.embed_references(pipe, reference), expected, atol=1e-5)
    long = torch.rand(1, 3, 20, 80)
    squashed = F.interpolate(long, (32, 32), mode="bilinear", antialias=True)
    found, expected = (conditioning.embed_references(pipe, picture) for picture in (long, squashed))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("scheduler, guidance", [("plms", 5.0), ("ddim", 5.0), ("ddim", 1.0)])
@torch.no_grad()
def test_sampling_is_that_of_diffusers_pipeline(pipe, inputs, scheduler, guidance):
    source, fill, reference = inputs
    settings = Sampling(scheduler, 4, guidance, "nearest")
    ours = sample(pipe, source, fill, conditioning.embed_references(pipe, reference), seeded(3, 4), settings)
    pipe.scheduler, own = make_scheduler(scheduler, pipe.scheduler.config), pipe.scheduler
    theirs = pipe(
        conditioning.reference_pixels(reference, pipe), image=2 * source - 1, mask_image=fill, output_type="pt",
        num_inference_steps=4, guidance_scale=guidance, generator=seeded(3, 4),
    ).images  # fmt: skip
    pipe.scheduler = own
    assert torch.allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("scheduler, steps, guidance", [("plms", 5, 5.0), ("ddim", 4, 0.5), ("plms", 4, 0.0)])
@torch.no_grad()
def test_sampling_is_that_of_paint_by_examples_code(pipe, inputs, scheduler, steps, guidance):
    """Its arithmetic from the noise levels up; guidance is off at 1 alone, in diffusers below 1 too."""
    source, fill, reference = inputs
    context = conditioning.embed_references(pipe, reference)
    ours = sample(pipe, source, fill, context, seeded(3, 4), Sampling(scheduler, steps, guidance))
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bars = torch.tensor(np.cumprod(1 - beta)).float()
    times = [*range(1, 1000, 1000 // steps)]
    draws = [(torch.randn(1, 4, 16, 16, generator=g), torch.randn(1, 4, 16, 16, generator=g)) for g in seeded(3, 4)]
    z, noise = (torch.cat(part) for part in zip(*draws, strict=True))
    posterior = pipe.vae.encode((2 * source - 1) * (1 - fill)).latent_dist
    masked = 0.18215 * (posterior.mean + posterior.std * noise)
    keep = F.interpolate(1 - fill, (16, 16), mode="bilinear")
    empty = pipe.image_encoder.uncond_vector.expand(2, -1, -1)

    def eps(z, t):
        channels = torch.cat([z, masked, keep], 1)
        without, given = (pipe.unet(channels, t, c).sample for c in (empty, context))
        return without + guidance * (given - without)

    def step(z, e, k):
        before = bars[times[k - 1]] if k else bars[0]
        clean = (z - (1 - bars[times[k]]).sqrt() * e) / bars[times[k]].sqrt()
        return before.sqrt() * clean + (1 - before).sqrt() * e

    old = []
    for k in reversed(range(steps)):
        e = eps(z, times[k])
        old = [e, *old][:4]
        if scheduler == "ddim":
            mean = e
        elif len(old) == 1:
            mean = (e + eps(step(z, e, k), times[k - 1])) / 2
        else:
            weights = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[len(old)]
            mean = sum(w * o for w, o in zip(weights, old, strict=True)) / sum(weights)
        z = step(z, mean, k)
    theirs = (pipe.vae.decode(z / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(ours, theirs, atol=1e-5)


@torch.no_grad()
def test_a_users_soft_mask_is_rounded_before_sampling(pipe, inputs):
    source, fill, reference = inputs
    context, soft = conditioning.embed_references(pipe, reference), torch.where(fill > 0, 0.6, 0.4)
    hard, rounded = (sample(pipe, source, mask, context, seeded(3, 4), TWO) for mask in (fill, soft))
    assert torch.equal(hard, rounded)


@torch.no_grad()
def test_published_files_load_in_the_published_layout(tmp_path):
    weights = write_published(tmp_path / "model")
    pipe = loading.load(str(tmp_path / "model"), "cpu")
    encoder, expected = pipe.image_encoder.state_dict(), weights["image_encoder"]
    assert len(encoder) == len(expected) and pipe.unet.config.in_channels == 9
    for name, value in expected.items():
        flat = name.replace("model.vision_model.", "model.")
        assert torch.equal(encoder.get(name, encoder.get(flat)), value)
    assert torch.equal(pipe.unet.conv_in.weight, weights["unet"]["conv_in.weight"])
    assert torch.equal(pipe.vae.quant_conv.weight, weights["vae"]["quant_conv.weight"])
    assert len(pipe.image_encoder.mapper.blocks) == 5
    assert list(pipe.feature_extractor.image_mean) == [0.48145466, 0.4578275, 0.40821073]
    picture = noise((60, 40))
    (made,) = paint(pipe, [picture], [hole((60, 40), 10, 10, 30, 20)], [picture], [0], TWO)
    assert made.size == (60, 40)


@torch.no_grad()
def test_a_saved_model_is_found_again_by_us_and_by_diffusers(pipe, model):
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline

    again = loading.load(str(model), "cpu")
    theirs = PaintByExamplePipeline.from_pretrained(model, safety_checker=None)
    for other in (again, theirs):
        for part in ("unet", "vae", "image_encoder"):
            ours, stored = getattr(pipe, part).state_dict(), getattr(other, part).state_dict()
            assert ours.keys() == stored.keys() and all(torch.equal(ours[key], stored[key]) for key in ours)


def test_a_model_that_is_cut_short_is_refused_in_one_sentence(tmp_path):
    write_published(tmp_path / "cut")
    path = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refuses("cut short", loading.load, str(tmp_path / "cut"), "cpu")


def test_compositing_keeps_every_pixel_outside_and_any_size_is_painted(pipe):
    for size in ((64, 64), (150, 90), (33, 200)):
        picture, fill = noise(size), hole(size, 8, 12, 28, 30)
        (made,) = paint(pipe, [picture], [fill], [picture], [0], TWO)
        different = (np.asarray(made) != np.asarray(picture)).any(2)
        assert made.size == picture.size and different.any() and not (different & (fill.numpy() == 0)).any()


def test_a_picture_depends_on_its_own_seed(pipe):
    picture, fill = noise(), hole((64, 64), 20, 20, 40, 40)
    alone = paint(pipe, [picture], [fill], [picture], [5], TWO)[0]
    both = paint(pipe, [picture] * 2, [fill] * 2, [picture] * 2, [4, 5], TWO)
    assert np.abs(np.asarray(alone, int) - np.asarray(both[1], int)).max() <= 1 and both[0] != both[1]
