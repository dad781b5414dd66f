"""What the trainings share: randomness by step, pictures, objective, class pictures, exact resume, flags."""

import argparse
import itertools
import json
import types

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from filelock import FileLock
from PIL import Image

from common import training, training_run
from common.images import save_png, to_tensor
from common.runs import make_parser
from common.training_flags import add_subject_flags, add_training_flags, parse_training
from tests.refusing import refuses
from tests.small_data import random


def arguments(tmp_path, *words):
    parser = make_parser("a training")
    add_training_flags(parser, output_dir=str(tmp_path / "out"), max_train_steps=4, learning_rate=0.1)
    add_subject_flags(parser)
    return parse_training(parser, list(words), {})


def test_a_step_draws_the_same_again_and_each_number_matters():
    def draw(*numbers):
        return torch.rand(3, generator=training.step_generator(*numbers)).tolist()

    calls = [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4), (0, 1), (1, 0)]
    assert [draw(*call) for call in calls] == [draw(*call) for call in calls]
    assert len({tuple(draw(*call)) for call in calls}) == len(calls)


@pytest.mark.parametrize("count, batch, micros, processes", [(5, 1, 1, 1), (5, 2, 3, 2), (3, 4, 1, 2), (4, 2, 2, 1)])
def test_every_picture_comes_once_per_epoch_whatever_shares_the_work(count, batch, micros, processes):
    seen = []
    for step, micro, process in itertools.product(range(2 * count), range(micros), range(processes)):
        seen += training.picture_indices(count, batch, 7, step, micro, micros, process, processes)
    assert len(seen) == 2 * count * batch * micros * processes
    epochs = [tuple(seen[start : start + count]) for start in range(0, len(seen), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len(set(epochs)) > 1
    assert len({tuple(training.picture_indices(count, count, seed, 0)) for seed in range(9)}) > 1


def test_pictures_are_resized_and_cut_as_the_dreambooth_script_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:20, :20]).save(tmp_path / "b.png")
    wide, square = training.load_pictures(tmp_path, 20)
    assert wide.shape == (3, 20, 33) and square.shape == (3, 20, 20)  # torchvision: int(20 * 50 / 30)
    expected = np.asarray(Image.fromarray(pixels).resize((33, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(wide.permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(square.permute(1, 2, 0).numpy(), pixels[:20, :20])
    assert training.load_pictures(tmp_path, 20, squash=True)[0].shape == (3, 20, 20)
    Image.new("RGB", (1, 4000)).save(tmp_path / "c.png")
    refuses("c.png is 1x4000 pixels", training.load_pictures, tmp_path, 512)

    centre = training.picture_batch([wide], [0, 0], 20, torch.Generator(), center_crop=True)
    assert torch.equal(centre[1], wide[:, :, 6:26].float() / 255) and centre.dtype == torch.float32
    columns = torch.arange(7, dtype=torch.uint8).expand(3, 4, 7)  # torchvision: int(round(1.5)) from the left
    assert (training.picture_batch([columns], [0], 4, torch.Generator(), True)[0, 0, 0] * 255).tolist() == [2, 3, 4, 5]
    whole = training.picture_batch([square], [0], 20, torch.Generator())
    assert torch.equal(whole, to_tensor(Image.open(tmp_path / "b.png")))
    windows = [wide[:, :, left : left + 20].float() / 255 for left in range(14)]
    generator, found, flipped = training.step_generator(0, 0), set(), 0
    for _ in range(200):
        (cut,) = training.picture_batch([wide], [0], 20, generator, random_flip=True, corners=(corners := []))
        places = [left for left, window in enumerate(windows) if torch.equal(cut, window)]
        mirrored = [left for left, window in enumerate(windows) if torch.equal(cut, window.flip(2))]
        assert corners == [(0, left) for left in places + [13 - left for left in mirrored]]  # of the mirrored picture
        found |= {*places, *mirrored}
        flipped += len(mirrored)
    assert found == set(range(14)) and 70 < flipped < 130  # both ends are reached; about half are mirrored


def test_noise_and_targets_against_diffusers_and_by_hand():
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, noise = random(2, 3, 4, 5, 5)
    t, table = torch.tensor([3, 500, 999]), scheduler.alphas_cumprod
    z = training.noised(table, latents, noise, t)
    v = training.target("v_prediction", table, latents, noise, t)
    assert torch.allclose(z, scheduler.add_noise(latents, noise, t), atol=1e-6)
    assert torch.allclose(v, scheduler.get_velocity(latents, noise, t), atol=1e-6)
    a = table.double()[t].reshape(-1, 1, 1, 1)  # x_0 = sqrt(a) z - sqrt(1 - a) v
    assert torch.allclose(a.sqrt() * z - (1 - a).sqrt() * v, latents.double(), atol=1e-5)
    assert training.target("epsilon", table, latents, noise, t) is noise
    refuses("predicts 'sample'", training.target, "sample", table, latents, noise, t)


class Painter:
    """In place of a pipeline: pictures of the generator's noise, and a count of the calls."""

    name_or_path = "tiny"
    drawn = 0

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompts, height, width, generator, **_):
        self.drawn += len(prompts)
        noise = [torch.randint(256, (height, width, 3), generator=one, dtype=torch.uint8).numpy() for one in generator]
        return types.SimpleNamespace(images=[Image.fromarray(pixels) for pixels in noise])


def test_only_missing_class_pictures_are_drawn_and_always_the_same(tmp_path, monkeypatch):
    painter = Painter()

    def drawn(place, count, size=8, animal="dog", **how):
        return training.generate_class_pictures(painter, f"a photo of a {animal}", tmp_path / place, count, size, **how)

    made = drawn("a", 5, batch_size=2)
    assert len(made) == painter.drawn == 5
    content = [path.read_bytes() for path in made]
    made[3].unlink()
    assert drawn("a", 5) == [made[3]] and drawn("a", 4) == []
    assert [path.read_bytes() for path in made] == content and painter.drawn == 6
    shares = [drawn("b", 5, process=process, processes=2) for process in (1, 0)]
    assert sorted(path.name for share in shares for path in share) == [path.name for path in made]
    for wrong, said in (({"place": "odd", "size": 20}, "multiple of 8"),
                        ({"place": "a", "animal": "cat"}, "another prompt")):  # fmt: skip
        refuses(said, drawn, count=5, **wrong)
    (tmp_path / painter.name_or_path).mkdir()
    monkeypatch.chdir(tmp_path)
    for spelt in (f"./{painter.name_or_path}/", painter.name_or_path):
        painter.name_or_path = spelt
        assert drawn("a", 5) == []
    file = tmp_path / "a" / training.CLASS_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_scale": 3}))  # of a script that says it
    refuses(r"another guidance_scale \(3\)", drawn, "a", 5)
    (tmp_path / "own").mkdir()
    for name in ("mine.jpg", ".class-00001.7.png"):  # the second: of a save that was killed
        Image.new("RGB", (9, 9)).save(tmp_path / "own" / name)
    assert len(drawn("own", 3)) == 2


def train(args, stop=None):
    """A linear model under AdamW with noise of its own per step; the same loop as in the scripts."""
    torch.manual_seed(5)
    model = torch.nn.Linear(3, 2)
    weights, groups = dict(model.named_parameters()), [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias]}]
    who = training_run.identity(args, base=training_run.fingerprint(weights))
    run = training_run.begin(training_run.make_accelerator(args, "test"), args, weights, who, groups)
    assert len(run.losses) == run.first
    for step in range(run.first, stop or args.max_train_steps):
        x = torch.randn(4, 3, generator=run.generator(step, 0))
        loss = model(x).square().sum()
        run.backward(loss)
        run.update([loss], step)
        run.save(step + 1)
    return torch.cat([*(tensor.detach().reshape(-1) for tensor in weights.values()), torch.tensor(run.losses)])


def test_an_interrupted_run_ends_in_the_same_bytes(tmp_path):
    schedule = ("--lr_scheduler", "cosine", "--lr_warmup_steps", "1", "--max_train_steps", "6", "--checkpointing_steps")
    whole = train(arguments(tmp_path / "whole", *schedule, "2"))
    train(arguments(tmp_path, *schedule, "2", "--checkpoints_total_limit", "1"), stop=5)  # killed after step 5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-4"]
    for wanted in ("latest", "checkpoint-4", str(tmp_path / "out" / "checkpoint-4")):
        again = arguments(tmp_path, *schedule, "100", "--resume_from_checkpoint", wanted)
        assert torch.equal(train(again), whole)
    for first, seconds in ((40, 50.0), (0, 30.0), (100, 30.0)):  # 50: sixty steps of a hundred in thirty seconds
        run = training_run.Run(types.SimpleNamespace(max_train_steps=100), None, {}, None, None, {}, first=first)
        assert run.seconds(30.0) == seconds
    for flag, value in (("learning_rate", "3"), ("max_train_steps", "8")):
        other = arguments(tmp_path, *schedule, "2", "--resume_from_checkpoint", "latest", f"--{flag}", value)
        refuses(f"another {flag}", train, other)
    refuses("checkpoint-4 of an earlier run", arguments, tmp_path, *schedule, "2")


def test_an_update_accumulates_adds_clips_and_stops_at_what_is_not_finite(tmp_path):
    args = arguments(tmp_path, *"--device cpu --gradient_accumulation_steps 2 --max_grad_norm 0.5".split())
    ours, plain = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    frozen = torch.nn.Parameter(torch.ones(1))  # no gradient reaches it
    run = training_run.begin(training_run.make_accelerator(args, "test"), args, {"a": ours, "b": frozen}, {})
    reference = torch.optim.AdamW([plain], 0.1, weight_decay=1e-2)
    for step in range(3):
        losses = [(factor * ours**2).sum() for factor in (1.0, 5.0)]
        for loss in losses:
            run.backward(loss)
        told = run.update(losses, step, lambda: ours.grad.add_(ours.detach()))
        assert told == pytest.approx(3 * float((plain**2).sum()))
        plain.grad = 7 * plain.detach()
        torch.nn.utils.clip_grad_norm_([plain], 0.5)
        reference.step()
        assert torch.allclose(ours, plain, atol=1e-6) and ours.grad is None
    before, finite = ours.detach().clone(), ours.sum()
    run.backward(finite)
    refuses("the loss is -?inf at step 3", run.update, [ours.sum() * float("inf"), finite], 3)
    assert torch.equal(ours, before)


def test_gradients_and_losses_are_averaged_over_processes(tmp_path):
    args = arguments(tmp_path, "--max_grad_norm", "0")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    other = iter([torch.tensor(4.0), torch.tensor([5.0])])  # what the other process has
    accelerator = types.SimpleNamespace(
        num_processes=2, unscale_gradients=lambda optimizer: None,
        reduce=lambda tensor, how: {"mean": (tensor + next(other)) / 2}[how],
    )  # fmt: skip
    loss = (weight + 2).sum()
    loss.backward()
    _, schedule = training_run.make_optimizer([weight], args)
    assert training_run.Run(args, accelerator, {}, optimizer, schedule, {}).update([loss], 0) == 3.0
    assert weight.item() == -3.0


def test_a_training_goes_on_with_the_same_pictures_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"a": torch.zeros(1, requires_grad=True)}
    one, two, model = (tmp_path / name for name in ("one", "two", "model"))
    model.mkdir()
    for number, path in enumerate((one / "a.png", one / "b.png", tmp_path / "new.png")):
        save_png(path, Image.new("RGB", (4, 4), (number, 0, 0)))

    def resume(*paths, folder=None, model="model"):
        args = arguments(tmp_path, "--resume_from_checkpoint", "latest", "--checkpointing_steps", "1")
        args.instance_data_dir, args.pretrained_model_name_or_path = folder, model
        who = training_run.identity(args, paths, base="x")
        return training_run.begin(training_run.make_accelerator(args, "test"), args, weights, who)

    resume(one / "a.png", one / "b.png", folder="one").save(1)
    one.rename(two)
    a, b = two / "a.png", (two / "b.png").rename(two / "c.png")
    for spelt in ("./model/", str(model)):
        assert resume(a, b, folder="./two/", model=spelt).first == 1
    for paths, said in (((a,), "b.png is gone"), ((b, a), "order"), ((a, b, tmp_path / "new.png"), "new.png")):
        refuses(f"other pictures: .*{said}", resume, *paths)
    save_png(a, Image.new("RGB", (4, 4), (7, 7, 7)))
    refuses("a.png is another picture now", resume, a, b)


def test_what_has_diverged_is_not_saved_and_another_run_does_not_resume(tmp_path, monkeypatch):
    args = arguments(tmp_path, "--checkpointing_steps", "2")
    accelerator = training_run.make_accelerator(args, "test")
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])}
    refuses("b has diverged", training_run.Run(args, accelerator, weights, None, None, {}).save, 2)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    train(args)
    args.resume_from_checkpoint = "latest"
    other = dict(torch.nn.Linear(3, 2).named_parameters())
    who = training_run.identity(args, base=training_run.fingerprint(other))
    run = training_run.Run(args, accelerator, other, None, None, who)
    refuses("another base", run.resume)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")  # two processes draw other samples than one
        refuses("another processes", train, args)
    (tmp_path / "out" / "checkpoint-2" / "state.pt").write_bytes(b"torn")
    refuses("not a checkpoint of this project", run.resume)


def test_learning_rates_are_scaled_in_every_group(tmp_path):
    args = arguments(tmp_path, "--scale_lr", "--train_batch_size", "3", "--gradient_accumulation_steps", "2")
    tensors = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer, _ = training_run.make_optimizer([{"params": tensors[:1], "lr": 1e-6}, {"params": tensors[1:]}], args, 2)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(12e-6), pytest.approx(1.2)]
    assert training_run.make_optimizer(tensors, arguments(tmp_path))[0].param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("words, said", [
    ("--instance_data_dir nowhere", "nowhere is no folder"),
    ("--instance_data_dir .", "needs --instance_prompt"),
    ("--instance_data_dir . --instance_prompt a --with_prior_preservation", "needs --class_prompt"),
    ("--instance_data_dir . --instance_prompt a --class_data_dir ./", "is --instance_data_dir too"),
    ("--pretrained_model_name_or_path owner/name", "only the picturebook brings its own"),
    ("--resume_from_checkpoint checkpoint-9", "is no checkpoint"), ("--mixed_precision fp16", "GPU"),
    ("--device cuda", "GPU"),
])  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuses(said, lambda: training_run.make_accelerator(arguments(tmp_path, *words.split()), "test"))
    assert list(tmp_path.iterdir()) == []


def test_a_preset_takes_the_place_of_defaults_but_not_of_flags(tmp_path, capsys):
    parser = make_parser("a training")
    add_training_flags(parser, output_dir=str(tmp_path), max_train_steps=500, learning_rate=1e-6)
    args = parse_training(parser, ["--learning_rate", "3"], {"learning_rate": 1e-3, "max_train_steps": 20})
    assert (args.learning_rate, args.max_train_steps) == (3, 20)
    assert "picturebook preset" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no flags"):
        add_subject_flags(argparse.ArgumentParser(), nothing=1)


def test_a_training_is_refused_where_another_process_trains(tmp_path):
    args = arguments(tmp_path, "--device", "cpu")
    asked = training_run.make_accelerator(args, "test"), args, {"w": torch.nn.Parameter(torch.ones(1))}, {}
    with FileLock(tmp_path / ".out.training.lock"):  # of a handle of its own, as that of another process
        refuses("another training is at work", training_run.begin, *asked)
    assert training_run.begin(*asked).lock.is_locked
