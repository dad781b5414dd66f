"""The experiments against naive readings, and from end to end on a small random model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.ddim import make_schedule
from common.pipelines import encode_prompt
from common.runs import read_rows
from spdinv.inversions import INVERSIONS, ddim, spd
from spdinv.options import Method
from spdinv.reproduction import experiments
from spdinv.reproduction.experiments import convergence, generated, noise_gap, premise
from spdinv.sampling import generate
from tests.spdinv.toy import random, toy_cond, toy_pipe, toy_schedule


def latents(batch=1, seed=0):
    return torch.randn(batch, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- pictures from noise


def test_generate_is_what_diffusers_draws_and_keeps_every_level(pipe):
    noise = generated.ideal_noise(pipe, ["a", "b"], 0, 64)
    schedule = make_schedule(pipe.scheduler, 3)
    pipe.set_progress_bar_config(disable=True)
    for scale in (1.0, 3.0):
        found = generate(pipe, schedule, noise, encode_prompt(pipe, ["a red cat", "a dog"]), scale)
        expected = pipe(["a red cat", "a dog"], latents=noise, num_inference_steps=3, guidance_scale=scale,
                        output_type="latent").images  # fmt: skip
        assert found.shape == (4, 2, 4, 16, 16) and torch.equal(found[-1], noise)
        assert torch.allclose(found[0], expected, atol=2e-5)


def test_ideal_noise_belongs_to_a_name_and_a_seed(pipe):
    both = generated.ideal_noise(pipe, ["a", "b"], 0, 64)
    assert torch.equal(generated.ideal_noise(pipe, ["b"], 0, 64)[0], both[1]) and both.shape == (2, 4, 16, 16)
    assert not torch.equal(both[0], both[1]) and not torch.equal(generated.ideal_noise(pipe, ["a"], 1, 64)[0], both[0])
    assert abs(generated.ideal_noise(pipe, list("abcdefgh"), 0, 64).std() - 1) < 0.05


def test_pick_is_the_inversion_of_one_picture(pipe):
    schedule, z = make_schedule(pipe.scheduler, 2), random(2, 4, 16, 16)
    cond = encode_prompt(pipe, ["a cat", "a red dog"])
    for name in ("spd", "negative_prompt", "direct", "edict"):
        both, alone = INVERSIONS[name](pipe, schedule, z, cond), INVERSIONS[name](pipe, schedule, z[1:], cond[1])
        one = both.picture(1)
        assert torch.allclose(one.trajectory, alone.trajectory, atol=1e-3) and torch.equal(one.rounds, alone.rounds)
        for field in ("uncond_embeds", "corrections"):
            a, b = getattr(one, field), getattr(alone, field)
            assert (a is b is None) or torch.allclose(a.expand_as(b), b, atol=2e-3), field
        assert one.cost["forward"] == both.cost["forward"] / 2


# ------------------------------------------------------------------------------------------------------- noise gap


def toy_generate(pipe, schedule, noise, cond):
    """Naive DDIM sampling in float64 without guidance, clean latent first."""
    latents = [noise]
    for t in schedule.timesteps:
        a, s = (float(schedule.alpha_bar_at(u)) for u in (t, t - schedule.stride))
        z = latents[-1]
        eps = pipe.unet(z, t, cond.embeds)[0]
        latents.append((s / a) ** 0.5 * z + ((1 - s) ** 0.5 - (s * (1 - a) / a) ** 0.5) * eps)
    return torch.stack(latents[::-1])


def test_the_gap_is_the_mean_square_at_equal_levels():
    pipe, schedule, cond = toy_pipe(), toy_schedule(5), toy_cond([0.3, -0.2])
    true = toy_generate(pipe, schedule, latents(2), cond)
    found = ddim.invert(pipe, schedule, true[0], cond)
    gap = noise_gap.noise_gap(true, found.trajectory)
    assert gap.shape == (6, 2) and (gap[0] == 0).all()
    a, b = found.trajectory.detach().numpy(), true.detach().numpy()
    naive = [[((a[level, i] - b[level, i]) ** 2).mean() for i in range(2)] for level in range(6)]
    assert np.allclose(gap.detach(), naive)
    assert (gap[1:] > 0).all() and (gap[-1] > gap[1]).all()
    shifted = ((found.trajectory[1:] - true[:-1]) ** 2).mean()  # one level off is far off
    assert shifted > 10 * gap[1:].mean()


def test_where_the_network_ignores_the_latent_inversion_finds_the_ideal_noise():
    pipe, schedule, cond = toy_pipe(torch.zeros(4, 4, dtype=torch.float64)), toy_schedule(5), toy_cond([0.3])
    true = toy_generate(pipe, schedule, latents(), cond)
    found = ddim.invert(pipe, schedule, true[0], cond)
    assert noise_gap.noise_gap(true, found.trajectory).max() < 1e-10


def test_statistics_of_noise_and_of_what_is_none():
    noise = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    ideal = noise_gap.statistics(noise)
    assert abs(ideal["noise_mean"]) < 0.02 and abs(ideal["noise_deviation"] - 1) < 0.02
    assert ideal["noise_correlation"] < 0.03
    mixed = torch.stack([noise[0], noise[0] + noise[1], -noise[0], noise[3]])
    expected = np.abs(np.corrcoef(mixed.flatten(1).numpy()))[np.triu_indices(4, 1)].mean()
    assert noise_gap.statistics(mixed)["noise_correlation"] == pytest.approx(expected, rel=1e-4)


# ------------------------------------------------------------------------------------------------------ convergence


def test_residuals_are_those_of_a_naive_search():
    pipe, schedule, cond, z0 = toy_pipe(), toy_schedule(4), toy_cond([0.3]), latents()
    with convergence.watched(pipe.unet) as calls:
        inversion = spd.invert(pipe, schedule, z0, cond, rounds=3, learning_rate=1e-2, threshold=1e-5)
    found = convergence.residuals(pipe, schedule, inversion, cond, calls)
    z, expected = z0, []
    for t in schedule.timesteps[::-1]:
        a, s = (float(schedule.alpha_bar_at(u)) for u in (t, t - schedule.stride))

        def residual(x, z=z, a=a, s=s, t=t):
            eps = pipe.unet(x, t, cond.embeds)[0]
            f = (a / s) ** 0.5 * z + a**0.5 * ((1 / a - 1) ** 0.5 - (1 / s - 1) ** 0.5) * eps
            return ((x - f) ** 2).mean(), f

        x = residual(z)[1].detach().requires_grad_()
        optimizer, losses = torch.optim.AdamW([x], lr=1e-2), []
        for _ in range(3):
            loss = residual(x)[0]
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss < 1e-5:
                break
        z = x.detach()
        expected.append([*losses, residual(z)[0].item()])
    assert [len(step) for step in found] == [len(step) for step in expected]
    assert [1 + rounds for rounds in inversion.rounds[:, 0].tolist()] == [len(step) for step in found]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_of_ddim_the_guess_is_what_it_settles_for():
    pipe, schedule, cond = toy_pipe(), toy_schedule(4), toy_cond([0.3])
    with convergence.watched(pipe.unet) as calls:
        inversion = ddim.invert(pipe, schedule, latents(), cond)
    assert len(calls) == 4
    assert [len(step) for step in convergence.residuals(pipe, schedule, inversion, cond, calls)] == [1] * 4
    assert len(calls) == 4  # the hook is off


def test_what_is_said_of_the_residuals():
    losses = [[2e-6, 3e-6], [4e-6, 1e-6], [3e-6, 9e-6], [1e-4, 5e-5, 4e-6], [1e-4, 6e-5, 7e-5], [2e-5, 1e-6]]
    said = convergence.summarise(losses, [1, 1, 1, 2, 2, 1], 5e-6)
    assert said["guess_below_threshold"] == 0.5 and said["forced_step_hurts"] == pytest.approx(2 / 3)
    assert said["settled_below_threshold"] == pytest.approx(4 / 6)
    assert said["rounds_early_less_late"] == pytest.approx(1 - 5 / 3)
    assert said["residual"] == pytest.approx((3e-6 + 1e-6 + 9e-6 + 4e-6 + 7e-5 + 1e-6) / 6)
    plain = convergence.summarise([[2e-6], [1e-4]], [0, 0], 5e-6)  # DDIM forces nothing
    assert np.isnan(plain["forced_step_hurts"]) and plain["residual"] == plain["residual_guess"]


# ---------------------------------------------------------------------------------------------------- end to end


@pytest.fixture
def experiment(run, tmp_path):
    return lambda *flags: run(tmp_path, "--spd_rounds", "2", "--batch_size", "2", *flags).out


def contents(folder):
    """Everything but seconds and memory."""
    rows = [{key: value for key, value in row.items() if not key.endswith(("seconds", "memory_mb"))}
            for row in read_rows(folder / "rows.jsonl")]  # fmt: skip
    return sorted(map(json.dumps, rows))


def test_noise_gap_from_end_to_end_interrupted_and_resumed(experiment, tmp_path, monkeypatch, pipe):
    few = ("--exact_rounds", "4")
    shown = experiment("--table", "s1", *few)
    folder = tmp_path / "noise_gap"
    rows = read_rows(folder / "rows.jsonl")
    names = {f"{inversion}@cfg{scale}-{start}" for inversion in ("ddim", "exact", "spd") for scale in ("1", "7.5")
             for start in ("latents", "picture")} | {"gaussian"}  # fmt: skip
    assert len(rows) == 3 * 13 and {row["method"] for row in rows} == names
    for row in rows:
        code = load_file(folder / "codes" / row["method"] / f"{row['item']}.safetensors")["noise"]
        assert row["metrics"]["noise_deviation"] == pytest.approx(code.std().item())
        if row["method"] != "gaussian":
            true = load_file(folder / "codes" / "gaussian" / f"{row['item']}.safetensors")["noise"]
            assert row["metrics"]["noise_gap"] == pytest.approx(((code - true) ** 2).mean().item(), rel=1e-4)
            assert len(row["gap"]) == 3 and (row["gap"][0] == 0) == row["method"].endswith("latents")
    for name in ("curves.png", "codes.png", "results.json"):
        assert (folder / name).stat().st_size > 0
    assert "12.66" in shown and shown.count("measured: drawn at CFG 7.5, inverted from picture") == 2 + 2
    assert "No linear probe" in shown and "the VAE's share of ddim's gap" in shown

    whole, original, count = contents(folder), experiments.append_row, []
    (folder / "rows.jsonl").unlink()
    monkeypatch.setattr(noise_gap, "report", lambda *args: None)

    def interrupted(path, row):
        count.append(row)
        if len(count) == 12:
            raise KeyboardInterrupt
        original(path, row)

    monkeypatch.setattr(experiments, "append_row", interrupted)
    with pytest.raises(SystemExit):
        experiment("--experiment", "noise_gap", *few)
    assert len(read_rows(folder / "rows.jsonl")) == 11
    experiment("--experiment", "noise_gap", *few)
    assert contents(folder) == whole
    monkeypatch.setattr(experiments, "append_row", lambda *args: pytest.fail("nothing was left to do"))
    experiment("--experiment", "noise_gap", *few)


def test_premise_from_end_to_end(experiment, tmp_path):
    flags = ("--experiment", "premise", "--inversions", "ddim", "edict", "exact", "spd",
             "--guidance_scale", "3", "--drawing_scale", "1", "3", "--limit", "2", "--exact_rounds", "8")  # fmt: skip
    shown = experiment(*flags)
    rows = {(row["method"], row["item"][-1]): row for row in read_rows(tmp_path / "premise" / "rows.jsonl")}
    arms = [f"{arm}+p2p@drawn{scale}" for scale in (1, 3) for arm in ("ideal", "ddim", "edict", "exact", "spd")]
    assert sorted(rows) == sorted((arm, item) for arm in arms for item in "01")
    for item in "01":
        for scale in (1, 3):
            ideal, ddim, _, exact, _ = (rows[arm, item]["metrics"] for arm in arms if arm.endswith(f"drawn{scale}"))
            assert ideal["noise_gap"] == 0 < exact["noise_gap"] < ddim["noise_gap"]
            assert ideal["psnr_reconstruction"] > 45 > ddim["psnr_reconstruction"]  # it draws the very picture again
            assert ideal["psnr_to_ideal"] == float("inf") and ddim["psnr_to_ideal"] < 60
        place = tmp_path / "premise" / "pictures" / f"{0:011d}{item}"
        names = {"source_1", "source_3", *arms, *(f"{arm}_reconstruction" for arm in arms)}
        assert {path.stem for path in place.iterdir()} == names
    assert "ideal+p2p@drawn1 - ddim+p2p@drawn1" in shown and (tmp_path / "premise" / "grid.png").exists()
    differences = json.loads((tmp_path / "premise" / "results.json").read_text())["differences"]
    gap = differences["exact+p2p@drawn3 - ddim+p2p@drawn3"]["noise_gap"]
    exact, ddim = ([rows[arm, item]["metrics"]["noise_gap"] for item in "01"] for arm in (arms[8], arms[6]))
    assert gap["mean"] == pytest.approx(np.mean(exact) - np.mean(ddim)) and gap["n"] == 2
    experiment(*flags)
    assert len(read_rows(tmp_path / "premise" / "rows.jsonl")) == 20


def test_arms_and_pairs():
    methods = {f"{inversion}+{engine}": Method(inversion, engine) for engine in ("p2p", "pnp")
               for inversion in ("ddim", "spd", "exact", "direct")}  # fmt: skip
    arms = premise.arms_of(methods, [1.0, 7.5])
    assert list(arms)[:2] == ["ideal+p2p@drawn1", "ideal+pnp@drawn1"] and len(arms) == 2 * 2 * 5
    assert arms["spd+p2p@drawn1"].method.engine_options == {"source_guidance_scale": 1.0}
    assert arms["spd+p2p@drawn1"].method.inversion_options == arms["spd+pnp@drawn1"].method.engine_options == {}
    assert arms["exact+pnp@drawn7.5"].method.inversion_options == {"guidance_scale": 7.5}
    assert arms["direct+p2p@drawn7.5"].method.inversion_options == {"guidance_scale": 7.5}
    pairs = premise.pairs_of(arms)
    assert len(pairs) == 4 * 7 and ("spd+pnp@drawn1", "ddim+pnp@drawn1") in pairs
    assert all(a.split("+")[1] == b.split("+")[1] for a, b in pairs)


def test_convergence_from_end_to_end(experiment, tmp_path):
    shown = experiment("--experiment", "convergence", "--limit", "2")
    rows = read_rows(tmp_path / "convergence" / "rows.jsonl")
    assert [row["method"] for row in rows] == ["ddim", "spd"] * 2
    for row in rows:
        assert [len(step) for step in row["residuals"]] == [1 + rounds for rounds in row["rounds_per_step"]]
    assert rows[0]["residuals"][0][0] == pytest.approx(rows[1]["residuals"][0][0], rel=1e-3)  # the same first guess
    assert "more rounds in the early half" in shown and (tmp_path / "convergence" / "convergence.png").exists()
    experiment("--experiment", "convergence", "--limit", "2")
    assert len(read_rows(tmp_path / "convergence" / "rows.jsonl")) == 4
