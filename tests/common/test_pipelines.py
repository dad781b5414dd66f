"""What every method asks of a pipeline, against diffusers' own."""

import logging

import pytest
import torch

from common.ddim import ddim_step, guide, make_schedule, to_eps
from common.pipelines import Conditioning, decode_latents, encode_image, encode_prompt, predict_noise
from tests.refusing import refuses
from tests.small_data import random
from tests.tiny import tiny_sd, tiny_sdxl


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl, lambda: tiny_sd(prediction_type="v_prediction")])
def test_a_guided_sample_equals_the_pipelines_own(make):
    pipe = make()
    schedule, z = make_schedule(pipe.scheduler, 5), random(1, 4, 16, 16)
    expected = pipe(
        "a red cat", latents=z, num_inference_steps=5, guidance_scale=7.5, output_type="latent", guidance_rescale=0.0
    ).images
    cond = encode_prompt(pipe, ["", "a red cat"])
    for t in schedule.timesteps:
        uncond_eps, cond_eps = predict_noise(pipe, schedule, torch.cat([z, z]), t, cond).chunk(2)
        z = ddim_step(schedule, z, guide(uncond_eps, cond_eps, 7.5), t)
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-5)


def test_predict_noise_takes_a_timestep_per_item_and_passes_gradients():
    pipe = tiny_sd(prediction_type="v_prediction")
    schedule, cond = make_schedule(pipe.scheduler, 10), encode_prompt(pipe, ["a cat", "a dog"])
    z = random(2, 4, 16, 16).requires_grad_()
    both = predict_noise(pipe, schedule, z, torch.tensor([701, 101]), cond)
    for i, t in enumerate((701, 101)):
        alone = predict_noise(pipe, schedule, z[i : i + 1], t, cond[i])
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)
        v = pipe.unet(z[i : i + 1], t, encoder_hidden_states=cond.embeds[i : i + 1]).sample
        torch.testing.assert_close(alone, to_eps(schedule, v, z[i : i + 1], t))
    both.square().mean().backward()
    assert z.grad.abs().sum() > 0 and all(weight.grad is None for weight in pipe.unet.parameters())


def test_conditioning_of_sdxl_indexes_and_concatenates():
    pipe = tiny_sdxl()
    null = encode_prompt(pipe, ["", "a cat"])  # zeros, where the config says so
    assert null.embeds[0].abs().max() == null.added["text_embeds"][0].abs().max() == 0 < null.embeds[1].abs().max()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert encode_prompt(pipe, [""]).embeds.abs().max() > 0
    cond = encode_prompt(pipe, ["a cat", "a dog"])
    assert cond.embeds.shape == (2, 77, 80) and cond.added["text_embeds"].shape == (2, 40) and len(cond) == 2
    assert cond.added["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    again = Conditioning.cat(cond[[1, 1]], cond[:1], cond[-1])
    for ours, whole in ((again.embeds, cond.embeds), *((again.added[key], cond.added[key]) for key in cond.added)):
        assert torch.equal(ours, whole[[1, 1, 0, 1]])
    other = cond.with_embeds(cond.embeds * 0)
    assert other.embeds.abs().max() == 0 and other.added is cond.added
    assert encode_prompt(pipe, ["a cat"], size=(64, 32)).added["time_ids"].tolist() == [[64, 32, 0, 0, 64, 32]]


def test_long_prompts_lose_words_by_name(pipe, caplog):
    text = "a cat " * 36 + "on the snowflake by night"  # 72 + 2 tokens, then a word that straddles the limit of 75
    with caplog.at_level(logging.WARNING):
        cond = encode_prompt(pipe, ["a cat", text])
    (message,) = [record.getMessage() for record in caplog.records if record.name == "common.pipelines"]
    assert "'snowflake by night'" in message and "on the" not in message
    cut = pipe.tokenizer([text], truncation=True, max_length=77, return_tensors="pt").input_ids
    torch.testing.assert_close(cond.embeds[1:], pipe.text_encoder(cut)[0])
    caplog.clear()
    encode_prompt(pipe, ["a cat " * 37 + "hat"])  # exactly 75
    assert not caplog.records
    encode_prompt(pipe, ["a cat " * 37 + "hat dog bird"])
    assert "lost: 'dog bird'" in caplog.text


@pytest.mark.parametrize("prompts", ["a cat", [], [None], None, [b"cat"]])
def test_prompts_must_be_a_list_of_strings(pipe, prompts):
    refuses("list of strings", encode_prompt, pipe, prompts)


def test_pictures_to_latents_and_back():
    pipe, picture = tiny_sd(), random(2, 3, 64, 32).sigmoid()
    mean = pipe.vae.encode(picture * 2 - 1).latent_dist.mean
    latents = encode_image(pipe, picture)
    assert latents.shape == (2, 4, 16, 8)
    torch.testing.assert_close(latents, mean * 0.18215)
    decoded = decode_latents(pipe, latents)
    released = (pipe.vae.decode(1 / 0.18215 * latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(decoded, released)  # to the last bit: pixels are truncated to 8 bits
    drawn = [encode_image(pipe, picture, sample=True, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], latents)
    pipe.vae.register_to_config(shift_factor=0.5)
    shifted = encode_image(pipe, picture)
    torch.testing.assert_close(shifted, latents - 0.5 * 0.18215, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(decode_latents(pipe, shifted), decoded, atol=1e-5, rtol=1e-5)


def test_float16_vae_that_overflows_is_run_in_float32():
    pipe = tiny_sdxl().to(dtype=torch.float16)
    latents = encode_image(pipe, random(1, 3, 64, 64).sigmoid())
    picture = decode_latents(pipe, latents)
    assert latents.dtype == pipe.vae.dtype == torch.float16 and picture.dtype == torch.float32  # as the pipeline had it
    pipe.vae.float()
    assert torch.equal(picture, decode_latents(pipe, latents))
    with torch.autocast("cpu", torch.float16):  # as trainings and infer run it with --mixed_precision fp16
        assert torch.equal(picture, decode_latents(pipe, latents))
    pipe.vae.register_to_config(force_upcast=False)
    with torch.autocast("cpu", torch.float16):
        assert not torch.equal(picture, decode_latents(pipe, latents))


@pytest.mark.parametrize("shape, value, wrong", [
    ((3, 64, 64), 0, "must be"), ((1, 1, 64, 64), 0, "must be"), ((1, 3, 64, 63), 0, "multiples of 4"),
    ((1, 3, 64, 64), float("nan"), "NaN"), ((1, 3, 64, 64), 255.0, r"\[0,1\]"), ((1, 3, 64, 64), -1.0, r"\[0,1\]"),
])  # fmt: skip
def test_pictures_that_are_none_are_refused(pipe, shape, value, wrong):
    refuses(wrong, encode_image, pipe, torch.full(shape, float(value)))
