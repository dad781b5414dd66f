"""The experiments against naive readings, and from end to end on a small random model."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.data import EditItem
from common.ddim import make_schedule
from common.picturebook.benchmarks import write_edit_item
from common.pipelines import encode_prompt
from common.runs import read_rows
from spdinv.inversions import ddim, spd
from spdinv.reproduction import experiments
from spdinv.reproduction.experiments import convergence, generated, noise_gap, probe
from spdinv.sampling import generate
from tests.spdinv.toy import coefficients, random, toy_cond, toy_pipe, toy_schedule


def latents(batch=1, seed=0):
    return random(batch, 4, 3, 3, seed=seed).double()


def test_generate_is_what_diffusers_draws_from_noise_that_belongs_to_a_name_and_a_seed(pipe):
    noise, prompts = generated.ideal_noise(pipe, ["a", "b"], 0, 64), ["a red cat", "a dog"]
    schedule = make_schedule(pipe.scheduler, 3)
    pipe.set_progress_bar_config(disable=True)
    for scale in (1.0, 3.0):
        found = generate(pipe, schedule, noise, encode_prompt(pipe, prompts), scale)
        expected = pipe(prompts, latents=noise, num_inference_steps=3, guidance_scale=scale, output_type="latent")
        assert found.shape == (4, 2, 4, 16, 16) and torch.equal(found[-1], noise)  # every level is kept
        assert torch.allclose(found[0], expected.images, atol=2e-5)
    assert torch.equal(generated.ideal_noise(pipe, ["b"], 0, 64)[0], noise[1]) and noise.shape == (2, 4, 16, 16)
    other = generated.ideal_noise(pipe, ["a"], 1, 64)[0]
    assert not torch.equal(noise[0], noise[1]) and not torch.equal(other, noise[0])
    assert abs(generated.ideal_noise(pipe, list("abcdefgh"), 0, 64).std() - 1) < 0.05


def toy_generate(pipe, schedule, noise, cond):
    """Naive DDIM sampling in float64 without guidance, clean latent first."""
    found = [noise]
    for t in schedule.timesteps:
        c1, c2 = coefficients(schedule, t)
        found.append((found[-1] - c2 * pipe.unet(found[-1], t, cond.embeds)[0]) / c1)
    return torch.stack(found[::-1])


def test_the_gap_is_the_mean_square_at_equal_levels():
    pipe, schedule, cond = toy_pipe(), toy_schedule(5), toy_cond([0.3, -0.2])
    true = toy_generate(pipe, schedule, latents(2), cond).detach()
    found = ddim.invert(pipe, schedule, true[0], cond).trajectory.detach()
    gap = noise_gap.noise_gap(true, found)
    assert gap.shape == (6, 2) and (gap[0] == 0).all()
    naive = [[((found[level, i] - true[level, i]).numpy() ** 2).mean() for i in range(2)] for level in range(6)]
    assert np.allclose(gap, naive) and (gap[1:] > 0).all() and (gap[-1] > gap[1]).all()
    assert ((found[1:] - true[:-1]) ** 2).mean() > 10 * gap[1:].mean()  # one level off is far off
    # where the network ignores the latent, inversion finds the ideal noise
    blind = toy_pipe(torch.zeros(4, 4, dtype=torch.float64))
    true = toy_generate(blind, schedule, latents(2), cond)
    assert noise_gap.noise_gap(true, ddim.invert(blind, schedule, true[0], cond).trajectory).max() < 1e-10


def test_statistics_of_noise_and_of_what_is_none():
    noise = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
    ideal = noise_gap.statistics(noise)
    assert abs(ideal["noise_mean"]) < 0.02 and abs(ideal["noise_deviation"] - 1) < 0.02
    assert ideal["noise_correlation"] < 0.03
    mixed = torch.stack([noise[0], noise[0] + noise[1], -noise[0], noise[3]])
    expected = np.abs(np.corrcoef(mixed.flatten(1).numpy()))[np.triu_indices(4, 1)].mean()
    assert noise_gap.statistics(mixed)["noise_correlation"] == pytest.approx(expected, rel=1e-4)


def test_residuals_are_those_of_the_guess_up_to_what_is_settled_for():
    pipe, schedule, cond, z0 = toy_pipe(), toy_schedule(4), toy_cond([0.3]), latents()
    with convergence.watched(pipe.unet) as calls:
        inversion = spd.invert(pipe, schedule, z0, cond, rounds=3, learning_rate=1e-2, threshold=1e-5)
    found = convergence.residuals(pipe, schedule, inversion, cond, calls)
    assert [1 + rounds for rounds in inversion.rounds[:, 0].tolist()] == [len(step) for step in found]
    levels = zip(inversion.trajectory[:-1], inversion.trajectory[1:], strict=True)
    for step, t, (z, settled) in zip(found, schedule.timesteps[::-1], levels, strict=True):
        c1, c2 = coefficients(schedule, t)
        f = lambda x, z=z, t=t, c1=c1, c2=c2: c1 * z + c2 * pipe.unet(x, t, cond.embeds)[0]  # noqa: E731
        ends = [((x - f(x)) ** 2).mean().item() for x in (f(z), settled)]
        assert [step[0], step[-1]] == pytest.approx(ends, rel=1e-4)
    with convergence.watched(pipe.unet) as calls:
        inversion = ddim.invert(pipe, schedule, z0, cond)
    assert [len(step) for step in convergence.residuals(pipe, schedule, inversion, cond, calls)] == [1] * 4
    assert len(calls) == 4  # of DDIM the guess is what it settles for, and the hook is off


def test_what_is_said_of_the_residuals():
    losses = [[2e-6, 3e-6], [4e-6, 1e-6], [3e-6, 9e-6], [1e-4, 5e-5, 4e-6], [1e-4, 6e-5, 7e-5], [2e-5, 1e-6]]
    said = convergence.summarise(losses, [1, 1, 1, 2, 2, 1], 5e-6)
    assert said["guess_below_threshold"] == 0.5 and said["forced_step_hurts"] == pytest.approx(2 / 3)
    assert said["settled_below_threshold"] == pytest.approx(4 / 6)
    assert said["rounds_early_less_late"] == pytest.approx(1 - 5 / 3)
    assert said["residual"] == pytest.approx((3e-6 + 1e-6 + 9e-6 + 4e-6 + 7e-5 + 1e-6) / 6)
    plain = convergence.summarise([[2e-6], [1e-4]], [0, 0], 5e-6)  # DDIM forces nothing
    assert np.isnan(plain["forced_step_hurts"]) and plain["residual"] == plain["residual_guess"]


@pytest.fixture
def experiment(run, tmp_path):
    return lambda *flags: run(tmp_path, "--spd_rounds", "2", "--batch_size", "2", *flags).out


def test_noise_gap_from_end_to_end(experiment, tmp_path, monkeypatch):
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


def test_what_is_written_in_is_read_off_and_pure_noise_is_not():
    rng = np.random.default_rng(0)
    labels = [("sea", "snow", "room")[i] for i in rng.integers(0, 3, 240)]
    noise = rng.standard_normal((240, 4, 8, 8))
    direction = {name: rng.standard_normal((4, 8, 8)) for name in set(labels)}
    marked = noise + 0.5 * np.stack([direction[label] for label in labels])
    found = probe.probe_all({"noise": noise, "marked": marked}, [{"background": label} for label in labels])
    assert list(found) == ["background"] and found["background"]["n"] == 240
    right = {name: values.mean() for name, values in found["background"]["right"].items()}
    assert right["marked"] > 0.9 and abs(right["noise"] - 1 / 3) < 4 * (2 / 9 / 240) ** 0.5
    assert found["background"]["chance"] == max(labels.count(name) for name in direction) / 240


def test_labels_are_only_learned_from_other_items():
    """Every item a class mark of its own would be read off perfectly by a probe that saw it in training."""
    rng = np.random.default_rng(1)
    labels = np.array([str(i % 2) for i in range(60)])
    assert probe.read_off(np.eye(60) * 10 + rng.normal(0, 1e-3, (60, 60)), labels).mean() < 0.7


def test_rare_classes_are_left_out():
    codes, labels = np.random.default_rng(0).standard_normal((39, 4)), ["cat"] * 12 + ["dog"] * 10 + ["fish"] * 9
    found = probe.probe_all({"a": codes[:31]}, [{"kind": label} for label in labels])["kind"]
    assert found["kept"].tolist() == [True] * 22 + [False] * 9 and found["n"] == 22
    for others in (0, 9):  # one class says nothing
        said = [{"kind": "cat"}] * 30 + [{"kind": "dog"}] * others
        assert probe.probe_all({"a": codes[: 30 + others]}, said) == {}


def test_attributes_are_those_of_the_source_prompt(tmp_path):
    for kind in "1268":
        key, entry = write_edit_item(tmp_path, "validation", kind, 0)
        item = EditItem(key, None, "", "", "", kind, None, (), extras=entry)
        said, prompt = probe.attributes(item), entry["original_prompt"].replace("[", "").replace("]", "")
        assert said["kind"] in prompt.split() and said["color"] in prompt.split()
        assert (said["material"] in prompt.split()) == (said["material"] != "plain" and "thing" not in prompt)
        assert (" and " in prompt) == (said["number of things"] == "2")
    assert probe.attributes(EditItem("0", None, "a cat", "a dog", "", "1", None, ())) == {}
