"""The stages' shared loop resumes exactly; losses and targets against independent readings; the command line."""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.picturebook import build, checks
from common.picturebook.build import CHECKS, STEPS, parse
from common.picturebook.drawing import draw
from common.picturebook.scenes import BACKGROUNDS, COLORS, KINDS, Scene, Thing, sample_scene
from common.picturebook.stages.classifier import UNKNOWN, targets
from common.picturebook.stages.clip import attributes, contrastive_loss
from common.picturebook.stages.corpus import FIRST_SEED, Corpus, order
from common.picturebook.stages.training import Run, learning_rate
from tests.small_data import random as random_normal


def descend(work, until: int, steps: int = 600) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    run = Run("toy", work, model, steps, 1e-2)
    for step in run.todo():
        if step == until:
            return model
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        run.descend(step, (model(x) - x.sum(1, keepdim=True)).square().mean())
    return run.finish()


def test_a_killed_training_ends_in_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = descend(tmp_path / "a", until=-1).state_dict()
    descend(tmp_path / "b", until=317)  # killed between two checkpoints
    resumed = descend(tmp_path / "b", until=-1).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_that_is_none_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.pt").write_bytes(b"junk")
    with pytest.raises(OSError, match="toy.pt cannot be read") as problem:
        descend(tmp_path, until=-1)
    for other in ({"model": {}, "optimizer": {}, "ema": {}, "step": 1}, {"model": 3}, [1]):
        torch.save(other, tmp_path / "toy.pt")
        with pytest.raises(OSError, match="toy.pt is of another network"):
            descend(tmp_path, until=-1)
    monkeypatch.setattr(build, "run", Mock(side_effect=problem.value))
    assert build.main(["dino"]) == 2 and capsys.readouterr().err == f"error: {problem.value}\n"


def test_the_learning_rate_rises_stays_and_falls_and_its_plateau_ignores_the_total():
    for step, steps, rate in ((99, 1000, 1), (500, 1000, 2), (500, 5000, 2), (850, 1000, 1), (1000, 1000, 0)):
        assert learning_rate(step, steps, 2.0) == pytest.approx(rate)


def test_every_scene_is_seen_once_per_epoch_in_another_order():
    epochs = [np.concatenate([order(100, 10, step) for step in range(10 * e, 10 * e + 10)]) for e in range(2)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert (epochs[0] != epochs[1]).any()


def test_the_corpus_returns_the_pictures_asked_for_and_splits_are_apart(tmp_path):
    asked, firsts = np.array([7, 2, 11]), sorted(FIRST_SEED.values())
    for picture, index in zip(Corpus(tmp_path, 12).batch(asked), asked, strict=True):
        expected = np.asarray(draw(sample_scene(FIRST_SEED["train"] + int(index))).picture)
        assert (picture.permute(1, 2, 0).mul(255).round().numpy() == expected).all()
    assert min(b - a for a, b in zip(firsts, firsts[1:], strict=False)) > 1_000_000


def test_contrastive_loss_against_a_naive_one_that_skips_equal_captions():
    images, texts = (F.normalize(random_normal(n, 5, seed=n, dtype=torch.float64), dim=1) for n in (3, 5))
    captions = ["a", "b", "a", "c", "b"]  # items 0 and 2 share a caption; the last is a negative equal to item 1's
    scale, total = torch.tensor(7.0, dtype=torch.float64), 0.0
    for i in range(3):
        row = [float(scale * images[i] @ texts[j]) for j in range(5) if j == i or captions[j] != captions[i]]
        column = [float(scale * images[j] @ texts[i]) for j in range(3) if j == i or captions[j] != captions[i]]
        for scores in (row, column):
            total += math.log(sum(map(math.exp, scores))) - float(scale * images[i] @ texts[i])
    assert float(contrastive_loss(images, texts, scale, captions)) == pytest.approx(total / 6, rel=1e-9)


def test_attributes_and_targets_say_what_the_scene_holds():
    scene = Scene((Thing("dog", "pink", material="striped", pose="lying"), Thing("ball", "red")), background="room")
    truth = attributes([scene])
    pairs = truth["pairs"].view(len(KINDS), len(COLORS))
    expected = torch.zeros_like(pairs)
    expected[KINDS.index("dog"), COLORS.index("pink")] = expected[KINDS.index("ball"), COLORS.index("red")] = 1
    assert torch.equal(pairs, expected)
    answers = targets([scene])
    assert torch.equal(answers["pairs"][0], expected)
    assert answers["background"].item() == truth["background"].item() == BACKGROUNDS.index("room")
    dog, ball, cat = (KINDS.index(kind) for kind in ("dog", "ball", "cat"))
    assert answers["material"][0, dog] == 1 and answers["pose"][0, dog] == 1
    assert answers["facing"][0, ball] == answers["pose"][0, ball] == UNKNOWN  # a ball faces nowhere
    assert answers["material"][0, cat] == UNKNOWN  # there is no cat


@pytest.mark.parametrize("words", [
    "--steps 5", "vae --steps 0", "clip --from_shipped", "--scenes 10", "sculpture", "--check --samples 1",
    "--threads 0", "--check --only beauty", "--only vae",
])  # fmt: skip
def test_wrong_input_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(words.split())
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_every_stage_is_accepted_and_every_check_can_be_asked_for_alone():
    assert all(parse([stage, "--steps", "7"]).steps == 7 for stage in STEPS)
    assert all(parse([stage, "--from_shipped"]).from_shipped for stage in ("unet", "inpaint"))
    assert CHECKS == tuple(checks.CHECKS)
    assert parse(["--check", "--only", "vae", "twins"]).only == ["vae", "twins"]
