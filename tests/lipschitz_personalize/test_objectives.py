"""The training objective of every backbone against a reading of its own, on small random pipelines."""

import pytest
import torch

from common.runs import InputError
from common.training import step_generator
from lipschitz_personalize import objectives
from tests.refusing import refuses


@pytest.fixture(scope="module")
def pipes(models):
    return {name: objectives.load_backbone(str(folder), "cpu") for name, folder in models.items()}


BACKBONES = ["sd", "sd_v", "sdxl", "sd3"]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_told_apart(pipes, name):
    pipe = pipes[name]
    assert objectives.backbone_of(pipe) == name.removesuffix("_v")
    assert objectives.chosen_resolution(pipe, None) == 32 and objectives.chosen_resolution(pipe, 40) == 40
    with pytest.raises(InputError, match="--resolution 36 is no multiple of this model's 8 pixels"):
        objectives.chosen_resolution(pipe, 36)  # latents of 9: no patches of two, no picture that diffusers draws
    assert objectives.network(pipe) is (pipe.transformer if name == "sd3" else pipe.unet)
    assert not any(tensor.requires_grad for tensor in objectives.network(pipe).parameters())


@pytest.mark.parametrize("name", BACKBONES)
def test_loss_against_an_independent_reading(pipes, name):
    """Everything by hand: draws, levels, the network's call, target, weight."""
    pipe, prompts = pipes[name], ["a red cat", "a dog", ""]
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = objectives.encode_text(pipe, prompts)
    noisy = objectives.add_noise(pipe, latents, step_generator(0, 5))
    with torch.no_grad():
        found = objectives.squared_error(objectives.predict(pipe, noisy.z, noisy.t, cond), noisy)

    generator = step_generator(0, 5)
    n = torch.randn(3, 4, 8, 8, generator=generator).double()
    x = latents.double()
    if name == "sd3":
        u = torch.sigmoid(torch.randn(3, generator=generator)).double()
        raw = 1 - (u * 1000).floor() / 1000  # sigma falls from 1 by thousandths, then is shifted by 3
        sigma = (3 * raw / (1 + 2 * raw)).reshape(3, 1, 1, 1)
        z = (1 - sigma) * x + sigma * n
        embeds, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False,
                                                  max_sequence_length=77)  # fmt: skip
        with torch.no_grad():
            v = pipe.transformer(z.float(), embeds, pooled, (1000 * sigma).float().reshape(3)).sample.double()
        expected = ((z - sigma * v) - x).square().mean((1, 2, 3))  # the error of the clean latents
    else:
        t = torch.randint(1000, (3,), generator=generator)
        a = pipe.scheduler.alphas_cumprod.double()[t].reshape(3, 1, 1, 1)
        z = a.sqrt() * x + (1 - a).sqrt() * n
        wanted = a.sqrt() * n - (1 - a).sqrt() * x if name == "sd_v" else n
        encoded = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        added = None
        if name == "sdxl":
            keep = torch.tensor([1.0, 1.0, 0.0])  # SDXL's null text is zeros
            encoded = [encoded[0] * keep[:, None, None], None, encoded[2] * keep[:, None]]
            added = {"text_embeds": encoded[2], "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 3)}
        with torch.no_grad():
            said = pipe.unet(z.float(), t, encoded[0], added_cond_kwargs=added).sample.double()
        expected = (said - wanted).square().mean((1, 2, 3))
    assert torch.allclose(found.double(), expected, rtol=2e-4)


def test_sd3_without_preconditioning_takes_the_error_of_the_velocity(pipes):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noisy = objectives.add_noise(pipes["sd3"], latents, step_generator(0, 0), precondition_outputs=False)
    assert torch.equal(noisy.weight, torch.ones(2))
    assert torch.allclose(noisy.z - noisy.target * (noisy.t / 1000).reshape(2, 1, 1, 1), latents, atol=1e-5)


def test_sampling_does_not_change_the_training_levels_of_sd3(pipes):
    latents = torch.zeros(2, 4, 8, 8)
    before = objectives.add_noise(pipes["sd3"], latents, step_generator(0, 0))
    pipes["sd3"].set_progress_bar_config(disable=True)
    pipes["sd3"]("a cat", num_inference_steps=2, height=32, width=32, output_type="latent")
    after = objectives.add_noise(pipes["sd3"], latents, step_generator(0, 0))
    assert torch.equal(before.z, after.z) and torch.equal(before.t, after.t)


@pytest.mark.parametrize("name", BACKBONES)
def test_latents_are_a_scaled_sample_of_the_posterior(pipes, name):
    vae, picture = pipes[name].vae, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    posterior = vae.encode(picture * 2 - 1).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=step_generator(1, 1))
    expected = (posterior.mean + posterior.std * noise - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    assert torch.allclose(objectives.encode_pictures(pipes[name], picture, step_generator(1, 1)), expected, atol=1e-5)
    refuses("multiple of 4", objectives.encode_pictures, pipes[name], picture[..., :30], step_generator(0, 0))


@pytest.mark.parametrize("name", BACKBONES)
def test_levels_that_are_asked_for(pipes, name):
    levels = []
    for share in (0.0, 0.5, 1.0):
        z, t = objectives.random_noisy(pipes[name], share, step_generator(0, 0), torch.zeros(1, 4, 8, 8))
        levels.append((t.item(), z.square().mean().item() ** 0.5))
    assert levels[0][0] < 10 and levels[2][0] >= 999
    assert levels[0][1] < 0.1 < levels[1][1] < levels[2][1]  # of zeros nothing is left but noise, more and more of it


def test_the_masked_error_is_that_inside_and_of_the_masked_pictures_alone():
    noisy = objectives.Noisy(None, None, torch.zeros(2, 2, 2, 2), torch.ones(2))
    prediction = torch.tensor([[[[1.0, 2], [3, 4]], [[5, 6], [7, 8]]]] * 2)
    mask = torch.tensor([[[[1.0, 0], [0, 1]]]])  # of the first; the second shows the class
    inside, whole = 1 + 16 + 25 + 64, sum(n**2 for n in range(1, 9)) / 8
    assert objectives.squared_error(prediction, noisy, mask).tolist() == pytest.approx([inside / 4, whole])
    summed = objectives.squared_error(prediction, noisy, mask, sum_channels=True)
    assert summed.tolist() == pytest.approx([inside / 2, whole])  # divided by the mask's sum, as Custom Diffusion does


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_encoding_leaves_a_vae_of_sixteen_bits_as_the_pipeline_needs_it(models, name):
    pipe = objectives.load_backbone(str(models[name]), "cpu", torch.float16)
    assert pipe.vae.config.force_upcast  # in float32 it is encoded
    latents = objectives.encode_pictures(pipe, torch.rand(1, 3, 32, 32), step_generator(0, 0))
    assert latents.dtype == torch.float32 and pipe.vae.dtype == torch.float16
    assert {tensor.dtype for tensor in pipe.vae.parameters()} == {torch.float16}


def test_a_device_that_is_not_there_and_a_folder_of_another_kind_are_refused(models, tmp_path):
    for name in ("sd", "sd3"):
        refuses("no device 'meteor'", objectives.load_backbone, str(models[name]), "meteor")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    refuses("holds a FluxPipeline", objectives.load_backbone, str(tmp_path))
