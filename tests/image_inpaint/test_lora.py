"""Low-rank updates: Eq. 7, files that diffusers itself loads onto nine channels, sizes on Stable Diffusion's shapes."""

import copy
import json

import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from image_inpaint import loading, lora
from image_inpaint.reproduction.storage import storage
from tests.image_inpaint.models import tiny_inpainter
from tests.refusing import refuses
from tests.tiny import tiny_sd


def updated(pipe, targets="attention", rank=3, alpha=6.0):
    """A copy of the UNet with updates whose B is random too, as after training."""
    unet = copy.deepcopy(pipe.unet)
    weights = lora.add_lora(unet, rank, alpha, targets)
    with torch.no_grad():
        for name, parameter in weights.items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return unet


def run(unet):
    generator = torch.Generator().manual_seed(1)
    channels, context = torch.randn(2, 9, 16, 16, generator=generator), torch.randn(2, 1, 32, generator=generator)
    with torch.no_grad():
        return unet(channels, 400, encoder_hidden_states=context).sample


def test_updates_start_at_nothing_and_only_they_are_trained(pipe):
    unet = copy.deepcopy(pipe.unet)
    weights = lora.add_lora(unet, 4, 4, "attention", seed=3)
    assert torch.allclose(run(unet), run(pipe.unet), atol=1e-6)
    assert weights and all("lora_" in name for name in weights)
    again = lora.add_lora(copy.deepcopy(pipe.unet), 4, 4, "attention", seed=3)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert all((p == 0).all() == ("lora_B" in name) for name, p in weights.items())


def test_the_authors_start_is_gaussian_of_deviation_1_over_the_rank(pipe):
    weights = lora.add_lora(copy.deepcopy(pipe.unet), 4, 4, "attention+geglu", init="gaussian")
    a = torch.cat([p.flatten() for name, p in weights.items() if "lora_A" in name])
    assert a.std().item() == pytest.approx(1 / 4, rel=0.05) and a.abs().max() > 0.75  # no uniform of that deviation
    assert all((p == 0).all() for name, p in weights.items() if "lora_B" in name)
    kinds = {name.split("transformer_blocks.0.")[1].split(".lora")[0] for name in weights}
    assert kinds == {f"attn{k}.{part}" for k in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")} | {
        "ff.net.0.proj"}  # fmt: skip


@pytest.mark.parametrize("targets", lora.TARGETS)
def test_a_file_gives_the_same_network_through_us_and_through_diffusers(pipe, tmp_path, targets):
    """Rank 3 and alpha 6: a loader that loses alpha would be off by a factor of two."""
    trained = updated(pipe, targets)
    path = lora.save_lora(trained, tmp_path)
    expected = run(trained)
    assert (expected - run(pipe.unet)).abs().max() > 1e-3
    ours = copy.deepcopy(pipe.unet)
    lora.load_lora(ours, path)
    assert torch.allclose(run(ours), expected, atol=1e-5)
    assert not any("lora" in name for name, _ in ours.named_modules())  # merged: nothing is left to compute
    plain = copy.deepcopy(pipe.unet)
    plain.load_lora_adapter(str(tmp_path), prefix="unet", weight_name=path.name)
    assert torch.allclose(run(plain), expected, atol=1e-5)
    parts = {**tiny_sd().components, "unet": copy.deepcopy(pipe.unet), "image_encoder": None}
    theirs = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    theirs.load_lora_weights(str(tmp_path))
    assert torch.allclose(run(theirs.unet), expected, atol=1e-5)


def test_eq_7_on_one_layer(pipe, tmp_path):
    """W = W_0 + (alpha / r) B A, from the numbers in the file."""
    path = lora.save_lora(updated(pipe), tmp_path)
    weights, merged = load_file(path), copy.deepcopy(pipe.unet)
    lora.load_lora(merged, path)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    a, b = (weights[f"unet.{name}.lora_{part}.weight"].double() for part in "AB")
    expected = pipe.unet.get_submodule(name).weight.double() + 6 / 3 * (b @ a)
    assert torch.allclose(merged.get_submodule(name).weight.double(), expected, atol=1e-5)
    with safe_open(path, "pt") as stored:
        settings = json.loads(stored.metadata()["lora_adapter_metadata"])
    assert settings["unet.r"] == 3 and settings["unet.lora_alpha"] == 6.0


def test_files_of_other_models_are_refused_and_change_nothing(pipe, tmp_path):
    path = lora.save_lora(updated(pipe, "attention+conv_in"), tmp_path)
    for other in (tiny_sd(), tiny_sd(channels=(16, 24, 24))):  # four channels, and another width
        before = copy.deepcopy(other.unet.state_dict())
        refuses("no LoRA of this model", lora.load_lora, other.unet, path)
        after = other.unet.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    refuses("holds neither", loading.load_weights, pipe, tmp_path / "nothing")


def test_whole_model_weights_go_and_come(pipe, tmp_path):
    other = tiny_inpainter(seed=1)
    loading.save_full(other, tmp_path)
    fresh = tiny_inpainter()
    assert loading.load_weights(fresh, tmp_path) == "full"
    assert torch.equal(fresh.unet.conv_in.weight, other.unet.conv_in.weight)
    assert torch.equal(fresh.image_encoder.uncond_vector, other.image_encoder.uncond_vector)
    towers = (one.image_encoder.model.embeddings.class_embedding for one in (fresh, pipe))
    assert torch.equal(*towers)  # CLIP is not in the file


@pytest.mark.parametrize("rank, targets, parameters, megabytes", [
    (1, "attention", 199_296, 0.80), (4, "attention", 797_184, 3.19), (16, "attention", 3_188_736, 12.75),
    (64, "attention", 12_754_944, 51.0), (4, "qv", None, 1.59), (64, "qv", None, 25.5),
    (4, "attention+geglu", 1_246_464, 4.99),
    (4, "attention+ff", None, 5.98), (16, "attention+ff", None, 23.9), (16, "cross_kv", None, 3.17),
])  # fmt: skip
def test_storage_on_stable_diffusion_shapes(rank, targets, parameters, megabytes):
    found = storage(rank, targets)
    assert found["total"] == 859_535_364
    assert parameters is None or found["parameters"] == parameters
    assert found["megabytes"] == pytest.approx(megabytes, rel=0.005)
