"""Training: Eq. 6 against a naive reading, exact resume, what is written, wrong input."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from common.images import to_tensor
from common.training import picture_indices, step_generator
from image_inpaint import loading, options, train
from tests.image_inpaint.models import tiny_inpainter
from tests.small_data import BOXES, write_boxed

PLAIN = ["--augment_source", "none", "--augment_reference", "none", "--no-mask_augmentation", "--no-random_crop"]


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return write_boxed(tmp_path_factory.mktemp("place") / "subject")


@pytest.fixture
def run(model, subject):
    def run(output, *flags):
        train.main(["--pretrained_model_name_or_path", str(model), "--instance_data_dir", str(subject), "--output_dir",
                    str(output), "--train_batch_size", "2", "--device", "cpu", *map(str, flags)])  # fmt: skip
        return json.loads((output / "metrics.json").read_text())

    return run


def test_the_first_loss_is_eq_6(run, subject, tmp_path):
    metrics = run(tmp_path, "--max_train_steps", "1", "--condition_dropout", "0.5", "--seed", "5",
                  "--condition_dropout_per", "sample", *PLAIN)  # fmt: skip
    with torch.no_grad():
        assert metrics["loss"] == pytest.approx(naive_loss(subject), rel=1e-4)


def naive_loss(subject) -> float:
    """Of the first step with seed 5, without augmentation."""
    pipe, generator = tiny_inpainter(), step_generator(5, 0)
    chosen = picture_indices(3, 2, 5, 0)
    names = [list(BOXES)[index] for index in chosen]
    pictures = torch.cat([to_tensor(Image.open(subject / name)) for name in names])
    hole = torch.zeros(2, 1, 64, 64)
    tokens = []
    for row, name in enumerate(names):
        left, top, right, bottom = BOXES[name]
        hole[row, :, top:bottom, left:right] = 1
        crop = pictures[row : row + 1, :, top - 1 : bottom + 1, left - 1 : right + 1]
        crop = torch.nn.functional.interpolate(crop, (32, 32), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25]))
        tokens.append(pipe.image_encoder((crop - mean) / std))
    full = pipe.vae.encode(2 * pictures - 1).latent_dist
    cut = pipe.vae.encode((2 * pictures - 1) * (1 - hole)).latent_dist
    latents = 0.18215 * (full.mean + full.std * torch.randn(full.mean.shape, generator=generator))
    masked = 0.18215 * (cut.mean + cut.std * torch.randn(cut.mean.shape, generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    t = torch.randint(0, 1000, (2,), generator=generator)
    drop = torch.rand(2, generator=generator) < 0.5
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    a = torch.tensor(np.cumprod(1 - beta)).float()[t].view(2, 1, 1, 1)
    keep = torch.nn.functional.interpolate(1 - hole, (16, 16), mode="bilinear")
    channels = torch.cat([a**0.5 * latents + (1 - a) ** 0.5 * noise, masked, keep], 1)
    rows = [pipe.image_encoder.uncond_vector if drop[row] else tokens[row] for row in range(2)]
    predicted = pipe.unet(channels, t, torch.cat(rows)).sample
    return (predicted - noise).square().mean().item()


def test_cached_views_differ(monkeypatch):
    """From view to view and from photograph to photograph, and are the same when a killed training goes on."""
    monkeypatch.setattr("image_inpaint.triples.encode", lambda pipe, triples: triples)
    args = Namespace(seed=0, cache_views=3)
    first, second, again = (
        train.cached_views(None, lambda index, generator: torch.rand((), generator=generator).item(), index, args)
        for index in (0, 1, 0)
    )
    assert len({*first, *second}) == 6 and first == again


def test_lora_trains_the_updates_and_full_the_unet_the_mapper_and_the_vector(run, tmp_path):
    lora = run(tmp_path / "lora", "--max_train_steps", "2", "--rank", "2", "--learning_rate", "0.01")
    full = run(tmp_path / "full", "--max_train_steps", "2", "--tuning", "full", "--learning_rate", "0.01",
               "--condition_dropout", "1", "--validation_steps", "1")  # fmt: skip
    base, changed = tiny_inpainter(), tiny_inpainter()
    stored = load_file(tmp_path / "lora" / loading.LORA_FILE)
    assert lora["trained_parameters"] == sum(value.numel() for value in stored.values())
    assert any(value.abs().max() > 0 for name, value in stored.items() if "lora_B" in name)
    assert lora["file_bytes"] == (tmp_path / "lora" / loading.LORA_FILE).stat().st_size < full["file_bytes"]
    assert loading.load_weights(changed, tmp_path / "full") == "full"
    assert not torch.equal(changed.unet.conv_in.weight, base.unet.conv_in.weight)
    assert not torch.equal(changed.image_encoder.uncond_vector, base.image_encoder.uncond_vector)
    clip = [pipe.image_encoder.model.state_dict() for pipe in (changed, base)]
    assert all(torch.equal(clip[0][name], clip[1][name]) for name in clip[0])
    names = {path.name for path in (tmp_path / "full").iterdir()}
    assert {"config.json", "metrics.json", "grid.png", "unet", "image_encoder", "samples"} <= names
    assert len(list((tmp_path / "full" / "samples").iterdir())) == 2


def test_a_training_resumed_at_its_last_step_has_a_time(run, tmp_path):
    steady = ("--lr_scheduler", "constant")
    run(tmp_path / "whole", "--max_train_steps", "2", "--checkpointing_steps", "1", *steady)
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "parts" / "checkpoint-1")  # all that was left
    metrics = run(tmp_path / "parts", "--max_train_steps", "1", *steady, "--resume_from_checkpoint", "latest")
    assert metrics["seconds"] >= 0 and metrics["seconds_per_step"] is None
    first = run(tmp_path / "one", "--max_train_steps", "1", *steady)
    assert metrics["loss"] == first["loss"]  # of the steps before the interruption


def test_a_checkpoint_goes_with_its_training_pictures_and_boxes_wherever_they_lie(run, tmp_path, refused):
    out, here, there = (tmp_path / name for name in ("out", "here", "there"))
    words = [out, "--max_train_steps", "2", "--checkpointing_steps", "1", "--instance_data_dir"]
    run(*words, write_boxed(here))
    here.rename(there)
    words += [there]
    refused("of an earlier run", run, *words)
    words += ["--resume_from_checkpoint", "latest"]
    run(*words)
    refused("another", run, *words, "--rank", "5")
    (there / "boxes.json").write_text(json.dumps({**BOXES, "0.png": [10, 12, 41, 50]}))
    refused("another examples", run, *words)
    (there / "boxes.json").write_text(json.dumps(BOXES))
    Image.new("RGB", (64, 64), "red").save(there / "1.png")
    refused("1.png is another picture now", run, *words)


def test_pretraining_starts_from_a_text_to_image_model_or_from_nothing(tiny_folder, encoders, subject, tmp_path):
    shared = ["--stage", "pretrain", "--train_data_dir", str(subject), "--clip_model_name_or_path",
              str(encoders / "clip-vit-large-patch14"), "--boxes", "whole", "--train_batch_size", "2",
              "--max_train_steps", "2", "--device", "cpu"]  # fmt: skip

    def pretrain(name, prior, model=tiny_folder):
        train.main([*shared, "--prior", prior, "--pretrained_model_name_or_path", str(model), "--output_dir",
                    str(tmp_path / name)])  # fmt: skip
        return tmp_path / name / "model"

    prior, none = pretrain("prior", "text_to_image"), pretrain("none", "none")
    text, first, second = loading.load_pipeline(str(tiny_folder)), *(loading.load(str(m), "cpu") for m in (prior, none))
    assert (first.unet.conv_in.weight[:, :4] - text.unet.conv_in.weight).abs().max() < 1e-4
    assert (second.unet.conv_in.weight[:, :4] - text.unet.conv_in.weight).abs().max() > 1e-2
    assert torch.equal(first.vae.quant_conv.weight, text.vae.quant_conv.weight)
    assert (pretrain("again", "inpainting", prior) / "model_index.json").is_file()


@pytest.mark.parametrize("stage, settings, steps", [
    ("subject", {"learning_rate": 3e-5, "train_batch_size": 16, "condition_dropout": 0.2, "rank": 4, "lora_alpha": 4,
                 "lora_targets": "attention+geglu", "lora_init": "gaussian", "repeats": 200}, {4: 2000, 2: 1000}),
    ("pretrain", {"learning_rate": 1e-6, "num_pictures": 300_000, "num_train_epochs": 40}, {300_000: 750_000}),
])  # fmt: skip
def test_paper_scale(stage, settings, steps, capsys):
    """Of 4 and 2 photographs: 800 / 16 = 50 and 400 / 16 = 25 steps an epoch."""
    words = ["--stage", stage, "--print_config", "--pretrained_model_name_or_path", "owner/model"]
    train.main(words)
    assert settings.items() <= json.loads(capsys.readouterr().out).items()
    args = options.parse_train(words)
    assert {pictures: options.training_steps(args, pictures) for pictures in steps} == steps


WRONG = [
    (["--instance_data_dir", "EMPTY"], "holds no picture"),
    (["--instance_data_dir", "CUT"], "cannot be read as a picture"),
    (["--pretrained_model_name_or_path", "SD"], "text-to-image model"),
    (["--boxes_file", "TEXT"], "not a JSON file"),
    (["--boxes", "whole", "--boxes_file", "TEXT"], "goes with --boxes file"),
    (["--boxes_file", "NOBOX"], "has no box for 1.png"),
    (["--boxes_file", "OUTSIDE"], "nothing of it lies in"),
    (["--boxes", "detr", "--detector", "/no/detector"], "no detector at"),
    (["--augment_source", "none", "flip"], "goes with no other"),
    (["--resolution", "68"], "no multiple of 8"),
    (["--validation_prompt", "a cat"], "no prompts here"),
    (["--train_data_dir", "EMPTY"], "unknown argument --train_data_dir"),
    (["--stage", "pretrain"], "unknown argument --instance_data_dir"),
]


@pytest.mark.parametrize("flags, message", WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(run, subject, tiny_folder, tmp_path, refused, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.png").write_bytes((subject / "0.png").read_bytes()[:2000])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nobox").write_text(json.dumps({"0.png": BOXES["0.png"]}))
    (tmp_path / "outside").write_text(json.dumps({**BOXES, "1.png": [900, 0, 990, 20]}))
    places = {name.upper(): tmp_path / name for name in ("empty", "cut", "text", "nobox", "outside")}
    places["SD"] = tiny_folder
    refused(message, run, tmp_path / "out", "--max_train_steps", "3", *(places.get(flag, flag) for flag in flags))
    assert not (tmp_path / "out" / "metrics.json").exists() and not (tmp_path / "out" / loading.LORA_FILE).exists()
