"""Textual Inversion and OFT on a small random model, against what their equations say; encoder-based baselines."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common.pipelines import encode_image, load_pipeline
from common.runs import InputError, write_json
from common.training import step_generator
from eval.baselines import oft, shown, textual_inversion
from lipschitz_personalize import train
from tests.refusing import refuses
from tests.small_data import write_noise

SIDE = 32


@pytest.fixture(scope="module")
def model(small_model):
    return str(small_model)


@pytest.fixture(scope="module")
def dog(tmp_path_factory):
    return write_noise(tmp_path_factory.mktemp("dog"), [(SIDE, SIDE)] * 3)[0].parent


@pytest.fixture(autouse=True)
def no_samples(monkeypatch):
    """Grids at the end of a training are not what is tested."""
    monkeypatch.setattr(train, "draw_grid", lambda *given: Image.new("RGB", (8, 8)))


def flags(model, dog, out, *more):
    return ["--pretrained_model_name_or_path", model, "--instance_data_dir", str(dog), "--device", "cpu",
            "--num_validation_images", "1", "--output_dir", str(out), *map(str, more)]  # fmt: skip


INVERSION = ("--initializer_token", "dog", "--prompts", "plain", "--gradient_accumulation_steps", 1, "--no-scale_lr",
             "--no-random_flip", "--adam_weight_decay", 0, "--max_grad_norm", 0, "--learning_rate", 0.01)  # fmt: skip
ROTATION = ("--instance_prompt", "a photo of qwe dog", "--no-with_prior_preservation", "--no-coft", "--learning_rate",
            0.01)  # fmt: skip


def test_one_step_of_textual_inversion_is_adams_first_step_on_one_row_of_the_token_table(model, dog, tmp_path):
    """Eq. 2 with the whole table as the variable: the gradient of the word's row alone moves it, by lr g / |g|."""
    textual_inversion.main(flags(model, dog, tmp_path, *INVERSION, "--max_train_steps", 1))
    (learned,) = load_file(tmp_path / "learned_embeds.safetensors").values()

    pipe, generator = load_pipeline(model, "cpu"), step_generator(0, 0)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(order_seed()))
    pixels = np.asarray(Image.open(dog / f"{order[0]}.png"), np.float32) / 255
    torch.rand(2, generator=generator)  # where a picture that is no square would be cut
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    z_0 = encode_image(pipe, x, sample=True, generator=generator)
    context = ("a {}", "a picture of a {}", "the {}")[int(torch.randint(3, (1,), generator=generator))]
    noise = torch.randn(z_0.shape, generator=generator)
    t = torch.randint(1000, (1,), generator=generator)

    tokenizer, table = pipe.tokenizer, pipe.text_encoder.get_input_embeddings().weight
    (dog_id,) = tokenizer("dog", add_special_tokens=False).input_ids
    words = [tokenizer.bos_token_id, *tokenizer(context.replace("{}", "dog"), add_special_tokens=False).input_ids]
    ids = torch.tensor([(words + [tokenizer.eos_token_id] * 77)[:77]])
    row = table[dog_id].clone().requires_grad_(True)
    pipe.text_encoder.get_input_embeddings().register_forward_hook(
        lambda layer, inputs, output: torch.where((inputs[0] == dog_id)[..., None], row, output)
    )
    a = pipe.scheduler.alphas_cumprod[t]
    states = pipe.text_encoder(ids)[0]
    predicted = pipe.unet(a.sqrt() * z_0 + (1 - a).sqrt() * noise, t, states).sample
    ((predicted - noise) ** 2).mean().backward()
    expected = row.detach() - 0.01 * row.grad / (row.grad.abs() + 1e-8)
    moved = (learned[0] - table[dog_id]).abs()
    assert learned.shape == (1, 32) and torch.allclose(learned[0], expected, atol=2e-4) and moved.min() > 0.005


def order_seed() -> int:
    """Of the first epoch's permutation, as common.training documents it: seeded by (1, seed, epoch)."""
    return int(np.random.SeedSequence((1, 0, 0)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def test_textual_inversion_leaves_the_model_alone(model, dog, tmp_path):
    textual_inversion.main(flags(model, dog, tmp_path, *INVERSION, "--num_vectors", 2, "--max_train_steps", 2))
    learned = load_file(tmp_path / "learned_embeds.safetensors")["<sks>"]
    pipe, base = textual_inversion.load(tmp_path, model, "cpu"), load_pipeline(model, "cpu")
    ids = pipe.tokenizer("a <sks>", add_special_tokens=False).input_ids
    assert learned.shape == (2, 32) and torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids[1:]], learned)
    ours, before = pipe.unet.state_dict(), base.unet.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in before.items())


def test_oft_turns_each_quarter_of_the_input_and_nothing_else(model, dog, tmp_path):
    """W' = W blockdiag(R)^T with orthogonal R: each block of columns keeps its Gram matrix W_b W_b^T."""
    oft.main(flags(model, dog, tmp_path, *ROTATION, "--max_train_steps", 3))
    pipe, base = oft.load(tmp_path, model, "cpu"), load_pipeline(model, "cpu")
    turned, before = pipe.unet.state_dict(), base.unet.state_dict()
    assert turned.keys() == before.keys()
    targets = [name for name in before if name.endswith(tuple(f"{part}.weight" for part in oft.PROJECTIONS))]
    assert all(torch.equal(turned[name], before[name]) for name in before.keys() - set(targets))
    assert len(targets) == 4 * 2 * 4  # four projections of self and cross attention in each of four blocks
    for name in targets:
        for old, new in zip(before[name].double().chunk(4, 1), turned[name].double().chunk(4, 1), strict=True):
            assert (old - new).abs().max() > 1e-4 and torch.allclose(old @ old.T, new @ new.T, atol=1e-5)
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "oft" / "adapter_model.safetensors").values())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    widths = [before[name].shape[1] for name in targets]
    assert stored == metrics["trainable_parameters"] == sum(4 * (n // 4) * (n // 4 - 1) // 2 for n in widths)


def test_constrained_oft_reaches_the_authors_radius_and_is_loaded_as_it_was_trained(model, dog, tmp_path, monkeypatch):
    """||Q|| of a block is at most eps d^2 / sqrt(r): W' - W = W (R^T - 1) with R = (1 + Q) / (1 - Q), which for a Q of
    one plane and this norm is at most 2 q / sqrt(1 + q^2) of W, q = ||Q|| / sqrt(2)."""
    trained, add = [], oft.add_rotations
    monkeypatch.setattr(oft, "add_rotations", lambda unet, args: trained.append(add(unet, args)) or trained[0])
    words = ["--coft" if word == "--no-coft" else word for word in ROTATION]
    oft.main(flags(model, dog, tmp_path, *words[:-1], 1.0, "--coft_eps", 0.001, "--max_train_steps", 2))
    z, t, c = torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 77, 32)
    with torch.no_grad():
        wanted = trained[0](z, t, c).sample
        pipe = oft.load(tmp_path, model, "cpu")
        assert torch.allclose(pipe.unet(z, t, c).sample, wanted, atol=1e-5)
        assert not torch.allclose(load_pipeline(model, "cpu").unet(z, t, c).sample, wanted, atol=1e-4)
    turned = [module for module in trained[0].modules() if type(module).__name__ == "OFTRotationModule"]
    assert len(turned) == 4 * 2 * 4
    for module in turned:
        norms = (2 * module.weight.square().sum(1)).sqrt()  # Q holds each number twice
        d = module.in_features // 4
        assert torch.allclose(norms, torch.full_like(norms, 0.001 * d * d / 4**0.5), rtol=1e-4)
        with torch.no_grad():
            module.weight.zero_()[:, 0] = 1  # a turn in one plane, far beyond the radius
            blocks = module.get_weight()
        q = 0.001 * d * d / 4**0.5 / 2**0.5
        change = (blocks - torch.eye(4 * d)).square().sum(0).sqrt().max()
        assert change.item() == pytest.approx(2 * q / (1 + q * q) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("script, more, words", [
    (textual_inversion, ["--initializer_token", "dogs and cats"], "tokens of this model"),
    (textual_inversion, ["--placeholder_token", "cat", "--initializer_token", "dog"], "known to this model already"),
    (textual_inversion, [], "give --initializer_token"),
    (textual_inversion, ["--initializer_token", "dog", "--with_prior_preservation", "--class_prompt", "a dog"],
     "leave out --with_prior_preservation"),
    (textual_inversion, ["--initializer_token", "dog", "--resolution", "30"], "no multiple"),
    (textual_inversion, ["--initialiser_token", "dog"], "did you mean --initializer_token"),
    (oft, ["--instance_prompt", "a photo of qwe dog"], "needs --class_prompt"),
    (oft, ["--no-with_prior_preservation"], "needs --instance_prompt"),
    (oft, ["--no-with_prior_preservation", "--instance_prompt", "qwe dog", "--blocks", "7"], "--blocks 7"),
    (oft, ["--instance_prompt", "qwe dog", "--no-with_prior_preservation", "--resume_from_checkpoint", "checkpoint-9"],
     "no checkpoint"),
])  # fmt: skip
def test_wrong_input(script, more, words, model, dog, tmp_path, refused):
    refused(words, script.main, flags(model, dog, tmp_path / "out", "--max_train_steps", 1, *more))
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_what_is_not_there_or_does_not_fit_cannot_be_loaded(model, tmp_path):
    refuses("python -m eval.baselines.oft", oft.load, tmp_path, model, "cpu")
    save_file({"<sks>": torch.zeros(1, 7)}, tmp_path / "learned_embeds.safetensors")
    refuses("vectors of shape", textual_inversion.load, tmp_path, model, "cpu")


def test_both_print_the_published_settings(capsys):
    textual_inversion.main(["--pretrained_model_name_or_path", "owner/sd", "--print_config"])
    settings = json.loads(capsys.readouterr().out)
    assert (settings["max_train_steps"], settings["learning_rate"], settings["scale_lr"]) == (3000, 5e-4, True)
    assert settings["squash"] and settings["max_grad_norm"] == 0  # the script cuts nothing and clips nothing
    oft.main(["--pretrained_model_name_or_path", "owner/sd", "--print_config"])
    settings = json.loads(capsys.readouterr().out)
    assert (settings["max_train_steps"], settings["learning_rate"], settings["blocks"]) == (2005, 6e-5, 4)
    assert settings["coft"] and settings["with_prior_preservation"] and settings["num_class_images"] == 200


def write_ip_adapter(folder, unet) -> dict:
    """An adapter of 4 tokens in the published layout: image_proj.* and ip_adapter.<odd number>.to_{k,v}_ip.weight."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                              image_size=224, patch_size=112, projection_dim=24)  # fmt: skip
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "image_encoder")
    weights = {"image_proj.proj.weight": torch.randn(4 * 32, 24), "image_proj.proj.bias": torch.zeros(4 * 32),
               "image_proj.norm.weight": torch.ones(32), "image_proj.norm.bias": torch.zeros(32)}  # fmt: skip
    for number, name in enumerate(name for name in unet.attn_processors if "attn2" in name):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("k", "v"):
            weights[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(width, 32)
    save_file(weights, folder / "models" / "adapter.safetensors")
    return {"pretrained_model_name_or_path_or_dict": str(folder), "subfolder": "models", "weight_name":
            "adapter.safetensors", "local_files_only": True}  # fmt: skip


def test_ip_adapter_sees_the_subjects_first_picture_with_every_prompt(model, dog, tmp_path):
    adapter = write_ip_adapter(tmp_path, load_pipeline(model, "cpu").unet)
    write_json(tmp_path / "reference.json", {"pictures": [str(dog / "0.png")], "class": "dog"})
    pipe = shown.load_ip_adapter(tmp_path, model, "cpu", adapter)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        return pipe(["a dog", "a red dog"], num_inference_steps=1, generator=generators, output_type="pt").images

    first = draw()
    pipe.picture = Image.open(dog / "1.png").convert("RGB")
    assert first.shape == (2, 3, SIDE, SIDE) and not torch.equal(first, draw())
    with pytest.raises(InputError, match="cannot load IP-Adapter"):
        shown.load_ip_adapter(tmp_path, model, "cpu", {**adapter, "weight_name": "other.safetensors"})
