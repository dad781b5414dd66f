"""lipschitz_personalize.train from end to end: the plain trainer at lambda 0, the penalty, resume, files, bad input."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file

from common.images import list_pictures, load_image, to_tensor
from common.pipelines import load_pipeline
from common.training import picture_indices, step_generator
from lipschitz_personalize import batches, layer_lambdas, options, parameter_spaces, train
from tests.small_data import write_noise

QUICK = ["--num_inference_steps", "2", "--num_validation_images", "1", "--mixed_precision", "no", "--seed", "3"]
PROMPT = ["--instance_prompt", "a sks cat"]
NEW = ["--parameter_space", "custom_diffusion", "--instance_prompt", "a <new1> cat", "--initializer_token", "cat"]


@pytest.fixture
def run(models, subject):
    def run(output, *words, model="sd"):
        prompt = () if "--instance_prompt" in words else PROMPT
        train.main(["--pretrained_model_name_or_path", str(models[model]), "--instance_data_dir", str(subject),
                    "--output_dir", str(output), *QUICK, *prompt, *words])  # fmt: skip
        return json.loads((output / "metrics.json").read_text())

    return run


@pytest.fixture
def plain(models, subject):
    return partial(plain_dreambooth, str(models["sd"]), subject)


def weights_of(output):
    files = [path for path in sorted(output.rglob("*.safetensors")) if "checkpoint" not in str(path)]
    return {f"{path.name}:{key}": value for path in files for key, value in load_file(path).items()}


def plain_dreambooth(model, subject, steps, prior=None, regularise=0.0, micros=1, clip=None):
    """DreamBooth's loop written anew: squashed (bicubic) pictures, one VAE sample each, Adam; class pictures weigh
    0.5."""
    pipe = load_pipeline(str(model), "cpu")
    pipe.unet.set_attn_processor(AttnProcessor())
    base = {name: tensor.clone() for name, tensor in pipe.unet.named_parameters()}
    sources = [(subject, "a sks cat", 3)] + ([(prior, "a cat", 3 + 2**62)] if prior else [])
    latents, embeds = [], []
    for folder, prompt, seed in sources:
        encoded = []
        for number, path in enumerate(list_pictures(folder)):
            image = load_image(path)
            picture = to_tensor(image if image.size == (32, 32) else image.resize((32, 32), 3))
            generator = step_generator(seed, number, 1)
            for _ in range(2):
                torch.randint(1, (), generator=generator)  # where the crop begins
            latent = pipe.vae.encode(picture * 2 - 1).latent_dist.sample(generator)
            encoded.append(latent * pipe.vae.config.scaling_factor)
        latents.append(torch.cat(encoded))
        embeds.append(pipe.encode_prompt([prompt], "cpu", 1, False)[0])
    pipe.unet.requires_grad_(True)
    optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=1e-3, weight_decay=0, fused=True)
    for step, micro in [(step, micro) for step in range(steps) for micro in range(micros)]:
        generator = step_generator(3, step, micro)
        seen = [picture_indices(len(x), 1, sources[i][2], step, micro, micros) for i, x in enumerate(latents)]
        x = torch.cat([latents[i][indices] for i, indices in enumerate(seen)])
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (len(x),), generator=generator)
        a = pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        said = pipe.unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, torch.cat(embeds)).sample
        error = (said - noise).square().mean((1, 2, 3))
        loss = error[:1].mean()
        if prior:
            loss = loss + 0.5 * error[1:].mean()
        if regularise:
            pairs = [(tensor, base[name]) for name, tensor in pipe.unet.named_parameters()]
            loss = loss + regularise * sum((tensor - old).square().mean() for tensor, old in pairs)
        (loss / micros).backward()
        if micro < micros - 1:
            continue
        if clip:
            torch.nn.utils.clip_grad_norm_(pipe.unet.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor.detach() for name, tensor in pipe.unet.named_parameters()}


def trained(output):
    return load_file(output / "unet" / "diffusion_pytorch_model.safetensors")


def assert_nearer(found, expected, other, share):
    """The distance to what is expected is this share of that to another training: Adam divides by tiny gradients, so
    that rounding shows."""
    gap, apart = (sum((found[n] - those[n]).square().sum() for n in found) ** 0.5 for those in (expected, other))
    assert gap < share * apart


@pytest.mark.parametrize("prior", [False, True])
def test_at_lambda_zero_it_is_dreambooth_to_the_bit_and_its_class_pictures_are_kept(run, plain, tmp_path, prior):
    classes, words = tmp_path / "class", "--l2_weight 0 --max_train_steps 4 --learning_rate 1e-3".split()
    if prior:
        words += ["--with_prior_preservation", "--class_prompt", "a cat", "--class_data_dir", str(classes)]
        words += "--num_class_images 2 --prior_loss_weight 0.5".split()
    metrics = run(tmp_path / "a", *words)
    assert (metrics["class_seconds"] > 0) == prior == classes.is_dir()
    expected = plain(4, prior=classes if prior else None)
    found = trained(tmp_path / "a")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert not prior or len(list_pictures(classes)) == 2


def test_the_penalty_is_that_of_the_released_code(run, plain, models, tmp_path):
    words = ["--max_train_steps", "4", "--learning_rate", "1e-3", "--l2_reg_weight", "20"]
    metrics = run(tmp_path / "a", *words)
    found = trained(tmp_path / "a")
    assert_nearer(found, plain(4, regularise=20.0), plain(4), 0.02)
    base = load_pipeline(str(models["sd"]), "cpu").unet.state_dict()
    penalty = 20 * sum((found[name] - base[name]).double().square().mean().item() for name in found)
    assert metrics["penalty"] == pytest.approx(penalty, rel=1e-4)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["l2_convention"] == "mean_sum" and config["cache_latents"] and config["adam_weight_decay"] == 0


def test_micro_steps_are_averaged_and_the_penalty_is_clipped_with_the_loss(run, plain, tmp_path):
    words = ["--max_train_steps", "3", "--learning_rate", "1e-3", "--l2_reg_weight", "20", "--max_grad_norm", "0.01",
             "--gradient_accumulation_steps", "2"]  # fmt: skip
    run(tmp_path / "a", *words)
    how = {"regularise": 20.0, "micros": 2, "clip": 0.01}
    expected, other = (plain(3, **how | change) for change in ({}, {"clip": None}))
    assert_nearer(trained(tmp_path / "a"), expected, other, 0.05)


def test_weights_of_another_training_are_not_mixed_up_with(run, tmp_path, refused):
    words, out = ["--max_train_steps", "2", "--checkpointing_steps", "1"], tmp_path / "a"
    run(out, *words, *NEW)
    before, latest = (out / "metrics.json").read_bytes(), ["--resume_from_checkpoint", "latest"]
    (tmp_path / "b" / "unet").mkdir(parents=True)
    new2 = [*NEW[:3], "a <new2> cat", *NEW[4:], "--modifier_token", "<new2>"]
    for model, folder, more, said in (
        ("sd", out, [*latest, "--parameter_space", "lora"], "of a training with another"),
        ("sd", out, [*latest, *new2], "of a training with another instance_prompt"),
        ("sd_v", out, [*latest, *NEW], "another pretrained_model_name_or_path"),
        ("sd3", tmp_path / "b", [], "holds unet of another run"),
    ):
        refused(said, run, folder, *words, *more, model=model)
    assert (out / "metrics.json").read_bytes() == before and not (out / "unet").exists()
    run(out, "--max_train_steps", "3", *NEW, *latest)  # its own


def test_custom_diffusion_doubles_a_scaled_rate_with_class_pictures(run, models, tmp_path):
    classes = write_noise(tmp_path / "class", [(32, 32)])[0].parent
    words = [*NEW, "--max_train_steps", "1", "--l2_reg_weight", "0", "--adam_weight_decay", "0", "--no-augment"]
    words += ["--with_prior_preservation", "--class_prompt", "a cat", "--class_data_dir", str(classes)]
    words += ["--num_class_images", "1", "--train_batch_size", "2", "--learning_rate", "1e-3"]
    start = load_pipeline(str(models["sd"]), "cpu")
    start = start.text_encoder.get_input_embeddings().weight[start.tokenizer("cat").input_ids[1]]
    for more, rate in (["--no-scale_lr"], 1e-3), (["--scale_lr"], 4e-3):  # Adam's first step is the rate
        run(tmp_path / more[0], *words, *more)
        moved = (load_file(tmp_path / more[0] / "<new1>.safetensors")["<new1>"] - start).abs()
        assert moved.median().item() == pytest.approx(rate, rel=1e-2)


def test_custom_diffusion_trains_on_the_error_inside_of_the_mask(run, models, subject, tmp_path):
    """The first step's loss, by hand in float64: of a picture shrunk onto grey only what is inside of it counts."""
    words = [*NEW, "--train_batch_size", "4", "--max_train_steps", "1", "--l2_reg_weight", "0", "--resolution", "32"]
    metrics = run(tmp_path, *words)
    args = options.parse(["--pretrained_model_name_or_path", str(models["sd"]), "--instance_data_dir", str(subject),
                          *QUICK, *words, "--print_config"])  # fmt: skip
    pipe = load_pipeline(str(models["sd"]), "cpu")
    parameter_spaces.custom_diffusion(pipe, "<new1>", "cat")
    generator = step_generator(3, 0)
    given = batches.sources(pipe, args, list_pictures(subject), trains_text=True)
    batch = batches.next_batch(pipe, args, given, 0, 0, Namespace(process_index=0, num_processes=1), generator)
    assert not batch.mask.all() and len(batch.mask) == 4
    noise = torch.randn(batch.latents.shape, generator=generator)
    t = torch.randint(1000, (4,), generator=generator)
    a = pipe.scheduler.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    said = pipe.unet(a.sqrt() * batch.latents + (1 - a).sqrt() * noise, t, batch.cond.embeds).sample
    error, losses = (said - noise).double() ** 2, []
    for number in range(4):
        inside = batch.mask[number, 0] == 1
        losses.append(error[number][:, inside].sum().item() / inside.sum().item())  # channels summed, places averaged
    assert metrics["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert abs(metrics["loss"] - 4 * error.mean().item()) > 1e-3  # which it would be without the mask


@pytest.mark.parametrize("backbone", ["sd_v", "sdxl", "sd3"])
@pytest.mark.parametrize("space", ["full", "custom_diffusion", "lora"])
def test_every_backbone_trains_every_space(run, tmp_path, backbone, space):
    words = ["--parameter_space", space, "--max_train_steps", "2", "--resolution", "32", "--learning_rate", "1e-3"]
    words += ["--instance_prompt", "a <new1> cat", "--initializer_token", "cat"] if space == "custom_diffusion" else []
    words += ["--gradient_accumulation_steps", "1", "--gradient_checkpointing", "--validation_prompt", "a cat"]
    metrics = run(tmp_path / "a", *words, model=backbone)
    assert metrics["trainable_parameters"] > 0 and metrics["file_bytes"] > 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "metrics.json", "grid.png"} < names


def test_lambda_by_sensitivity_is_of_the_new_word_too(run, tmp_path, monkeypatch):
    seen, measured = {}, layer_lambdas.lipschitz_factors
    monkeypatch.setattr(layer_lambdas, "lipschitz_factors", lambda *given: seen.update(measured(*given)) or seen)
    run(tmp_path, *NEW, "--l2_reg_weight", "20", "--l2_lipschitz", "--max_train_steps", "1")
    assert seen["text_encoder.<new1>"] > 0 and min(seen.values()) >= 0


@pytest.mark.parametrize("space", [PROMPT, NEW, [*PROMPT, "--parameter_space", "lora"]], ids=["full", "word", "lora"])
def test_bfloat16_networks_and_copies(run, tmp_path, space):
    """What is trained stays in float32, and pictures are drawn, whatever the rest is kept in."""
    words = ["--max_train_steps", "2", "--l2_base_dtype", "bfloat16", "--l2_base_device", "cpu"]
    run(tmp_path / "a", *space, "--mixed_precision", "bf16", *words)
    weights = weights_of(tmp_path / "a")
    assert weights and {value.dtype for value in weights.values()} == {torch.float32}


FLAGS = ("l2_reg_weight", "learning_rate", "max_train_steps", "train_batch_size", "gradient_accumulation_steps",
         "adam_weight_decay", "max_grad_norm", "seed")  # fmt: skip


@pytest.mark.parametrize("model, space, values, more", [
    ("stable-diffusion-v1-5", "full", (500, 2e-6, 1000, 1, 1, 0, 0, 2025), {"squash": True, "cache_latents": True}),
    ("stable-diffusion-v1-5", "custom_diffusion", (175, 3e-5, 250, 2, 1, 1e-2, 1, 2025),
     {"mask_loss": "sum", "augment": True, "scale_lr": True}),
    ("stable-diffusion-v1-5", "lora", (1e-7, 1e-4, 500, 4, 1, 0, 1, 0),
     {"lora_rank": 16, "lora_alpha": 27.0, "lora_init": "kaiming", "lora_targets": ["to_q", "to_v"],
      "scale_lr": False}),
    ("stable-diffusion-xl-base-1.0", "custom_diffusion", (50, 5e-5, 250, 2, 1, 1e-2, 1, 2025),
     {"mask_loss": "mean", "scale_lr": True}),
    ("stable-diffusion-xl-base-1.0", "lora", (1e-6, 5e-4, 500, 1, 4, 1e-4, 1, 0), {"lora_init": "gaussian"}),
    ("stable-diffusion-3-medium-diffusers", "custom_diffusion", (10.1, 1e-4, 500, 1, 4, 1e-4, 1, 0),
     {"augment": False, "scale_lr": False, "mask_loss": "mean"}),
    ("stable-diffusion-3-medium-diffusers", "lora", (0, 4e-4, 500, 1, 4, 1e-4, 1, 0), {"lora_rank": 4}),
])  # fmt: skip
def test_print_config_has_every_released_scripts_settings_without_a_model(model, space, values, more, capsys):
    train.main(["--pretrained_model_name_or_path", f"owner/{model}", "--parameter_space", space, "--print_config"])
    config = json.loads(capsys.readouterr().out)
    assert tuple(config[flag] for flag in FLAGS) == values
    assert {name: config[name] for name in more} == more
    assert config["l2_convention"] == ("lora_factors" if space == "lora" else "mean_sum")


@pytest.mark.parametrize("words, said", [
    (["--l2_convention", "lora_factors"], "does not go with --parameter_space full"),
    (["--parameter_space", "lora", "--l2_convention", "sum"], "take one of lora_factors, function"),
    (["--parameter_space", "lora", "--l2_lipschitz"], "leave them out of LoRA"),
    (["--parameter_space", "lora", "--lora_targets", "nothing"], "no layer of this network"),
    (["--parameter_space", "lora", "--lora_targets", "to_q", "to_vv"], "no layer of this network is called to_vv"),
    (["--l2_layer_weights", "nothing=2"], "no trained tensor"),
    (["--l2_layer_weights", "attn2"], "REGEX=FACTOR"),
    (["--parameter_space", "custom_diffusion"], "has to hold --modifier_token"),
    ([*NEW, "--modifier_token", "a/b"], "cannot hold"),
    ([*NEW, "--modifier_token", "a b"], "leave the spaces out"),
    (["--backbone", "sdxl", "--parameter_space", "full"], "give --backbone sd"),
    (["--resolution", "36"], "no multiple of this model's 8"),
    (["--learning_rate", "1e6", "--max_train_steps", "9", "--l2_reg_weight", "0"], "lower --learning_rate"),
    (["--instance_data_dir", "DAMAGED"], "cannot be read as a picture"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(run, subject, tmp_path, refused, words, said):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes((subject / "0.png").read_bytes()[:200])
    words = [word.replace("DAMAGED", str(tmp_path / "bad")) for word in words]
    refused(said, run, tmp_path / "a", *words)
    assert not (tmp_path / "a" / "config.json").exists() and not list(tmp_path.rglob("*.safetensors"))
