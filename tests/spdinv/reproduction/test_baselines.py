"""Table 2's baselines against naive readings: loops with diffusers' schedulers, sums by published key names."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import EulerAncestralDiscreteScheduler, LMSDiscreteScheduler, UNet2DConditionModel, UNet2DModel
from diffusers import StableDiffusionInstructPix2PixPipeline as InstructPix2Pix

from common.encoders import load_clip
from common.images import load_image
from common.runs import read_rows
from spdinv import eval as spdinv_eval
from spdinv.reproduction.baselines import blended_diffusion, guided_diffusion, instruct_pix2pix
from spdinv.reproduction.baselines.run import from_noise
from tests.refusing import refuses
from tests.tiny_encoders import pictures, write_encoders

PROMPT = "a red cat"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(write_encoders(tmp_path_factory.mktemp("encoders")) / "clip", "cpu")


def small_unet(out_channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=32, out_channels=out_channels, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        )  # fmt: skip
    return unet.double().eval().requires_grad_(False)


def naive_pixels(unet, clip, picture, mask, steps, skipped, clip_guidance, range_guidance, seed):
    """Alg. 2 with the released losses and one view of the picture, in a process of few steps with betas of its own, as
    guided diffusion makes one; noise is drawn in the same order."""
    times = [round(i * 999 / (steps - 1)) for i in range(steps)]
    bars = np.cumprod([1 - 1e-4 - (0.02 - 1e-4) * i / 999 for i in range(1000)])[times].tolist()
    source, tower, text = picture.double() * 2 - 1, clip.model.double(), clip.embed_text([PROMPT])
    average, deviation = (torch.tensor(told).view(3, 1, 1) for told in (clip.processor.image_mean,
                                                                        clip.processor.image_std))  # fmt: skip
    torch.manual_seed(seed)

    def noised(i):
        return math.sqrt(bars[i]) * source + math.sqrt(1 - bars[i]) * torch.randn_like(source)

    x = noised(steps - skipped - 1)
    for i in range(steps - skipped - 1, -1, -1):
        a, before = bars[i], bars[i - 1] if i else 1.0
        beta = 1 - a / before
        x = x.detach().requires_grad_()
        out = unet(x, times[i]).sample
        clean = x / math.sqrt(a) - math.sqrt(1 / a - 1) * out[:, :3]
        if i == 0:
            break
        mean = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - a)
        log_variance = torch.tensor(math.log(beta * (1 - before) / (1 - a)), dtype=torch.float64)
        if out.shape[1] == 6:
            share = (out[:, 3:] + 1) / 2
            log_variance = share * math.log(beta) + (1 - share) * log_variance
        seen = (clean * math.sqrt(1 - a) + x * (1 - math.sqrt(1 - a))) * mask
        pixels = (F.adaptive_avg_pool2d(seen, 32) * 0.5 + 0.5 - average) / deviation
        embedding = tower.get_image_features(pixel_values=pixels)
        embedding = embedding if isinstance(embedding, torch.Tensor) else embedding.pooler_output
        chord = (embedding / embedding.norm() - text).norm()
        outside = clean - clean.clamp(-1, 1)
        loss = clip_guidance * 2 * torch.arcsin(chord / 2) ** 2 + range_guidance * (outside**2).mean()
        (gradient,) = torch.autograd.grad(loss, x)
        x = mean - log_variance.exp() * gradient + (0.5 * log_variance).exp() * torch.randn_like(x)
        x = x * mask + noised(i) * (1 - mask)
    return ((clean * mask + source * (1 - mask) + 1) / 2).clamp(0, 1).detach()


@pytest.mark.parametrize("channels", [3, 6])
def test_pixels_are_blended_as_released(clip, channels):
    unet, picture, mask = small_unet(channels), pictures(1, 32).double(), torch.zeros(1, 1, 32, 32).double()
    mask[..., 8:16, 4:24] = 1
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    clip.model.double()
    settings = dict(steps=9, skipped=2, clip_guidance=1000.0, range_guidance=50.0)
    before = torch.get_rng_state()
    edited = blended_diffusion.edit(unet, alpha_bar, clip, picture, mask, PROMPT, **settings, augmentations=1, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    expected = naive_pixels(unet, clip, picture, mask, *settings.values(), 5)
    torch.testing.assert_close(edited, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(edited * (1 - mask), picture * (1 - mask), atol=1e-12)  # the surroundings are the source
    assert (edited - picture).abs().max() > 0.1
    other = blended_diffusion.edit(unet, alpha_bar, clip, picture, mask, PROMPT, **settings, augmentations=3)
    assert other.shape == picture.shape and other.isfinite().all()


def test_views_are_random_but_the_first(clip):
    x = pictures(1, 64).requires_grad_()
    torch.manual_seed(0)
    views = blended_diffusion.augmented(x, clip, 8)
    assert views.shape == (8, 3, 32, 32)
    torch.testing.assert_close(views[0], F.avg_pool2d(x, 2)[0])
    assert all(not torch.equal(views[0], view) for view in views[1:4])
    (gradient,) = torch.autograd.grad(views[1:].sum(), x)
    assert gradient.abs().sum() > 0


@pytest.fixture(scope="module")
def instruct_folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=8)
    parts = {**pipe.components, "unet": unet, "image_encoder": None, "requires_safety_checker": False}
    InstructPix2Pix(**parts).save_pretrained(folder)
    return folder


@torch.no_grad()
def naive_instruct(pipe, picture, instruction, steps, text_scale, image_scale, seed):
    """Eq. 3 of InstructPix2Pix, three separate network calls per step."""
    scheduler, generator = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config), torch.manual_seed(seed)
    scheduler.set_timesteps(steps)
    ids = pipe.tokenizer(["", instruction], padding="max_length", max_length=77, return_tensors="pt").input_ids
    null, text = pipe.text_encoder(ids)[0].split(1)
    seen = pipe.vae.encode(picture * 2 - 1).latent_dist.mode()
    z = torch.randn(seen.shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(z, t)
        nothing = pipe.unet(torch.cat([scaled, seen * 0], 1), t, null).sample
        image = pipe.unet(torch.cat([scaled, seen], 1), t, null).sample
        both = pipe.unet(torch.cat([scaled, seen], 1), t, text).sample
        eps = nothing + image_scale * (image - nothing) + text_scale * (both - image)
        z = scheduler.step(eps, t, z, generator=generator).prev_sample
    return (pipe.vae.decode(z / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def test_instruct_pix2pix(instruct_folder, tiny_folder):
    pipe = instruct_pix2pix.load_instruct_pix2pix(instruct_folder)
    picture = pictures(1, 64)
    edited = instruct_pix2pix.edit(pipe, picture, "make the cat red", 4, 6.0, 1.2, seed=7)
    expected = naive_instruct(pipe, picture, "make the cat red", 4, 6.0, 1.2, 7)
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3)
    refuses("supported are StableDiffusionInstructPix2PixPipeline", instruct_pix2pix.load_instruct_pix2pix, tiny_folder)


@torch.no_grad()
def test_from_noise_is_the_pipeline_with_the_published_sampler(pipe):
    scheduler = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = {**pipe.components, "scheduler": scheduler, "requires_safety_checker": False}
    theirs = type(pipe)(**parts)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.manual_seed(3))
    expected = theirs(PROMPT, num_inference_steps=5, guidance_scale=5.0, latents=noise, output_type="pt").images
    drawn = from_noise(pipe, PROMPT, 5, 5.0, seed=3)
    torch.testing.assert_close(drawn, torch.as_tensor(expected), rtol=1e-3, atol=1e-3)


def test_eval_runs_a_baseline_beside_the_methods(run, encoders, tmp_path):
    unet = small_unet(3).float()
    unet.register_to_config(sample_size=64)
    unet.save_pretrained(tmp_path / "pixels")
    flags = ("--limit", "1", "--inversions", "ddim", "--engines", "p2p", "--baselines", "blended_diffusion",
             "--unconditional_model", str(tmp_path / "pixels"),
             "--guiding_clip", str(encoders / "clip-vit-large-patch14"))  # fmt: skip
    assert "blended_diffusion" in run(tmp_path / "out", *flags).out
    rows = {row["method"]: row for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    assert set(rows) == {"ddim+p2p", "blended_diffusion"}
    metrics, item = (rows["blended_diffusion"][key] for key in ("metrics", "item"))
    assert metrics["psnr/pie_official"] > 0 and "psnr_reconstruction" not in metrics
    source, edited = (np.asarray(load_image(tmp_path / "out" / "pictures" / item / f"{name}.png"), int)
                      for name in ("source", "blended_diffusion"))  # fmt: skip
    changed = (abs(source - edited) > 1).any((1, 2))  # by rows: the benchmark marks 10 to 29 of its first item
    assert changed[10:30].all() and not changed[:10].any() and not changed[30:].any()
    run(tmp_path / "out", *flags)  # skips what is done
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 2


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


def test_references_are_the_truth_the_truth_through_the_vae_and_nothing_done(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "drawn"))
    words = "--inversions ddim --engines p2p --num_inference_steps 1 --limit 1 --device cpu --output_dir"
    spdinv_eval.main([*words.split(), str(tmp_path / "out"), "--baselines", "truth", "truth_vae", "source"])
    found = {row["method"]: row["metrics"] for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    success = {name: metrics["edit_success (picturebook)"] for name, metrics in found.items()}
    assert (success["truth"], success["truth_vae"], success["source"]) == (1, 1, 0)
    assert found["truth"]["psnr_truth"] == math.inf and 20 < found["truth_vae"]["psnr_truth"] < 50
    assert found["source"]["psnr/pie_official"] == math.inf
