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

PLAIN = ["--augment_source", "none", "--augment_reference", "none", "--no-mask_augmentation", "--no-random_crop"]
BOXES = {"0.png": [10, 12, 40, 50], "1.png": [5, 20, 33, 60], "2.png": [30, 8, 60, 44]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """model/: a small inpainting model; subject/: three photographs of 64 pixels with boxes.json."""
    folder = tmp_path_factory.mktemp("place")
    tiny_inpainter(folder / "model")
    (folder / "subject").mkdir()
    rng = np.random.default_rng(0)
    for name in BOXES:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "subject" / name)
    (folder / "subject" / "boxes.json").write_text(json.dumps(BOXES))
    return folder


@pytest.fixture(autouse=True)
def short_sheets(monkeypatch):
    """Sample sheets of two steps."""
    monkeypatch.setattr("image_inpaint.samples.STEPS", 2)


def run(place, output, *flags):
    train.main(["--pretrained_model_name_or_path", str(place / "model"), "--instance_data_dir", str(place / "subject"),
                "--output_dir", str(output), "--train_batch_size", "2", "--device", "cpu", *flags])  # fmt: skip
    return json.loads((output / "metrics.json").read_text())


def test_the_first_loss_is_eq_6(place, tmp_path):
    metrics = run(place, tmp_path, "--max_train_steps", "1", "--condition_dropout", "0.5", "--seed", "5",
                  "--condition_dropout_per", "sample", *PLAIN)  # fmt: skip
    with torch.no_grad():
        assert metrics["loss"] == pytest.approx(naive_loss(place), rel=1e-4)


def naive_loss(place) -> float:
    """Of the first step with seed 5, without augmentation."""
    pipe, generator = tiny_inpainter(), step_generator(5, 0)
    chosen = picture_indices(3, 2, 5, 0)
    names = [list(BOXES)[index] for index in chosen]
    pictures = torch.cat([to_tensor(Image.open(place / "subject" / name)) for name in names])
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


@pytest.mark.parametrize(
    "flags",
    [["--layer_dropout", "0.2"], ["--tuning", "full", "--gradient_accumulation_steps", "2"], ["--cache_views", "3"]],
    ids=["lora", "full", "cached"],
)
def test_a_killed_training_ends_in_the_same_bytes(place, tmp_path, flags):
    run(place, tmp_path / "whole", "--max_train_steps", "4", "--checkpointing_steps", "2", *flags)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")  # all that was left
    metrics = run(place, tmp_path / "parts", "--max_train_steps", "4", "--resume_from_checkpoint", "latest", *flags)
    assert metrics["seconds"] > 3.9 * metrics["seconds_per_step"]  # of all four steps
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert files
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_cached_views_differ(monkeypatch):
    """From view to view and from photograph to photograph, and are the same when a killed training goes on."""
    monkeypatch.setattr("image_inpaint.triples.encode", lambda pipe, triples: triples)
    args = Namespace(seed=0, cache_views=3)
    first, second, again = (
        train.cached_views(None, lambda index, generator: torch.rand((), generator=generator).item(), index, args)
        for index in (0, 1, 0)
    )
    assert len({*first, *second}) == 6 and first == again


def test_lora_trains_the_updates_and_full_the_unet_the_mapper_and_the_vector(place, tmp_path):
    lora = run(place, tmp_path / "lora", "--max_train_steps", "2", "--rank", "2", "--learning_rate", "0.01")
    full = run(place, tmp_path / "full", "--max_train_steps", "2", "--tuning", "full", "--learning_rate", "0.01",
               "--condition_dropout", "1", "--validation_steps", "1")  # fmt: skip
    base = tiny_inpainter()
    stored = load_file(tmp_path / "lora" / loading.LORA_FILE)
    assert lora["trained_parameters"] == sum(value.numel() for value in stored.values())
    assert any(value.abs().max() > 0 for name, value in stored.items() if "lora_B" in name)
    assert lora["file_bytes"] == (tmp_path / "lora" / loading.LORA_FILE).stat().st_size < full["file_bytes"]
    changed = tiny_inpainter()
    assert loading.load_weights(changed, tmp_path / "full") == "full"
    assert not torch.equal(changed.unet.conv_in.weight, base.unet.conv_in.weight)
    assert not torch.equal(changed.image_encoder.uncond_vector, base.image_encoder.uncond_vector)
    clip = [pipe.image_encoder.model.state_dict() for pipe in (changed, base)]
    assert all(torch.equal(clip[0][name], clip[1][name]) for name in clip[0])
    names = {path.name for path in (tmp_path / "full").iterdir()}
    assert {"config.json", "metrics.json", "grid.png", "unet", "image_encoder", "samples"} <= names
    assert len(list((tmp_path / "full" / "samples").iterdir())) == 2


def test_a_training_resumed_at_its_last_step_has_a_time(place, tmp_path):
    run(place, tmp_path / "whole", "--max_train_steps", "2", "--checkpointing_steps", "1", "--lr_scheduler", "constant")
    shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "parts" / "checkpoint-1")
    metrics = run(place, tmp_path / "parts", "--max_train_steps", "1", "--lr_scheduler", "constant",
                  "--resume_from_checkpoint", "latest")  # fmt: skip
    assert metrics["seconds"] >= 0 and metrics["seconds_per_step"] is None
    first = run(place, tmp_path / "one", "--max_train_steps", "1", "--lr_scheduler", "constant")
    assert metrics["loss"] == first["loss"]  # of the steps before the interruption


def test_a_resumed_training_asks_what_the_pictures_and_boxes_are_not_where(place, tmp_path, capsys):
    shutil.copytree(place / "subject", tmp_path / "here")
    flags = ["--max_train_steps", "2", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest"]
    train_on = lambda folder: run(place, tmp_path / "out", "--instance_data_dir", str(folder), *flags)  # noqa: E731
    train_on(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    train_on(tmp_path / "there")
    (tmp_path / "there" / "boxes.json").write_text(json.dumps({**BOXES, "0.png": [10, 12, 41, 50]}))
    with pytest.raises(SystemExit):
        train_on(tmp_path / "there")
    assert "another examples" in capsys.readouterr().err
    (tmp_path / "there" / "boxes.json").write_text(json.dumps(BOXES))
    Image.new("RGB", (64, 64), "red").save(tmp_path / "there" / "1.png")
    with pytest.raises(SystemExit):
        train_on(tmp_path / "there")
    assert "1.png is another picture now" in capsys.readouterr().err


def test_pretraining_starts_from_a_text_to_image_model_or_from_nothing_and_survives_a_kill(
    tiny_folder, encoders, place, tmp_path
):
    shared = ["--stage", "pretrain", "--train_data_dir", str(place / "subject"), "--clip_model_name_or_path",
              str(encoders / "clip-vit-large-patch14"), "--boxes", "whole", "--train_batch_size", "2",
              "--max_train_steps", "2", "--checkpointing_steps", "1", "--device", "cpu"]  # fmt: skip

    def pretrain(name, prior, model=tiny_folder, *more):
        train.main([*shared, "--prior", prior, "--pretrained_model_name_or_path", str(model), "--output_dir",
                    str(tmp_path / name), *more])  # fmt: skip
        return tmp_path / name / "model"

    prior, none = pretrain("prior", "text_to_image"), pretrain("none", "none")
    text, first, second = loading.load_pipeline(str(tiny_folder)), *(loading.load(str(m), "cpu") for m in (prior, none))
    assert (first.unet.conv_in.weight[:, :4] - text.unet.conv_in.weight).abs().max() < 1e-4
    assert (second.unet.conv_in.weight[:, :4] - text.unet.conv_in.weight).abs().max() > 1e-2
    assert torch.equal(first.vae.quant_conv.weight, text.vae.quant_conv.weight)
    assert (pretrain("again", "inpainting", prior) / "model_index.json").is_file()

    shutil.copytree(tmp_path / "none" / "checkpoint-1", tmp_path / "parts" / "checkpoint-1")
    torch.manual_seed(99)
    parts = pretrain("parts", "none", tiny_folder, "--resume_from_checkpoint", "latest")
    files = [path.relative_to(none) for path in none.rglob("*.safetensors")]
    assert len(files) == 3 and all((none / file).read_bytes() == (parts / file).read_bytes() for file in files)


def test_paper_scale(capsys):
    train.main(["--print_config", "--pretrained_model_name_or_path", "Fantasy-Studio/Paint-by-Example"])
    subject = json.loads(capsys.readouterr().out)
    assert (subject["learning_rate"], subject["train_batch_size"], subject["condition_dropout"]) == (3e-5, 16, 0.2)
    train.main(["--print_config", "--stage", "pretrain", "--pretrained_model_name_or_path", "owner/model"])
    domain = json.loads(capsys.readouterr().out)
    assert (domain["learning_rate"], domain["num_pictures"], domain["num_train_epochs"]) == (1e-6, 300_000, 40)
    for pictures, expected in ((4, 1000), (2, 520)):  # ceil(400 / 16) = 25 and ceil(200 / 16) = 13 steps an epoch
        args = options.parse_train(["--print_config", "--pretrained_model_name_or_path", "owner/model"])
        assert options.training_steps(args, pictures) == expected
    args = options.parse_train(["--stage", "pretrain", "--print_config", "--pretrained_model_name_or_path", "a/b"])
    assert options.training_steps(args, 300_000) == 750_000


def test_the_picturebook_has_a_preset_that_flags_override(tmp_path, capsys):
    args = options.parse_train(["--output_dir", str(tmp_path / "out"), "--rank", "3"])
    assert args.max_train_steps == options.PICTUREBOOK_TUNING["lora"]["max_train_steps"] and args.rank == 3
    assert "picturebook preset" in capsys.readouterr().err and not (tmp_path / "out").exists()


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
    (["--resume_from_checkpoint", "/no/checkpoint"], "is no checkpoint"),
    (["--mixed_precision", "fp16"], "needs a GPU"),
]


@pytest.mark.parametrize("flags, message", WRONG, ids=[" ".join(flags) for flags, _ in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(place, tiny_folder, tmp_path, capsys, flags, message):
    (tmp_path / "empty").mkdir(), (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.png").write_bytes((place / "subject" / "0.png").read_bytes()[:2000])
    (tmp_path / "text").write_text("hello")
    (tmp_path / "nobox").write_text(json.dumps({"0.png": BOXES["0.png"]}))
    (tmp_path / "outside").write_text(json.dumps({**BOXES, "1.png": [900, 0, 990, 20]}))
    words = {"EMPTY": "empty", "CUT": "cut", "TEXT": "text", "NOBOX": "nobox", "OUTSIDE": "outside"}
    places = {word: str(tmp_path / name) for word, name in words.items()} | {"SD": str(tiny_folder)}
    with pytest.raises(SystemExit) as stop:
        run(place, tmp_path / "out", "--max_train_steps", "3", *(places.get(flag, flag) for flag in flags))
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and message in error and error.startswith("error: ")
    assert not (tmp_path / "out" / "metrics.json").exists() and not (tmp_path / "out" / loading.LORA_FILE).exists()


def test_a_checkpoint_of_another_training_is_refused(place, tmp_path, capsys):
    run(place, tmp_path / "out", "--max_train_steps", "2", "--checkpointing_steps", "1")
    for flags, message in (
        ([], "of an earlier run"),
        (["--resume_from_checkpoint", "latest", "--rank", "5"], "another"),
    ):
        with pytest.raises(SystemExit):
            run(place, tmp_path / "out", "--max_train_steps", "2", *flags)
        assert message in capsys.readouterr().err
