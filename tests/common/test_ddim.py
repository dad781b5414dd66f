import math

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

from common.ddim import add_noise, ddim_inverse_step, ddim_step, guide, inversion_timestep, make_schedule, slerp, to_eps
from tests.refusing import refuses
from tests.small_data import random

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
      "set_alpha_to_one": False, "steps_offset": 1}  # fmt: skip


def naive_alpha_bar() -> np.ndarray:
    """SD's table in float64, by the formula."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def test_stable_diffusion_table_and_timesteps():
    schedule = make_schedule(SD, 50)
    assert schedule.alpha_bar.dtype == torch.float32
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), naive_alpha_bar(), rtol=2e-5)
    assert schedule.alpha_bar[981].item() == pytest.approx(0.005775, abs=1e-6)
    assert schedule.final_alpha_bar == pytest.approx(0.99915) and schedule.stride == 20
    assert schedule.timesteps == list(range(981, 0, -20))
    assert make_schedule(SD, 75).timesteps[:2] == [963, 950]  # 1000 // 75 = 13, as the released code rounds
    assert make_schedule(SD | {"steps_offset": 0}, 50).timesteps[0] == 980
    assert [inversion_timestep(schedule, t) for t in (1, 21, 981)] == [1, 21, 981]
    assert [inversion_timestep(schedule, t, "source") for t in (1, 21, 981)] == [0, 1, 961]
    assert schedule.alpha_bar_at(-19) == schedule.alpha_bar[0] == schedule.alpha_bar_at(schedule.previous(1))


@pytest.mark.parametrize("steps", [1, 10, 50, 75, 999])
def test_timesteps_equal_diffusers_whatever_the_published_scheduler(steps):
    """SD is published with PNDM, SDXL with an Euler scheduler, whose files still carry the fields that DDIM needs."""
    config = {key: value for key, value in SD.items() if key != "clip_sample"}
    euler = EulerDiscreteScheduler.from_config(SD | {"timestep_spacing": "leading"})
    for scheduler in (DDIMScheduler(**SD), PNDMScheduler(**config), euler):
        theirs = DDIMScheduler.from_config(scheduler.config)
        theirs.set_timesteps(steps)
        ours = make_schedule(scheduler, steps)
        assert ours.timesteps == theirs.timesteps.tolist() and ours.final_alpha_bar == pytest.approx(0.99915)


@pytest.mark.parametrize("change", [
    {"beta_schedule": "linear"}, {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.01] * 1000},
    {"rescale_betas_zero_snr": True}, {"set_alpha_to_one": True},
])  # fmt: skip
def test_table_of_other_configs(change):
    theirs = DDIMScheduler(**(SD | change))
    ours = make_schedule(SD | change, 20)
    assert torch.equal(ours.alpha_bar, theirs.alphas_cumprod)
    assert ours.final_alpha_bar == float(theirs.final_alpha_cumprod)


def test_step_counts_that_leave_the_table_are_refused():
    for steps in (0, -1, 1000):
        refuses("1 to 999", make_schedule, SD, steps)
    assert make_schedule(SD | {"steps_offset": 0}, 1000).timesteps[-1] == 0
    # t = 999 is pure noise in a zero-SNR model
    refuses("no signal", make_schedule, SD | {"rescale_betas_zero_snr": True}, 500)


@pytest.mark.parametrize("steps", [10, 50, 75, 999])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_steps_equal_diffusers(steps, prediction_type):
    config = SD | {"prediction_type": prediction_type}
    theirs, inverse, schedule = DDIMScheduler(**config), DDIMInverseScheduler(**config), make_schedule(config, steps)
    theirs.set_timesteps(steps)
    inverse.set_timesteps(steps)
    assert inverse.timesteps.tolist() == schedule.timesteps[::-1]
    z, output, noise = random(3, 2, 4, 8, 8)
    for t in (schedule.timesteps[0], schedule.timesteps[steps // 2], schedule.timesteps[-1]):
        for eta in (0.0, 0.7):
            ours = ddim_step(schedule, z, to_eps(schedule, output, z, t), t, eta, noise)
            expected = theirs.step(output, t, z, eta=eta, variance_noise=noise if eta else None).prev_sample
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
        if prediction_type != "sample":
            # theirs converts a v-prediction at the level the latent comes from, so eps is taken there
            ours = ddim_inverse_step(schedule, z, to_eps(schedule, output, z, schedule.previous(t)), t)
            torch.testing.assert_close(ours, inverse.step(output, t, z).prev_sample, atol=2e-5, rtol=1e-5)
    z = z.half()
    assert ddim_step(schedule, z, z, t).dtype == ddim_inverse_step(schedule, z, z, t).dtype == torch.float16
    with pytest.raises(ValueError, match="noise"):
        ddim_step(schedule, z, z, t, eta=1.0)


def test_inverse_step_coefficients_of_the_released_code():
    """z_t = C1 z_s + C2 eps, C1 = sqrt(a_t/a_s), C2 = sqrt(a_t) (sqrt(1/a_t - 1) - sqrt(1/a_s - 1)), in float64."""
    schedule, a = make_schedule(SD, 50), naive_alpha_bar()
    known = {1: (0.99957, 0.01214), 21: (0.99099, 0.09916), 481: (0.95588, 0.05336), 981: (0.89059, 0.10977)}
    one, zero = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    for t, coefficients in known.items():
        a_t, a_s = a[t], a[max(t - 20, 0)] if t > 20 else a[0]
        c1, c2 = math.sqrt(a_t / a_s), math.sqrt(a_t) * (math.sqrt(1 / a_t - 1) - math.sqrt(1 / a_s - 1))
        assert (c1, c2) == pytest.approx(coefficients, abs=1e-5)
        assert ddim_inverse_step(schedule, one, zero, t).mean().item() == pytest.approx(c1, abs=1e-5)
        assert ddim_inverse_step(schedule, zero, one, t).mean().item() == pytest.approx(c2, abs=1e-5)


@pytest.mark.parametrize("steps", [10, 50, 999])
def test_inversion_is_exact_when_eps_does_not_depend_on_the_latent(steps):
    schedule = make_schedule(SD, steps)
    z0 = random(1, 4, 8, 8, dtype=torch.float64)
    eps = {t: random(1, 4, 8, 8, seed=t, dtype=torch.float64) for t in schedule.timesteps}
    z = z0
    for t in reversed(schedule.timesteps):
        z = ddim_inverse_step(schedule, z, eps[t], t)
    assert (z - z0).abs().max() > 0.5
    for t in schedule.timesteps:
        z = ddim_step(schedule, z, eps[t], t)
    torch.testing.assert_close(z, z0, atol=1e-9, rtol=0)


@pytest.mark.parametrize("t", [1, 500, torch.tensor([1, 700])])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_noise_that_made_a_latent_is_found_again(prediction_type, t):
    schedule = make_schedule(SD | {"prediction_type": prediction_type}, 50)
    x0, eps = random(2, 4, 4, 4, dtype=torch.float64), random(2, 4, 4, 4, seed=1, dtype=torch.float64)
    a = torch.tensor(naive_alpha_bar(), dtype=torch.float64)[t].reshape(-1, 1, 1, 1)
    z, v = a.sqrt() * x0 + (1 - a).sqrt() * eps, a.sqrt() * eps - (1 - a).sqrt() * x0
    output = {"epsilon": eps, "v_prediction": v, "sample": x0}[prediction_type]
    torch.testing.assert_close(to_eps(schedule, output, z, t), eps, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(add_noise(schedule, x0, eps, t), z, atol=1e-4, rtol=0)


def test_guidance():
    u, c = random(1, 4, 4, 4), random(1, 4, 4, 4, seed=1)
    torch.testing.assert_close(guide(u, c, 1.0), c)
    assert torch.equal(guide(u, c, 0.0), u)
    torch.testing.assert_close(guide(u, c, 7.5), 7.5 * c - 6.5 * u)


def test_slerp_stays_on_the_sphere_and_is_linear_between_parallel_and_opposite_items():
    a, b = torch.tensor([[[1.0, 0.0]], [[3.0, 0.0]]]), torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]]])
    torch.testing.assert_close(slerp(0.5, a, b), (a + b) / math.sqrt(2))
    torch.testing.assert_close(slerp(0.0, a, b), a)
    torch.testing.assert_close(slerp(1.0, a, b), b)
    third = slerp(1 / 3, a, b)[0, 0]
    assert math.atan2(third[1], third[0]) == pytest.approx(math.pi / 6, abs=1e-5)
    a = random(1, 7, 3)
    for weight, b, expected in ((0.3, a, a), (0.25, 3 * a, 1.5 * a), (0.25, -a, 0.5 * a)):
        torch.testing.assert_close(slerp(weight, a, b), expected)
