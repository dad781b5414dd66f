"""LoRA files in every published form, what their settings mean, and what is refused; for whatever reads them."""

import json

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from common.lora import LORA_FILE, lora_deltas
from common.pipelines import load_pipeline
from tests.refusing import refuses
from tests.small_data import random

RANK = 2
UNET_LAYERS, TEXT_LAYERS = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj")


def attention_layers(pipe):
    """(part, path, layer) of the attention projections that our files change: on both sides of the UNet and in the
    first layer of the text encoder."""
    for path, module in pipe.unet.named_modules():
        if path.startswith(("down_blocks.0", "up_blocks.1.attentions.0")) and path.endswith(UNET_LAYERS):
            yield "unet", path, module
    for path, module in pipe.text_encoder.named_modules():
        if "layers.0." in path and path.endswith(TEXT_LAYERS):
            yield "text_encoder", path, module


def lora_name(form, part, path):
    """The published name of a layer."""
    text = path if part == "unet" else f"text_model.{path}"  # of transformers before version 5.6
    block, _, layer = path.removesuffix(".0").rpartition(".")
    return {
        "first diffusers": f"{block}.processor.{layer}_lora",  # unet.save_attn_procs of the first example scripts
        "diffusers": f"{part}.{text}." + ("lora" if part == "unet" else "lora_linear_layer"),
        "kohya": ("lora_unet_" if part == "unet" else "lora_te_") + text.replace(".", "_"),
    }.get(form, f"{part}.{text}")


def lora_file(pipe, form):
    """Published keys of a rank-2 LoRA, the header, and by how much each weight should change (in float64)."""
    keys, expected, config = {}, {}, {}
    ends = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B"), "peft with a header": ("lora_A", "lora_B")}
    scale = {"kohya": 3 / RANK, "peft with a header": 2.0}.get(form, 1.0)
    layers = [one for one in attention_layers(pipe) if form != "first diffusers" or one[0] == "unet"]
    for number, (part, path, module) in enumerate(layers):
        down, up = random(RANK, module.in_features, seed=number), random(module.out_features, RANK, seed=-number)
        down, up, name = down / 8, up / 8, lora_name(form, part, path)
        expected[f"{part}.{path}.weight"] = scale * up.double() @ down.double()
        for end, value in zip(ends.get(form, ("down", "up")), (down, up), strict=True):
            keys[f"{name}.{end}.weight"] = value
        if form == "kohya":
            keys[f"{name}.alpha"] = torch.tensor(3.0)
        config |= {f"{part}.r": RANK, f"{part}.lora_alpha": 2 * RANK}
        config.setdefault(f"{part}.target_modules", []).append(path)
    header = {"lora_adapter_metadata": json.dumps(config)} if form == "peft with a header" else None
    return keys, header, expected


@pytest.mark.parametrize("form", ["diffusers", "first diffusers", "peft", "peft with a header", "kohya"])
def test_every_form_gives_the_product_of_its_factors(pipe, tmp_path, form):
    keys, header, expected = lora_file(pipe, form)
    save_file(keys, tmp_path / "a.safetensors", header)
    found = lora_deltas(pipe, tmp_path / "a.safetensors")
    assert found.keys() == expected.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())  # nothing is left on the pipeline


SETTINGS = {
    "none": None,
    "alpha is the rank": {"r": 2, "lora_alpha": 2},
    "alpha is another": {"r": 2, "lora_alpha": 6, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    "patterns": {"r": 2, "lora_alpha": 6, "rank_pattern": {"attn2.to_k": 3},
                 "alpha_pattern": {"attn2.to_k": 1, "to_k": 5, "^mid_block.*to_q": 0.5}},
    "rank-stabilised": {"r": 2, "lora_alpha": 6, "use_rslora": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_count_as_in_diffusers(pipe, tiny_folder, tmp_path, kind):
    """Where diffusers' scripts leave them, they scale it; without any, alpha is the rank of each layer."""
    maker, theirs = load_pipeline(tiny_folder, "cpu"), load_pipeline(tiny_folder, "cpu")
    config = SETTINGS[kind] or {"r": 2, "rank_pattern": {"to_k": 3}}
    maker.unet.add_adapter(LoraConfig(**config, target_modules=list(UNET_LAYERS)))
    for number, (name, weight) in enumerate(maker.unet.named_parameters()):
        if "lora_" in name:
            weight.data.copy_(random(*weight.shape, seed=number))
    about = {} if SETTINGS[kind] is None else maker.unet.peft_config["default"].to_dict()
    maker.save_lora_weights(
        tmp_path, convert_state_dict_to_diffusers(get_peft_model_state_dict(maker.unet)),
        unet_lora_adapter_metadata=about,
    )  # fmt: skip
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    change, before = lora_deltas(pipe, tmp_path / LORA_FILE), pipe.unet.state_dict()
    for name, value in theirs.unet.state_dict().items():
        torch.testing.assert_close(before[name] + change.get(f"unet.{name}", 0), value, rtol=1e-4, atol=1e-5)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora"
UP, DOWN = torch.ones(32, 2), torch.ones(2, 32)


def factors(layer=LAYER, up=UP, down=DOWN):
    return {f"{layer}_B.weight": up.clone(), f"{layer}_A.weight": down.clone()}


def settings(said):
    return {"lora_adapter_metadata": said if isinstance(said, str) else json.dumps(said)}


RANK_2, OTHER = {"unet.r": 2, "unet.lora_alpha": 2}, "no LoRA of this model"
REFUSED = {  # tensors, metadata, what is said
    "no pair": (factors(down=torch.ones(3, 32)), {}, OTHER), "another shape": (factors(up=UP[:3]), {}, OTHER),
    "vectors": (factors(up=UP.flatten(), down=DOWN[0]), {}, OTHER),
    "of no model": (factors("scheduler.a.lora"), {}, OTHER),
    "of another layer": (factors() | factors(LAYER.replace("to_k", "to_x")), {}, OTHER),
    "half a pair": ({f"{LAYER}_B.weight": UP}, {}, "other half of a pair"),
    "a part more": (factors() | {"unet.conv_in.bias": UP.clone()}, {}, "no part of a LoRA"),
    "nothing": ({"unet.a.alpha": torch.ones(1)}, {}, "no update at all"), "torn": (b"torn", {}, "damaged"),
    "NaN": (factors(up=UP * torch.nan), {}, "NaN or infinity in"),
    "whole numbers": (factors(up=UP.int()), {}, "no plain tensor"),
    "settings in no JSON": (factors(), settings("{"), "no JSON object"),
    "settings in no object": (factors(), settings([1]), "no JSON object"),
    "a magnitude": (factors(), settings(RANK_2 | {"unet.use_dora": True}), "unet.use_dora = True"),
    "another start": (factors(), settings(RANK_2 | {"unet.init_lora_weights": "pissa"}), "pissa"),
    "a setting of the future": (factors(), settings(RANK_2 | {"unet.power": 3}), "unet.power = 3"),
    "settings of no part": (factors(), settings({"r": 2, "lora_alpha": 2}), "r = 2"),
    "of another part": (factors(), settings({"text_encoder.r": 2, "text_encoder.lora_alpha": 2}), OTHER),
    "another rank": (factors(), settings({"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": ["to_k"]}), OTHER),
    "text for alpha": (factors(), settings({"unet.r": 2, "unet.lora_alpha": "2"}), "lora_alpha = 2,"),
    "NaN for alpha": (factors(), settings({"unet.r": 2, "unet.lora_alpha": float("nan")}), "lora_alpha = nan"),
    "a list of patterns": (factors(), settings(RANK_2 | {"unet.alpha_pattern": ["to_k"]}), "alpha_pattern = "),
    "a pattern that runs for ever": (factors(), settings({"unet.r": 2, "unet.rank_pattern": {"([a-z_0-9.]+)+!": 2}}),
                                     "rank_pattern = "),
    "no pattern": (factors(), settings({"unet.r": 2, "unet.alpha_pattern": {"(": 2}}), "alpha_pattern = "),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_in_one_sentence(pipe, tmp_path, kind):
    tensors, metadata, said = REFUSED[kind]
    file = tmp_path / LORA_FILE
    file.write_bytes(tensors) if isinstance(tensors, bytes) else save_file(tensors, file, metadata)
    refuses(said, lora_deltas, pipe, file)
