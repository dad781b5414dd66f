"""What is trained and what is written: names, gradients, and files that diffusers and this project's loaders read."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from common.model_files import move_weights
from common.runs import write_json
from lipschitz_personalize import parameter_spaces
from lipschitz_personalize.loading import load_trained
from lipschitz_personalize.objectives import encode_text, load_backbone, network, predict
from lipschitz_personalize.options import SD3_TARGETS
from spdinv.customised.loading import load_adapter
from tests.refusing import refuses


def load(models, name="sd"):
    return load_backbone(str(models[name]), "cpu")


def stirred(parameters, scale=0.05):
    """Move every trained tensor, as a training does."""
    generator = torch.Generator().manual_seed(3)
    for tensor in parameters.values():
        tensor.data += scale * torch.randn(tensor.shape, generator=generator)


@torch.no_grad()
def says(pipe, prompt="a red cat"):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    return predict(pipe, z, torch.tensor([500.0 if hasattr(pipe, "transformer") else 500]), encode_text(pipe, [prompt]))


@pytest.mark.parametrize("name, part", [("sd", "unet"), ("sdxl", "unet"), ("sd3", "transformer")])
def test_full_is_every_tensor_and_comes_back(models, tmp_path, name, part):
    pipe = load(models, name)
    space = parameter_spaces.full(pipe)
    assert list(space.parameters) == [key for key, _ in network(pipe).named_parameters()]
    assert all(tensor.requires_grad and tensor.dtype == torch.float32 for tensor in space.parameters.values())
    stirred(space.parameters)
    space.save(tmp_path)
    assert (tmp_path / part / "config.json").is_file()
    again = load_trained(tmp_path, str(models[name]), "cpu")
    assert torch.equal(says(again), says(pipe))
    half, base = load_trained(tmp_path, str(models[name]), "cpu", strength=0.5), load(models, name)
    for key, tensor in network(half).state_dict().items():
        middle = (network(base).state_dict()[key] + network(pipe).state_dict()[key]) / 2
        assert torch.allclose(tensor, middle, atol=1e-6)


def test_custom_diffusion_trains_keys_and_values_of_cross_attention_and_a_word(models):
    pipe = load(models)
    space = parameter_spaces.custom_diffusion(pipe, "<new1>", "cat")
    names = {name for name in space.parameters if name != "text_encoder.<new1>"}
    assert names == {name for name, _ in pipe.unet.named_parameters() if "attn2.to_k." in name or "attn2.to_v." in name}
    assert {n for n, t in pipe.unet.named_parameters() if t.requires_grad} == names
    table = pipe.text_encoder.get_input_embeddings().weight
    assert space.counts == {"text_encoder.<new1>": table.numel()}
    cat = pipe.tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert torch.equal(space.parameters["text_encoder.<new1>"], table[cat[0]])
    assert torch.equal(encode_text(pipe, ["a <new1>"]).embeds, encode_text(pipe, ["a cat"]).embeds)
    plain = load(models)
    assert torch.equal(says(pipe), says(plain))  # nothing has moved yet


def test_gradients_reach_the_word_and_not_the_first_token(models):
    pipe = load(models)
    space = parameter_spaces.custom_diffusion(pipe, "<new1>", "cat")
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    x = torch.randn(1, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
    (layer(x) ** 2).sum().backward()
    rest = x[:, 1:].flatten(0, 1)
    assert torch.allclose(layer.weight.grad, 2 * (rest @ layer.weight.T).T @ rest, atol=1e-5)
    layer.weight.grad = None
    cond = encode_text(pipe, ["a <new1> on grass"])
    predict(pipe, torch.randn(1, 4, 8, 8), torch.tensor([10]), cond).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in space.parameters.values())
    assert not pipe.text_encoder.get_input_embeddings().weight.requires_grad


def test_custom_diffusion_files_are_diffusers_own_and_load_everywhere(models, tmp_path):
    pipe = load(models)
    space = parameter_spaces.custom_diffusion(pipe, "<new1>", "cat")
    stirred(space.parameters)
    space.save(tmp_path)
    content = load_file(tmp_path / "pytorch_custom_diffusion_weights.safetensors")
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_custom_diffusion.weight"
    trained = space.parameters["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert torch.equal(content[key], trained)
    assert content["down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"].numel() == 0
    assert set(load_file(tmp_path / "<new1>.safetensors")) == {"<new1>"}
    wanted = says(pipe, "a <new1> on grass")

    ours = load_trained(tmp_path, str(models["sd"]), "cpu")
    assert torch.allclose(says(ours, "a <new1> on grass"), wanted, atol=1e-6)
    elsewhere = load(models)
    load_adapter(elsewhere, tmp_path)
    assert torch.allclose(says(elsewhere, "a <new1> on grass"), wanted, atol=1e-6)
    theirs = load(models)
    name = "pytorch_custom_diffusion_weights.safetensors"
    theirs.unet.load_attn_procs(tmp_path, weight_name=name, _pipeline=theirs)  # 0.42 does nothing without _pipeline
    theirs.load_textual_inversion(tmp_path, weight_name="<new1>.safetensors")
    assert torch.allclose(says(theirs, "a <new1> on grass"), wanted, atol=1e-5)


def test_a_word_without_angle_brackets_is_loaded_too(models, tmp_path):
    pipe = load(models)
    space = parameter_spaces.custom_diffusion(pipe, "newdog", "cat")
    stirred(space.parameters)
    space.save(tmp_path)
    write_json(tmp_path / "config.json", {"modifier_token": "newdog"})
    ours = load_trained(tmp_path, str(models["sd"]), "cpu")
    assert torch.allclose(says(ours, "a newdog on grass"), says(pipe, "a newdog on grass"), atol=1e-6)


@pytest.mark.parametrize("name, word", [("sdxl", "<new1>"), ("sd3", None)])
def test_custom_diffusion_of_sdxl_has_two_words_and_of_sd3_the_image_stream_with_biases(models, tmp_path, name, word):
    pipe = load(models, name)
    space = parameter_spaces.custom_diffusion(pipe, word, "cat")
    stirred(space.parameters)
    space.save(tmp_path)
    if name == "sdxl":
        assert {"text_encoder.<new1>", "text_encoder_2.<new1>"} <= space.parameters.keys()
        words = load_file(tmp_path / "<new1>.safetensors")
        assert {key: tuple(value.shape) for key, value in words.items()} == {"clip_l": (32,), "clip_g": (48,)}
    else:
        assert not space.trains_text and space.parameters.keys() == {
            f"transformer_blocks.{i}.attn.to_{p}.{kind}" for i in (0, 1) for p in "kv" for kind in ("weight", "bias")
        }
    again = load_trained(tmp_path, str(models[name]), "cpu")
    assert torch.allclose(says(again, "a <new1>"), says(pipe, "a <new1>"), atol=1e-6)


@pytest.mark.parametrize("name, part", [("sd", "unet"), ("sdxl", "unet"), ("sd3", "transformer")])
def test_lora_changes_what_its_product_says_and_loads_everywhere(models, tmp_path, name, part):
    pipe, base = load(models, name), load(models, name)
    space = parameter_spaces.lora(pipe, 2, 3.0, ["to_q", "to_v"])
    assert all("lora_" in key for key in space.parameters) and torch.equal(says(pipe), says(base))
    stirred(space.parameters)
    space.save(tmp_path)
    assert {key.split(".")[0] for key in load_file(tmp_path / "pytorch_lora_weights.safetensors")} == {part}
    wanted = says(pipe)
    assert not torch.allclose(wanted, says(base), atol=1e-3)
    merged = load_trained(tmp_path, str(models[name]), "cpu")
    assert torch.allclose(says(merged), wanted, atol=1e-5)
    if name != "sd3":
        elsewhere = load(models, name)
        load_adapter(elsewhere, tmp_path)
        assert torch.allclose(says(elsewhere), wanted, atol=1e-5)
    plain, ours = (network(one).state_dict() for one in (base, merged))
    change = sum((ours[key] - plain[key]).double().square().sum() for key in plain)
    assert space.change().item() == pytest.approx(change.item(), rel=1e-3)


def test_how_loras_first_factor_begins(models):
    for init, expected in (("gaussian", lambda inputs: 1 / 16**2), ("kaiming", lambda inputs: 1 / (3 * inputs))):
        space = parameter_spaces.lora(load(models), 16, 16.0, ["to_q", "to_v"], init)
        firsts = [tensor for name, tensor in space.parameters.items() if ".lora_A." in name]
        ratio = sum(tensor.square().sum() / expected(tensor.shape[1]) for tensor in firsts)
        assert ratio.item() / sum(tensor.numel() for tensor in firsts) == pytest.approx(1, abs=0.05), init
        assert not any(tensor.any() for name, tensor in space.parameters.items() if ".lora_B." in name)


def test_lora_of_sd3_leaves_the_second_attention_of_sd35_alone():
    names = ["to_q", "to_k", "to_v", "add_q_proj", "to_add_out"]
    attention = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in names})
    block = torch.nn.ModuleDict({"attn": attention, "attn2": copy.deepcopy(attention)})
    net = get_peft_model(torch.nn.ModuleDict({"block": block}), LoraConfig(target_modules=SD3_TARGETS))
    touched = {
        name.partition("block.")[2].partition(".lora")[0] for name, _ in net.named_parameters() if "lora" in name
    }
    assert touched == {f"attn.{name}" for name in names}


def test_a_network_that_lacks_a_file_is_refused(models, tmp_path):
    pipe = load(models)
    network(pipe).save_pretrained(tmp_path / "unet", max_shard_size="100KB")
    parts = sorted((tmp_path / "unet").glob("*.safetensors"))
    (tmp_path / "unet" / f"._{parts[0].name}").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    assert len(parts) > 1 and torch.equal(says(load_trained(tmp_path, str(models["sd"]), "cpu")), says(pipe))
    parts[1].unlink()
    refuses("lacks .*: a file is missing", load_trained, tmp_path, str(models["sd"]), "cpu")


def test_what_does_not_fit_is_refused(models, tmp_path):
    pipe, elsewhere = load(models), tmp_path / "trained"
    refusals = [
        ("no layer", lambda: parameter_spaces.lora(load(models), 2, 2, ["to_nothing"])),
        ("the layer .*conv1 is a Conv2d, and LoRA here is of linear layers",
         lambda: parameter_spaces.lora(load(models), 2, 2, ["to_q", "conv1"])),
        ("holds no finished training", lambda: load_trained(tmp_path, str(models["sd"]))),
        ("another model", lambda: move_weights(pipe.unet, {"conv_in.weight": torch.zeros(3)}, tmp_path)),
        ("no LoRA of this model", lambda: load_trained(elsewhere, str(models["sdxl"]), "cpu")),
        *(("known to this model", lambda word=word: parameter_spaces.custom_diffusion(load(models), word, "dog"))
          for word in ("cat</w>", "cat", "Cat")),  # a whole word would stand for the subject in every prompt
    ]  # fmt: skip
    parameter_spaces.lora(load(models), 2, 2, ["to_q"]).save(elsewhere)
    for said, call in refusals:
        refuses(said, call)
