"""Sampling and single-image editing against naive loops and diffusers' own pipeline."""

import pytest
import torch

from common.pipelines import encode_image, encode_prompt
from svdiff import editing


def picture():
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_pictures_are_those_of_diffusers_from_each_seed_s_own_noise(pipe, eta, monkeypatch):
    """And what eta adds is not the noise that was started from."""
    how, added, step = editing.Sampling(4, 3.0, eta, "a dog"), [], editing.ddim_step
    monkeypatch.setattr(editing, "ddim_step", lambda *a: added.append(a[5]) or step(*a))
    ours = editing.draw(pipe, "a red cat", [3, 8], how)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        ["a red cat"] * 2, negative_prompt=["a dog"] * 2, eta=eta, num_inference_steps=4, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 8)], output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)
    if eta:
        draws = torch.stack([editing.start_noise(pipe, [3, 8]), *added])[:, 0].flatten(1)
        assert len(draws) == 5 and (torch.corrcoef(draws) - torch.eye(5)).abs().max() < 0.2


LEVELS = (1, 201, 401, 601, 801)


@pytest.mark.parametrize("convention, shown, levels", [
    ("source", (0, *LEVELS[:4]), LEVELS), ("target", LEVELS, LEVELS), ("public", LEVELS[:4], (200, 400, 600, 800)),
])  # fmt: skip
def test_inversion_is_eq_6_read_step_by_step(pipe, convention, shown, levels):
    """sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) eps upwards in float64, without guidance, the target prompt."""
    schedule = editing.make_schedule(pipe.scheduler, 5)
    z = encode_image(pipe, picture()).float()
    cond = encode_prompt(pipe, ["a blue cat"])
    found = editing.invert(pipe, schedule, z, cond, convention)
    default = editing.invert(pipe, schedule, z, cond)
    assert torch.equal(found, default) == (convention == "public")
    alpha_bar = pipe.scheduler.alphas_cumprod.double()
    level, exact = alpha_bar[0], z.double()
    for t, seen in zip(levels, shown, strict=True):
        with torch.no_grad():
            eps = pipe.unet(exact.float(), seen, encoder_hidden_states=cond.embeds).sample.double()
        x0 = (exact - (1 - level).sqrt() * eps) / level.sqrt()
        level = alpha_bar[t]
        exact = level.sqrt() * x0 + (1 - level).sqrt() * eps
    torch.testing.assert_close(found, exact.float(), rtol=1e-3, atol=1e-3)


def test_noise_added_to_an_edit_from_inverted_noise_is_that_of_diffusers(pipe):
    """Whose `latents` leave the generator where it is."""
    how = editing.Sampling(4, 3.0, 0.5)
    z = editing.invert(pipe, editing.make_schedule(pipe.scheduler, 4), encode_image(pipe, picture()).float(),
                       encode_prompt(pipe, ["a blue cat"]))  # fmt: skip
    ours = editing.edit(pipe, picture(), "a blue cat", how, True, 0.0, [3])
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a blue cat", latents=z, eta=0.5, num_inference_steps=4, guidance_scale=3.0, output_type="pt",
                  generator=torch.Generator().manual_seed(3)).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-4)


def test_edits_start_from_inverted_slerped_or_fresh_noise(pipe):
    how = editing.Sampling(3, 1.0)
    whole = editing.edit(pipe, picture(), "a cat", how, True, 0.0, (0, 1))
    assert torch.equal(whole[0], whole[1])  # no random number is drawn
    fresh = editing.edit(pipe, picture(), "a cat", how, False, 0.0, (0, 1))
    torch.testing.assert_close(fresh, editing.draw(pipe, "a cat", [0, 1], how))
    gone = editing.edit(pipe, picture(), "a cat", how, True, 1.0, (0, 1))  # Eq. 7 at alpha = 1 is the noise itself
    torch.testing.assert_close(gone, fresh, rtol=0, atol=1e-3)
    between = editing.edit(pipe, picture(), "a cat", how, True, 0.5, (0, 1))
    assert not torch.equal(between[0], between[1]) and not torch.equal(between, whole)
    noisy = editing.edit(pipe, picture(), "a cat", editing.Sampling(3, 1.0, 0.5), True, 0.0, (0, 1))
    assert not torch.equal(noisy[0], noisy[1])
