"""Files of shifts: ours, the community's written out from their published layout, and everything that is neither."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.pipelines import load_pipeline
from common.runs import InputError, write_json
from svdiff import basis, files, merging, spectral, subsets
from tests.tiny import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder, "cpu")


def random_shifts(model, subset="UNet", seed=0):
    generator, layers = torch.Generator().manual_seed(seed), basis.tunable(model)
    return {p: torch.randn(subsets.shift_length(layers[p]), generator=generator) for p in subsets.chosen(model, subset)}


@pytest.mark.parametrize("parts", [("unet", "text_encoder"), tuple(files.PARTS)], ids=["sd", "xl"])
def test_what_is_written_is_read_back(pipe, tmp_path, parts):
    pipe = tiny_sdxl() if len(parts) == 3 else pipe
    shifts = {part: random_shifts(getattr(pipe, part)) for part in parts}
    for part, values in shifts.items():
        files.write_shifts(tmp_path / files.file_name(part), values, basis.base_hash(getattr(pipe, part)), part)
    ends = ("", "_te", "_te_2")[: len(parts)]
    assert {path.name for path in tmp_path.iterdir()} == {f"spectral_shifts{end}.safetensors" for end in ends}
    keys = set(load_file(tmp_path / "spectral_shifts.safetensors"))
    assert {"conv_in.delta", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.delta"} <= keys
    assert "text_model.embeddings.token_embedding.delta" in load_file(tmp_path / "spectral_shifts_te.safetensors")
    for place in (tmp_path, tmp_path / "spectral_shifts.safetensors"):
        change = merging.load(pipe, place)
        assert change.kind == "shifts" and set(change.parts) == set(parts)
        for part, values in shifts.items():
            assert change.of(part).keys() == values.keys()
            assert all(torch.equal(change.of(part)[path], delta) for path, delta in values.items())


def test_files_stay_together_and_say_what_they_are_of(pipe, tmp_path):
    for part in ("unet", "text_encoder"):
        model = getattr(pipe, part)
        files.write_shifts(tmp_path / files.file_name(part), random_shifts(model), basis.base_hash(model), part)
    assert set(merging.load(pipe, tmp_path / "spectral_shifts_te.safetensors").parts) == {"text_encoder"}
    for part, name in (("unet", "dog"), ("text_encoder", "dog_te")):  # renamed together they stay together
        (tmp_path / files.file_name(part)).rename(tmp_path / f"{name}.safetensors")
    assert set(merging.load(pipe, tmp_path / "dog.safetensors").parts) == {"unet", "text_encoder"}
    (tmp_path / "dog_te.safetensors").rename(tmp_path / "words.safetensors")  # the file itself says what it is of
    assert set(merging.load(pipe, tmp_path / "words.safetensors").parts) == {"text_encoder"}


def test_files_of_the_community_load(pipe, tmp_path, caplog):
    """Keys and shapes as mkshing's trainer wrote them: one number per norm layer, `text_model.`, no metadata."""
    unet = {"conv_in.delta": torch.randn(16), "mid_block.resnets.0.norm1.delta": torch.tensor([0.5]),
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.delta": torch.randn(16)}  # fmt: skip
    text = {"text_model.encoder.layers.0.self_attn.q_proj.delta": torch.randn(32),
            "text_model.embeddings.position_embedding.delta": torch.randn(32),
            "text_model.final_layer_norm.delta": torch.tensor([-1e6])}  # fmt: skip
    save_file(unet, tmp_path / "spectral_shifts.safetensors")
    save_file(text, tmp_path / "spectral_shifts_te.safetensors")
    change = merging.load(pipe, tmp_path)
    assert "does not say which base model" in caplog.text
    weight = pipe.unet.mid_block.resnets[0].norm1.weight
    matrix = weight[None]  # theirs: a norm's weight as a 1 x C matrix with one singular value
    U, sigma, Vh = torch.linalg.svd(matrix, full_matrices=False)
    theirs = (U @ torch.diag(torch.relu(sigma + 0.5)) @ Vh)[0]
    ours = spectral.rebuilt(pipe.unet.mid_block.resnets[0].norm1, None, change.of("unet")["mid_block.resnets.0.norm1"])
    torch.testing.assert_close(ours, theirs)
    final = next(name for name in change.of("text_encoder") if name.endswith("final_layer_norm"))
    torch.testing.assert_close(change.of("text_encoder")[final], -dict(basis.tunable(pipe.text_encoder))[final].weight)
    assert any(name.endswith("position_embedding") for name in change.of("text_encoder"))


def test_style_mixing_of_trainings(pipe):
    one, two = (merging.Change("shifts", {part: random_shifts(getattr(pipe, part), seed=seed)
                for part in ("unet", "text_encoder")}) for seed in (0, 1))  # fmt: skip
    mixed = merging.style_mix(pipe, one, two, (8, "down", 0), (4, "down", 0))
    geometry = ("down_blocks.1.attentions.0.", "down_blocks.1.downsamplers.", "down_blocks.2.", "mid_block.resnets.0.",
                "mid_block.attentions.0.")  # fmt: skip
    for part in ("unet", "text_encoder"):
        assert mixed.of(part).keys() == one.of(part).keys()
        for path, delta in mixed.of(part).items():
            assert delta is (two if path.startswith(geometry) else one).of(part)[path], path


def test_a_change_that_fails_half_way_leaves_the_base(pipe, tmp_path):
    before = pipe.unet.conv_in.weight.clone()
    change = merging.Change("shifts", {"unet": {"conv_in": torch.ones(16), "conv_out": torch.ones(5)}})
    bases = basis.Bases(pipe, tmp_path)
    with pytest.raises(RuntimeError), merging.applied(pipe, change, 1.0, bases):  # conv_out has four values
        pass
    assert torch.equal(pipe.unet.conv_in.weight, before)


def test_applied_changes_the_model_and_gives_it_back(pipe, tmp_path):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    change = merging.Change("shifts", {"unet": random_shifts(pipe.unet, "UNet-CA")})
    with merging.applied(pipe, change, 0.5, basis.Bases(pipe, tmp_path)):
        for name, value in pipe.unet.state_dict().items():
            touched = ".attn2." in name and name.endswith("weight")
            assert torch.equal(value, before[name]) != touched, name
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_full_weights_are_differences_from_the_base(pipe, tmp_path):
    other = tiny_sd(seed=1)
    other.unet.save_pretrained(tmp_path / "unet")
    change = merging.load(pipe, tmp_path)
    with merging.applied(pipe, change):
        torch.testing.assert_close(pipe.unet.conv_in.weight, other.unet.conv_in.weight)
    half = merging.add([change, change], [0.25, 0.25])
    with merging.applied(pipe, half):
        middle = (pipe.unet.state_dict()["conv_out.bias"]).clone()
    torch.testing.assert_close(middle, (pipe.unet.conv_out.bias + other.unet.conv_out.bias) / 2)
    with pytest.raises(InputError, match="cannot be combined"):
        merging.interpolate(change, merging.Change("shifts", {"unet": {}}), 0.5)


WRONG = {
    "another base": ({"conv_in.delta": torch.zeros(16)}, {"base": "f" * 32}, "another base model"),
    "another architecture": ({"conv_middle.delta": torch.zeros(16)}, {}, "shifts conv_middle"),
    "another length": ({"conv_in.delta": torch.zeros(15)}, {}, "15 values for conv_in"),
    "no shifts": ({"conv_in.weight": torch.zeros(16)}, {}, "no spectral shifts"),
    "not vectors": ({"conv_in.delta": torch.zeros(4, 4)}, {}, "no spectral shifts"),
    "empty": ({}, {}, "cannot be read"),
    "NaN": ({"conv_in.delta": torch.full((16,), float("nan"))}, {}, "NaN"),
    "another part": ({"conv_in.delta": torch.zeros(16)}, {"part": "scheduler"}, "of the part scheduler; shifts are of"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused_in_one_sentence(pipe, tmp_path, kind):
    tensors, metadata, words = WRONG[kind]
    save_file(tensors, tmp_path / "spectral_shifts.safetensors", metadata)
    for place in (tmp_path, tmp_path / "spectral_shifts.safetensors"):
        with pytest.raises(InputError, match=words):
            merging.load(pipe, place)


def test_damaged_and_missing_files_are_refused(pipe, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    for place, words in ((tmp_path / "a.safetensors", "cannot be read"), (tmp_path, "holds no spectral_shifts"),
                         (tmp_path / "none", "is missing")):  # fmt: skip
        with pytest.raises(InputError, match=words):
            merging.load(pipe, place)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora"
OTHER = LAYER.replace("to_k", "to_x")
UP, DOWN = torch.ones(32, 2), torch.ones(2, 32)
WRONG_LORA = {
    "no pair": ({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": torch.ones(3, 32)}, "no LoRA of this model"),
    "vectors": ({f"{LAYER}_B.weight": UP.flatten(), f"{LAYER}_A.weight": DOWN[0]}, "no LoRA of this model"),
    "of no model": ({"scheduler.a.lora_B.weight": UP, "scheduler.a.lora_A.weight": DOWN}, "this model"),
    "of another layer": ({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN, f"{OTHER}_B.weight": UP.clone(),
                          f"{OTHER}_A.weight": DOWN.clone()}, "this model"),
    "half a pair": ({f"{LAYER}_B.weight": UP}, "this model"),
    "a part more": ({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN, "unet.conv_in.bias": UP.clone()},
                    "no part of a LoRA"),
    "NaN": ({f"{LAYER}_B.weight": UP * torch.nan, f"{LAYER}_A.weight": DOWN}, "NaN"),
    "another shape": ({f"{LAYER}_B.weight": UP[:3], f"{LAYER}_A.weight": DOWN}, "no LoRA of this model"),
    "nothing": ({}, "holds no spectral_shifts"),
}


@pytest.mark.parametrize("kind", WRONG_LORA)
def test_other_loras_are_refused_in_one_sentence(pipe, tmp_path, kind):
    tensors, words = WRONG_LORA[kind]
    save_file(tensors, tmp_path / merging.LORA_FILE)
    with pytest.raises(InputError, match=words):
        merging.load(pipe, tmp_path)


SETTINGS = {
    "none": None,
    "alpha is the rank": {"r": 2, "lora_alpha": 2},
    "alpha is another": {"r": 2, "lora_alpha": 6, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    "patterns": {"r": 2, "lora_alpha": 6, "rank_pattern": {"attn2.to_k": 3},
                 "alpha_pattern": {"attn2.to_k": 1, "to_k": 5, "^mid_block.*to_q": 0.5}},
    "rank-stabilised": {"r": 2, "lora_alpha": 6, "use_rslora": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_lora_counts_as_in_diffusers(pipe, tiny_folder, tmp_path, kind):
    """Its settings, where diffusers' scripts leave them, scale it; without any, alpha is the rank of each layer."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    maker, generator = load_pipeline(tiny_folder, "cpu"), torch.Generator().manual_seed(0)
    maker.unet.add_adapter(LoraConfig(**(SETTINGS[kind] or {"r": 2, "rank_pattern": {"to_k": 3}}),
                                      target_modules=["to_q", "to_k", "to_v", "to_out.0"]))  # fmt: skip
    for name, weight in maker.unet.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape, generator=generator))
    about = {} if SETTINGS[kind] is None else maker.unet.peft_config["default"].to_dict()
    maker.save_lora_weights(
        tmp_path, convert_state_dict_to_diffusers(get_peft_model_state_dict(maker.unet)),
        unet_lora_adapter_metadata=about,
    )  # fmt: skip
    theirs = load_pipeline(tiny_folder, "cpu")
    theirs.load_lora_weights(tmp_path)
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    expected = theirs.unet.state_dict()
    with merging.applied(pipe, merging.load(pipe, tmp_path)):
        for name, value in pipe.unet.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


WRONG_SETTINGS = {
    "no JSON": ("{", "no JSON object"),
    "no object": ([1], "no JSON object"),
    "a magnitude": ({"unet.r": 2, "unet.lora_alpha": 2, "unet.use_dora": True}, "unet.use_dora = True"),
    "another start": ({"unet.r": 2, "unet.lora_alpha": 2, "unet.init_lora_weights": "pissa"}, "pissa"),
    "a setting of the future": ({"unet.r": 2, "unet.lora_alpha": 2, "unet.power": 3}, "unet.power = 3"),
    "of no part": ({"r": 2, "lora_alpha": 2}, "r = 2"),
    "of another part": ({"text_encoder.r": 2, "text_encoder.lora_alpha": 2}, "no LoRA of this model"),
    "another rank": ({"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": ["to_k"]}, "no LoRA of this model"),
    "text": ({"unet.r": 2, "unet.lora_alpha": "2"}, "lora_alpha = 2,"),
    "NaN": ({"unet.r": 2, "unet.lora_alpha": float("nan")}, "lora_alpha = nan"),
    "a list": ({"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": ["to_k"]}, "alpha_pattern = "),
    "a pattern that runs for ever": ({"unet.r": 2, "unet.rank_pattern": {"([a-z_0-9.]+)+!": 2}}, "rank_pattern = "),
    "no pattern": ({"unet.r": 2, "unet.lora_alpha": 2, "unet.alpha_pattern": {"(": 2}}, "alpha_pattern = "),
}


@pytest.mark.parametrize("kind", WRONG_SETTINGS)
def test_settings_of_a_lora_that_are_not_understood_are_refused(pipe, tmp_path, kind):
    settings, words = WRONG_SETTINGS[kind]
    text = settings if isinstance(settings, str) else json.dumps(settings)
    tensors = {f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN}
    save_file(tensors, tmp_path / merging.LORA_FILE, {"lora_adapter_metadata": text})
    with pytest.raises(InputError, match=words):
        merging.load(pipe, tmp_path)


@pytest.mark.parametrize("config", [[], {"base": "abc"}], ids=json.dumps)
def test_a_config_that_names_no_base_is_refused(pipe, tmp_path, config):
    save_file({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN}, tmp_path / merging.LORA_FILE)
    write_json(tmp_path / "config.json", config)
    with pytest.raises(InputError, match="does not name the base model|is damaged"):
        merging.load(pipe, tmp_path)


def test_files_are_told_by_their_keys_and_kohya_s_are_read(pipe, tmp_path):
    save_file({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN}, tmp_path / "my subject.safetensors")
    plain = merging.load(pipe, tmp_path / "my subject.safetensors")
    theirs = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{theirs}.lora_up.weight": UP, f"{theirs}.lora_down.weight": DOWN, f"{theirs}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "kohya.safetensors")
    halved = merging.load(pipe, tmp_path / "kohya.safetensors")
    (name,) = plain.of("unet")
    assert plain.kind == halved.kind == "weights" and torch.equal(plain.of("unet")[name], UP @ DOWN)
    torch.testing.assert_close(halved.of("unet")[name], 0.5 * UP @ DOWN)  # alpha 1 of rank 2
    assert not any("lora" in name for name, _ in pipe.unet.named_parameters())  # nothing is left on the pipeline


def test_a_lora_of_another_base_and_damaged_weights_are_refused(pipe, tmp_path):
    save_file({f"{LAYER}_B.weight": UP, f"{LAYER}_A.weight": DOWN}, tmp_path / merging.LORA_FILE)
    assert merging.load(pipe, tmp_path).kind == "weights"
    write_json(tmp_path / "config.json", {"base": {"unet": "f" * 32}})
    with pytest.raises(InputError, match="another base model"):
        merging.load(pipe, tmp_path)
    (tmp_path / merging.LORA_FILE).write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read|holds no weights"):
        merging.load(pipe, tmp_path)
    pipe.unet.save_config(tmp_path / "unet")
    with pytest.raises(InputError, match="cannot be read|holds no weights"):
        merging.load(pipe, tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"hello")
    with pytest.raises(InputError, match="cannot be read|holds no weights"):
        merging.load(pipe, tmp_path)
