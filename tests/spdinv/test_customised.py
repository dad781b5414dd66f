"""Adapters of other trainings in a pipeline: the weights and words that come out, in files with the published keys."""

import copy
import re
import unicodedata

import pytest
import torch
from safetensors.torch import save_file

from common.pipelines import encode_prompt
from spdinv import infer
from spdinv.customised.loading import from_compvis, load_adapter
from spdinv.customised.words import add_word
from spdinv.engines.alignment import find_word, refine_mapper, token_ids
from spdinv.engines.attention import hooked
from tests.common.test_lora import LAYER, factors, lora_file
from tests.refusing import refuses
from tests.small_data import Bomb
from tests.spdinv.test_infer import photograph
from tests.spdinv.toy import Onlooker, random
from tests.tiny import tiny_sd, tiny_sdxl


@pytest.fixture(scope="module")
def base():
    return tiny_sd()


@pytest.fixture
def pipe(base):
    return copy.deepcopy(base)


def weights_of(pipe):
    parts = ((part, getattr(pipe, part)) for part in ("unet", "text_encoder"))
    return {f"{part}.{name}": value.clone() for part, model in parts for name, value in model.named_parameters()}


def vectors_of(pipe, ids):
    return pipe.text_encoder.get_input_embeddings().weight[ids]


def test_a_word_is_its_vectors_and_later_tokens_move(base, pipe):
    vectors = random(3, 32)
    by_hand, prompt = copy.deepcopy(base), "a photo of a <dog-3> cat"
    ids = by_hand.tokenizer("a photo of a ! # $ cat", padding="max_length", max_length=77).input_ids
    by_hand.text_encoder.get_input_embeddings().weight[ids[5:8]] = vectors
    add_word(pipe, "<dog-3>", vectors)
    expected = by_hand.text_encoder(torch.tensor([ids]))[0]
    assert torch.equal(encode_prompt(pipe, [prompt]).embeds, expected)
    other = ["a red cat, on grass!"]
    assert torch.equal(encode_prompt(pipe, other).embeds, encode_prompt(base, other).embeds)
    # P2P's alignment sees one word of many tokens
    assert find_word(pipe.tokenizer, prompt, "<dog-3>") == [5, 6, 7]
    mapper, _ = refine_mapper(pipe.tokenizer, "a photo of a red cat", prompt)
    assert mapper[:9].tolist() == [0, 1, 2, 3, 4, -1, -1, -1, 6]
    for count in (1, 1, 2, 1):  # and may be taught anew
        vectors = random(count, 32, seed=count)
        add_word(pipe, "*", vectors)
        assert torch.equal(vectors_of(pipe, token_ids(pipe.tokenizer, "a white *")[3:-1]), vectors)


def test_which_text_is_the_word(pipe):
    plain = {text: token_ids(pipe.tokenizer, text) for text in ("a asks skss", "a cat")}
    for word in ("sks", "<cat>", "<cat>-like"):
        add_word(pipe, word, random(1, 32))
    sks, cat, like, comma = (pipe.tokenizer(word, add_special_tokens=False).input_ids
                             for word in ("sks", "<cat>", "<cat>-like", ","))  # fmt: skip
    assert [len(sks), len(cat), len(like)] == [1, 1, 1] and len({*sks, *cat, *like}) == 3
    start, a, end = token_ids(pipe.tokenizer, "a")
    assert token_ids(pipe.tokenizer, "A SKS, <Cat>  <cat>-like") == [start, a, *sks, *comma, *cat, *like, end]
    assert plain == {text: token_ids(pipe.tokenizer, text) for text in plain}


@pytest.mark.parametrize("word", ["CAF\u00c9", "cafe\u0301", "my  cat", "\ufb01sh", "*"])
def test_a_word_is_found_however_its_letters_are_composed(pipe, word):
    """As macOS names files, of which some words take theirs: é as two characters."""
    add_word(pipe, word, random(2, 32))
    for written in (word, *(unicodedata.normalize(form, word) for form in ("NFC", "NFD"))):
        ids = token_ids(pipe.tokenizer, f"a {written}")
        assert torch.equal(vectors_of(pipe, ids[2:-1]), random(2, 32)), written


def test_words_that_do_not_fit(pipe):
    wide, broken, one = random(48), random(2, 32) * float("nan"), random(32)
    for target, vectors, message in ((pipe, wide, r"shape \[1, 48\].*\[n, 32\]"), (pipe, broken, "NaN"),
                                     (tiny_sdxl(), one, "SDXL")):  # fmt: skip
        refuses(message, add_word, target, "<cat>", vectors)


def published_words(folder):
    """Textual Inversion of two vectors as diffusers and as A1111's webui write it, and where to find it."""
    vectors, a1111 = random(2, 32), {"string_to_token": {"*": 265}, "name": "<cat-toy>", "step": 499}
    torch.save({"<cat-toy>": vectors}, folder / "a.bin")
    torch.save({**a1111, "string_to_param": {"*": vectors.clone().requires_grad_()}}, folder / "b.pt")
    save_file({"emb_params": vectors}, folder / "<cat-toy>.safetensors")
    (folder / "training").mkdir()
    save_file({"<cat-toy>": vectors}, folder / "training" / "learned_embeds.safetensors")
    (folder / "alone").mkdir()
    torch.save({"<cat-toy>": vectors}, folder / "alone" / "mine.bin")
    (folder / "alone" / "._mine.bin").write_bytes(b"\0\5\x16\7")  # as macOS leaves them
    for stale in ("learned_embeds.bin", "learned_embeds-steps-500.bin"):
        torch.save({"<cat-toy>": vectors * 0}, folder / "training" / stale)
    return vectors


@pytest.mark.parametrize("name", ["a.bin", "b.pt", "<cat-toy>.safetensors", "training", "alone"])
def test_textual_inversion_files(pipe, tmp_path, name):
    vectors = published_words(tmp_path)
    assert load_adapter(pipe, tmp_path / name) == "the word <cat-toy> of 2 tokens"
    assert torch.equal(vectors_of(pipe, token_ids(pipe.tokenizer, "a <cat-toy>")[2:-1]), vectors)


def custom_layers(unet):
    """Trained keys and values by the path of their attn2, as random matrices."""
    paths = [path for path, _ in unet.named_modules() if path.endswith(".attn2")]
    shapes = {f"{path}.to_{x}": unet.get_submodule(f"{path}.to_{x}").weight.shape for path in paths for x in "kv"}
    return {name: random(*shape, seed=number) / 8 for number, (name, shape) in enumerate(shapes.items())}


def write_custom(folder, form, unet):
    layers, word = custom_layers(unet), random(32, seed=99)
    trained = {}
    for name, value in layers.items():
        path, _, projection = name.rpartition(".")
        trained[f"{path}.processor.{projection}_custom_diffusion.weight"] = value
    if form == "bin":  # as diffusers' example saves: with empty entries for self-attention
        empty = {path: {} for path in unet.attn_processors if ".attn1." in path}
        torch.save(empty | trained, folder / "pytorch_custom_diffusion_weights.bin")
        torch.save({"<new1>": word}, folder / "<new1>.bin")
    elif form == "safetensors":  # which cannot hold them; diffusers' own loader fails on this one
        save_file(trained, folder / "pytorch_custom_diffusion_weights.safetensors")
        save_file({"<new1>": word}, folder / "<new1>.safetensors")
    else:
        unet_keys = {f"{name}.weight": value for name, value in layers.items()}
        torch.save({"unet": unet_keys, "modifier_token": {"<new1>": word}}, folder / "delta.bin")
    return layers, word


@pytest.mark.parametrize("form", ["bin", "safetensors", "delta"])
def test_custom_diffusion_takes_the_place_of_keys_and_values(pipe, tmp_path, form):
    before = weights_of(pipe)
    layers, word = write_custom(tmp_path, form, pipe.unet)
    load_adapter(pipe, tmp_path)
    after = weights_of(pipe)
    table = "text_encoder.embeddings.token_embedding.weight"
    for name, value in after.items():
        own = layers.get(name.removeprefix("unet.").removesuffix(".weight"))
        if name != table:
            assert torch.equal(value, before[name] if own is None else own)
    assert torch.equal(after[table][: len(before[table])], before[table])
    assert torch.equal(after[table][token_ids(pipe.tokenizer, "<new1>")[1]], word)


def test_custom_diffusion_of_the_compvis_code(pipe, tmp_path):
    """The names of SD 1.x' 16 cross-attention layers in CompVis' layout and in diffusers', side by side."""
    theirs = [*(f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)), "middle_block.1"]
    theirs += [f"output_blocks.{i}.1" for i in range(3, 12)]
    ours = [f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)] + ["mid_block.attentions.0"]
    ours += [f"up_blocks.{level}.attentions.{i}" for level in (1, 2, 3) for i in range(3)]
    value, end = random(16, 32), ".transformer_blocks.0.attn2.to_k.weight"
    theirs = [f"model.diffusion_model.{name}{end}" for name in theirs]
    assert [from_compvis(name) for name in theirs] == [name + end for name in ours]
    torch.save({"state_dict": {theirs[0]: value, "embed": random(2, 32)}}, tmp_path / "delta.ckpt")
    assert load_adapter(pipe, tmp_path / "delta.ckpt") == "Custom Diffusion and <new1> and <new2>"
    assert torch.equal(pipe.unet.get_parameter(ours[0] + end), value)


@pytest.mark.parametrize("kind", ["lora", "custom diffusion"])
def test_under_the_hooks_the_customised_keys_and_values_act(base, pipe, tmp_path, kind):
    """Against diffusers' own layers, not merged: peft's for LoRA, CustomDiffusionAttnProcessor for Custom Diffusion."""
    theirs, ours = copy.deepcopy(base), pipe
    if kind == "lora":
        keys, _, expected = lora_file(ours, "peft")
        save_file(keys, tmp_path / "pytorch_lora_weights.safetensors")
        theirs.load_lora_weights(tmp_path, local_files_only=True)
    else:
        write_custom(tmp_path, "bin", ours.unet)
        theirs.unet.load_attn_procs(tmp_path, weight_name="pytorch_custom_diffusion_weights.bin",
                                   local_files_only=True, _pipeline=theirs)  # fmt: skip
        assert "CustomDiffusion" in type(next(iter(theirs.unet.attn_processors.values()))).__name__
    said, control = load_adapter(ours, tmp_path), Onlooker()
    assert kind != "lora" or said == f"LoRA of {len(expected)} layers"
    z, text = random(4, 4, 16, 16), random(4, 77, 32)
    with hooked(ours.unet, control), torch.no_grad():
        hooked_output = ours.unet(z, 500, text).sample
    with torch.no_grad():
        expected, plain = theirs.unet(z, 500, text).sample, base.unet(z, 500, text).sample
    assert len(control.seen) == len(ours.unet.attn_processors)
    torch.testing.assert_close(hooked_output, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 0.01


WRONG = {
    "no file": (None, "neither a file nor a folder"),
    "text": (b"hello", "cannot be read as weights"),
    "code": (lambda pipe, folder: {"<cat>": Bomb(folder / "exploded")}, "cannot be read as weights"),
    "list": ([1, 2], "none of LoRA, Custom Diffusion and Textual Inversion"),
    "model": (lambda pipe, _: dict(pipe.unet.state_dict()), "none of LoRA, Custom Diffusion and Textual Inversion"),
    "empty": ({}, "none of LoRA"),
    "wide word": ({"<cat>": torch.zeros(768)}, "shape [1, 768]"),
    "no vectors": ({"string_to_param": {}, "name": "x"}, "none of LoRA"),
    "other lora": (factors(LAYER.replace("to_k", "to_x")), "no LoRA of this model"),
    "other custom": ({"unet": {"mid_block.attn2.to_k.weight": torch.zeros(1)}}, "made for another model"),
    "a word of bytes": ({"<cat>": torch.ones(32, dtype=torch.uint8)}, "no plain tensor"),
    "a word of nothing": ({"<cat>": torch.zeros(0, 32)}, "shape [0, 32]"),
    "a word without name": ({" ": torch.zeros(32)}, "a learned word is called ' '"),
    "names that are numbers": ({5: torch.zeros(32)}, "none of LoRA"),
    "custom of lists": ({"a_custom_diffusion.weight": [1.0]}, "no plain tensor"),
    "custom without words": ({"unet": {}, "modifier_token": 5}, "holds int where named weights"),
    "custom and text": ({"unet": {}, "text_encoder": {}}, "also holds text_encoder"),
    "model folder": (None, "give it to --pretrained_model_name_or_path"),
    "empty folder": (None, "no adapter under a known name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_fit_nothing(pipe, tiny_folder, tmp_path, name):
    content, message = WRONG[name]
    before = weights_of(pipe)
    if isinstance(content, bytes):
        (tmp_path / "x.bin").write_bytes(content)
    elif content is not None:
        torch.save(content(pipe, tmp_path) if callable(content) else content, tmp_path / "x.bin")
    place = {"model folder": tiny_folder, "empty folder": tmp_path}.get(name, tmp_path / "x.bin")
    refuses(re.escape(message), load_adapter, pipe, place)
    assert not (tmp_path / "exploded").exists()
    if "lora" not in name:
        assert all(torch.equal(value, before[key]) for key, value in weights_of(pipe).items())


def test_infer_edits_with_a_learned_word(tiny_folder, tmp_path, capsys):
    published_words(tmp_path)
    base = ["--pretrained_model_name_or_path", str(tiny_folder), "--image_path", str(photograph(tmp_path / "in.png")),
            "--num_inference_steps", "3", "--inversion", "ddim", "--source_prompt", "a red cat", "--target_prompt",
            "a red <cat-toy>", "--blended_words", "cat", "<cat-toy>"]  # fmt: skip
    infer.main([*base, "--output_dir", str(tmp_path / "plain")])
    infer.main([*base, "--output_dir", str(tmp_path / "toy"), "--adapter", str(tmp_path / "a.bin")])
    assert "the word <cat-toy> of 2 tokens" in capsys.readouterr().out
    for name, same in (("reconstruction.png", True), ("edited.png", False)):
        assert ((tmp_path / "plain" / name).read_bytes() == (tmp_path / "toy" / name).read_bytes()) == same
