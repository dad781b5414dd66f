"""Files of shifts: ours, the community's written out from their published layout, and everything that is neither."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.runs import write_json
from svdiff import basis, combine, files, merging, spectral
from tests.common.test_lora import DOWN, LAYER, UP, factors
from tests.refusing import refuses
from tests.svdiff.conftest import random_shifts
from tests.tiny import tiny_sd, tiny_sdxl


def change_of(pipe, parts, seed=0):
    """A change by random shifts of whole parts."""
    return {f"{part}.{path}.delta": delta for part in parts
            for path, delta in random_shifts(getattr(pipe, part), seed=seed).items()}  # fmt: skip


def write_parts(pipe, parts, folder):
    for part in parts:
        model = getattr(pipe, part)
        files.write_shifts(folder / files.file_name(part), random_shifts(model), basis.base_hash(model), part)


def parts_in(change):
    return {name.partition(".")[0] for name in change}


@pytest.mark.parametrize("parts", [("unet", "text_encoder"), tuple(files.PARTS)], ids=["sd", "xl"])
def test_what_is_written_is_read_back(pipe, tmp_path, parts):
    pipe = tiny_sdxl() if len(parts) == 3 else pipe
    write_parts(pipe, parts, tmp_path)
    ends, wanted = ("", "_te", "_te_2")[: len(parts)], change_of(pipe, parts)
    assert {path.name for path in tmp_path.iterdir()} == {f"spectral_shifts{end}.safetensors" for end in ends}
    keys = set(load_file(tmp_path / "spectral_shifts.safetensors"))
    assert {"conv_in.delta", "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.delta"} <= keys
    assert "text_model.embeddings.token_embedding.delta" in load_file(tmp_path / "spectral_shifts_te.safetensors")
    for place in (tmp_path, tmp_path / "spectral_shifts.safetensors"):
        change = merging.load(pipe, place)
        assert change.keys() == wanted.keys() and all(torch.equal(change[name], wanted[name]) for name in wanted)


def test_files_stay_together_and_say_what_they_are_of(pipe, tmp_path):
    write_parts(pipe, ("unet", "text_encoder"), tmp_path)
    assert parts_in(merging.load(pipe, tmp_path / "spectral_shifts_te.safetensors")) == {"text_encoder"}
    for part, name in (("unet", "dog"), ("text_encoder", "dog_te")):  # renamed together they stay together
        (tmp_path / files.file_name(part)).rename(tmp_path / f"{name}.safetensors")
    assert parts_in(merging.load(pipe, tmp_path / "dog.safetensors")) == {"unet", "text_encoder"}
    (tmp_path / "dog_te.safetensors").rename(tmp_path / "words.safetensors")  # the file itself says what it is of
    assert parts_in(merging.load(pipe, tmp_path / "words.safetensors")) == {"text_encoder"}


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
    norm = pipe.unet.mid_block.resnets[0].norm1
    U, sigma, Vh = torch.linalg.svd(norm.weight[None], full_matrices=False)  # theirs: 1 x C, one singular value
    theirs = (U @ torch.diag(torch.relu(sigma + 0.5)) @ Vh)[0]
    torch.testing.assert_close(spectral.rebuilt(norm, None, change["unet.mid_block.resnets.0.norm1.delta"]), theirs)
    words = merging.of_part(change, "text_encoder")
    final = next(name for name in words if name.endswith("final_layer_norm.delta"))
    torch.testing.assert_close(words[final], -pipe.text_encoder.get_submodule(final.removesuffix(".delta")).weight)
    assert any(name.endswith("position_embedding.delta") for name in change)


def test_style_mixing_of_trainings(pipe):
    one, two = (change_of(pipe, ("unet", "text_encoder"), seed) for seed in (0, 1))
    mixed = merging.style_mix(pipe, one, two, (8, "down", 0), (4, "down", 0))
    geometry = tuple(f"unet.{path}" for path in (
        "down_blocks.1.attentions.0.", "down_blocks.1.downsamplers.", "down_blocks.2.", "mid_block.resnets.0.",
        "mid_block.attentions.0."))  # fmt: skip
    assert mixed.keys() == one.keys()
    assert all(delta is (two if name.startswith(geometry) else one)[name] for name, delta in mixed.items())


def test_a_change_that_fails_half_way_leaves_the_base(pipe, tmp_path):
    before = pipe.unet.conv_in.weight.clone()
    change = {"unet.conv_in.delta": torch.ones(16), "unet.conv_out.delta": torch.ones(5)}  # which has four values
    with pytest.raises(RuntimeError), merging.applied(pipe, change, 1.0, basis.Bases(pipe, tmp_path)):
        pass
    assert torch.equal(pipe.unet.conv_in.weight, before)


def test_applied_changes_the_model_and_gives_it_back(pipe, tmp_path):
    """Shifts, and a difference of one of the same weights beside them: both count."""
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    change = {f"unet.{path}.delta": delta for path, delta in random_shifts(pipe.unet, "UNet-CA").items()}
    bases, key = basis.Bases(pipe, tmp_path), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    with merging.applied(pipe, change, 0.5, bases):
        for name, value in pipe.unet.state_dict().items():
            touched = ".attn2." in name and name.endswith("weight")
            assert torch.equal(value, before[name]) != touched, name
        shifted = pipe.unet.state_dict()[key].clone()
    with merging.applied(pipe, change | {f"unet.{key}": torch.ones(before[key].shape)}, 0.5, bases):
        torch.testing.assert_close(pipe.unet.state_dict()[key], shifted + 0.5)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_full_weights_are_differences_from_the_base(pipe, tmp_path):
    other = tiny_sd(seed=1)
    other.unet.save_pretrained(tmp_path / "unet")
    change = merging.load(pipe, tmp_path)
    with merging.applied(pipe, change):
        torch.testing.assert_close(pipe.unet.conv_in.weight, other.unet.conv_in.weight)
    with merging.applied(pipe, combine.add([change, change], [0.25, 0.25])):
        middle = pipe.unet.conv_out.bias.clone()
    torch.testing.assert_close(middle, (pipe.unet.conv_out.bias + other.unet.conv_out.bias) / 2)


SHIFTS = "spectral_shifts.safetensors"
REFUSED = {  # file, its tensors and metadata, what is said
    "another base": (SHIFTS, {"conv_in.delta": torch.zeros(16)}, {"base": "f" * 32}, "another base model"),
    "another architecture": (SHIFTS, {"conv_middle.delta": torch.zeros(16)}, {}, "shifts conv_middle"),
    "another length": (SHIFTS, {"conv_in.delta": torch.zeros(15)}, {}, "15 values for conv_in"),
    "no shifts": (SHIFTS, {"conv_in.weight": torch.zeros(16)}, {}, "no spectral shifts"),
    "not vectors": (SHIFTS, {"conv_in.delta": torch.zeros(4, 4)}, {}, "no spectral shifts"),
    "empty": (SHIFTS, {}, {}, "cannot be read"),
    "NaN": (SHIFTS, {"conv_in.delta": torch.full((16,), torch.nan)}, {}, "NaN"),
    "another part": (SHIFTS, {"conv_in.delta": torch.zeros(16)}, {"part": "scheduler"}, "scheduler; shifts are of"),
    "LoRA of another layer": (merging.LORA_FILE, factors(LAYER.replace("to_k", "to_x")), {}, "no LoRA of this model"),
    "nothing": (merging.LORA_FILE, {}, None, "holds no spectral_shifts"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_in_one_sentence(pipe, tmp_path, kind):
    name, tensors, metadata, words = REFUSED[kind]
    save_file(tensors, tmp_path / name, metadata)
    for place in (tmp_path, tmp_path / name) if name == SHIFTS else (tmp_path,):
        refuses(words, merging.load, pipe, place)


def test_damaged_missing_and_foreign_trainings_are_refused(pipe, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"hello")
    refuses("cannot be read", merging.load, pipe, tmp_path / "a.safetensors")
    refuses("holds no spectral_shifts", merging.load, pipe, tmp_path)
    refuses("is missing", merging.load, pipe, tmp_path / "none")
    save_file(factors(), tmp_path / merging.LORA_FILE)
    assert len(merging.load(pipe, tmp_path)) == 1
    for config, words in (([], "is damaged"), ({"base": "abc"}, "does not name the base model"),
                          ({"base": {"unet": "f" * 32}}, "another base model")):  # fmt: skip
        write_json(tmp_path / "config.json", config)
        refuses(words, merging.load, pipe, tmp_path)
    (tmp_path / merging.LORA_FILE).write_bytes(b"hello")
    refuses("cannot be read", merging.load, pipe, tmp_path)
    pipe.unet.save_config(tmp_path / "unet")
    refuses("holds no weights|cannot be read", merging.load, pipe, tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"hello")
    refuses("holds no weights|cannot be read", merging.load, pipe, tmp_path)


def test_a_lora_is_told_by_its_keys_whatever_its_name(pipe, tmp_path):
    save_file(factors(), tmp_path / "my subject.safetensors")
    (change,) = merging.load(pipe, tmp_path / "my subject.safetensors").values()
    assert torch.equal(change, UP @ DOWN)
