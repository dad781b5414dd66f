"""From names and folders to whole models: published layouts, variants, damage, the hub's cache."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from common import model_files
from common.ddim import make_schedule
from common.pipelines import encode_prompt, is_picturebook, load_pipeline, native_resolution, predict_noise
from tests.published import write_sd, write_sdxl
from tests.refusing import refuses
from tests.small_data import Bomb
from tests.tiny import WORDS, tiny_sd, tiny_sdxl, write_tokenizer

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
TEXT_FILE = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd"
    return folder, tiny_sd(folder)


@pytest.fixture()
def folder(saved, tmp_path):
    """A copy of the saved model that a test may damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "model"))


def assert_same_weights(pipe, other):
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipe, part).state_dict(), getattr(other, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key].cpu(), theirs[key]) for key in ours)


def test_load_a_saved_folder_in_the_dtype_asked_for(saved, tmp_path):
    pipe = load_pipeline(saved[0], device="cpu")
    assert_same_weights(pipe, saved[1])
    assert native_resolution(pipe) == 64 and not is_picturebook(pipe) and not is_picturebook(tiny_sd())
    models = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert not any(model.training or any(w.requires_grad for w in model.parameters()) for model in models)
    assert make_schedule(pipe.scheduler, 50).timesteps[0] == 981
    tiny_sd().to(dtype=torch.float16).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.float32), (torch.float16, torch.float16)):
        pipe = load_pipeline(tmp_path, dtype=dtype)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {expected}


@pytest.mark.parametrize("beside", [None, "non_ema"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shard", ["10GB", "100KB"])
def test_variants_of_the_weights_in_the_layouts_that_diffusers_writes(saved, tmp_path, variant, beside, shard):
    saved[1].save_pretrained(tmp_path, variant=None if beside else variant)
    shutil.rmtree(tmp_path / "unet")
    saved[1].unet.save_pretrained(tmp_path / "unet", variant=variant, max_shard_size=shard)
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == (shard == "100KB")
    if beside:  # of the same kind, and not to be loaded
        other = tmp_path / "unet" / f"diffusion_pytorch_model.{beside}.safetensors"
        save_file({"other": torch.zeros(1)}, other, metadata={"format": "pt"})
    assert_same_weights(load_pipeline(tmp_path), saved[1])


@pytest.mark.parametrize("name, content", [
    *((name, b"\0\5\x16\7\0\2\0\0") for name in ("unet/._config.json", "tokenizer/._v.json",
                                                  "unet/._diffusion_pytorch_model.safetensors")),
    ("samples/prompts.json", b'["a cat"]'), ("tokenizer/tokenizer_config.json", None),
])  # fmt: skip
def test_what_is_none_of_the_models_files_is_left_alone_and_the_tokenizers_may_lack(saved, folder, name, content):
    """Then it takes the limit of the text encoder."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content) if content else (folder / name).unlink()
    pipe = load_pipeline(folder)
    assert_same_weights(pipe, saved[1])
    assert pipe.tokenizer.model_max_length == 77
    assert torch.equal(encode_prompt(pipe, ["a cat"]).embeds, encode_prompt(saved[1], ["a cat"]).embeds)


@pytest.mark.parametrize("end_token", ["own", 2])
def test_pooled_text_of_sdxl_is_that_of_the_end_token_with_a_learned_word(tmp_path, end_token):
    tiny_sdxl(tmp_path)
    if end_token == 2:  # as published
        edit_json(tmp_path / "text_encoder_2" / "config.json", eos_token_id=2, bos_token_id=0)
    pipe = load_pipeline(tmp_path, device="cpu")
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        tokenizer.add_tokens("<new1>")
        encoder.resize_token_embeddings(len(tokenizer))
    for prompt in ("a cat on grass", "a <new1> on grass"):
        ids = pipe.tokenizer_2(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        hidden = pipe.text_encoder_2(ids, output_hidden_states=True).last_hidden_state
        at_end = pipe.text_encoder_2.text_projection(hidden[0, ids[0].tolist().index(pipe.tokenizer_2.eos_token_id)])
        torch.testing.assert_close(encode_prompt(pipe, [prompt]).added["text_embeds"][0], at_end)


@pytest.mark.parametrize("name, said", [
    *((name, "No folder") for name in ("./nowhere", "/no/where", "no/such/folder", "nowhere", "~/nowhere-at-all")),
    ("ckpt/v1-5.safetensors", "is a file; a folder in diffusers layout is needed"),
    ("ckpt/v15", r"did you mean ckpt/v1-5\?"),
])  # fmt: skip
def test_what_is_no_folder_is_not_taken_for_a_hub_id(saved, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt" / "v1-5").mkdir(parents=True)
    (tmp_path / "ckpt" / "v1-5.safetensors").touch()
    refuses(said, load_pipeline, name)


@pytest.mark.parametrize("layout", ["flat", "text_model"])
def test_text_encoder_names_with_and_without_their_prefix(saved, folder, layout):
    names = {key.removeprefix("text_model."): value for key, value in load_file(folder / TEXT_FILE).items()}
    if layout == "text_model":
        names = {"text_model." + key: value for key, value in names.items()}
    save_file(names, folder / TEXT_FILE, metadata={"format": "pt"})
    pipe = load_pipeline(folder, device="cpu")
    assert torch.equal(encode_prompt(pipe, ["a red cat"]).embeds, encode_prompt(saved[1], ["a red cat"]).embeds)


COUNTS = {
    "sd": {"unet": 686, "vae": 248, "text_encoder": 197},
    "sdxl": {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 517},
}


@pytest.mark.parametrize("write, kind, side", [(write_sd, "sd", 512), (write_sdxl, "sdxl", 1024)])
def test_published_folders(tmp_path, write, kind, side):
    """No weight may stay at its random start: each loaded tensor is the file's, each of the file's is used."""
    files = write(tmp_path)
    assert {part: len(tensors) for part, tensors in files.items()} == COUNTS[kind]
    pipe = load_pipeline(tmp_path, device="cpu")
    files["text_encoder"].pop("text_model.embeddings.position_ids", None)  # a constant
    renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"} if kind == "sd" else {}
    for part, tensors in files.items():
        loaded = {name.removeprefix("text_model."): value for name, value in getattr(pipe, part).state_dict().items()}
        expected = {}
        for name, tensor in tensors.items():
            words = name.removeprefix("text_model.").split(".")
            expected[".".join(renamed.get(word, word) if part == "vae" else word for word in words)] = tensor
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert native_resolution(pipe) == side
    schedule = make_schedule(pipe.scheduler, 50)
    assert schedule.timesteps[0] == 981 and schedule.final_alpha_bar == pytest.approx(0.99915)
    z, cond = torch.randn(1, 4, 16, 16), encode_prompt(pipe, ["a cat"])
    assert predict_noise(pipe, schedule, z, 981, cond).isfinite().all()


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_pickled_weights_load_as_plain_tensors_and_code_in_them_is_refused(saved, folder, tmp_path, file):
    for path in folder.glob("*/*.safetensors"):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    assert_same_weights(load_pipeline(folder), saved[1])
    torch.save({"conv_in.weight": Bomb(tmp_path / "boom")}, folder / file)
    refuses("Cannot load", load_pipeline, folder)
    assert not (tmp_path / "boom").exists()


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_weight(path):
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def not_finite(path, value):
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[-1] = value
    save_file(weights, path, metadata={"format": "pt"})


def other_tokenizer(folder):
    shutil.rmtree(folder)
    write_tokenizer(folder, [*WORDS, "tokens", "without", "rows"])


def other_levels(path, kind):
    edit_json(path, scheduler=["diffusers", kind])
    getattr(diffusers, kind)().save_pretrained(path.parent / "scheduler")


def letters_alone(folder):
    """A merges.txt that was cut short."""
    shutil.rmtree(folder)
    lines = (write_tokenizer(folder) / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(lines[: len(lines) // 2]))


def inpainting(folder):
    unet = tiny_sd().unet
    type(unet).from_config(unet.config, in_channels=9).save_pretrained(folder)


@pytest.mark.parametrize("part, damage, wrong", [
    ("model_index.json", Path.unlink, "model_index.json"), ("model_index.json", cut, "not valid JSON"),
    ("model_index.json", lambda p: p.write_text("[1]"), "not valid"),
    ("model_index.json", lambda p: edit_json(p, _class_name="FluxPipeline"), "FluxPipeline; supported"),
    ("model_index.json", lambda p: edit_json(p, _class_name=["pipeline", "Mine"]), "supported"),
    (UNET_FILE, cut, "damaged or cut short"), (TEXT_FILE, lambda p: cut(p, keep=0.001), "damaged or cut short"),
    (UNET_FILE, Path.unlink, "holds no weights"), ("vae", shutil.rmtree, "holds no weights"),
    ("vae/config.json", cut, "not valid JSON"), ("unet/config.json", Path.unlink, "Cannot load"),
    ("tokenizer/tokenizer_config.json", cut, "not valid JSON"), ("tokenizer", shutil.rmtree, "holds no vocabulary"),
    ("tokenizer", other_tokenizer, "belong to different models"), ("unet", inpainting, "inpainting"),
    ("scheduler/scheduler_config.json", lambda p: edit_json(p, prediction_type="flow"), "predicts 'flow'"),
    ("scheduler/scheduler_config.json", lambda p: p.write_text('{"_class_name": "DDIMScheduler"}'),
     "does not say the model's noise levels"),
    ("scheduler", shutil.rmtree, "Cannot load"),
    ("model_index.json", lambda p: edit_json(p, scheduler=["diffusers", "Nobody"]), "Cannot load"),
    *((file, partial(not_finite, value=value), f"{file} holds NaN or infinity in ") for value in (math.nan, math.inf)
      for file in (UNET_FILE, TEXT_FILE)),
    *(("model_index.json", partial(other_levels, kind=kind), f"{kind} has no noise levels")
      for kind in ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler")),
    ("text_encoder/config.json", lambda p: edit_json(p, num_hidden_layers=2), "knows nothing: they are of two models"),
    ("tokenizer", letters_alone, "merges.txt is cut short"),
    *(("tokenizer/tokenizer_config.json", lambda p, limit=limit: edit_json(p, model_max_length=limit), "tokens of a pr")
      for limit in (-5, 1, "x")),
    *(("vae/config.json", lambda p, wrong=wrong: edit_json(p, **wrong), "scaling_factor that is none, or means")
      for wrong in ({"scaling_factor": None}, {"scaling_factor": 0}, {"scaling_factor": math.nan},
                    {"shift_factor": "x"}, {"latents_mean": [0.1] * 4})),
    (UNET_FILE, without_weight, "lacks 1 of the model's weights, conv_in.weight"),
    ("unet/config.json", lambda p: edit_json(p, block_out_channels=[16, 32, 64]), "Cannot load"),
])  # fmt: skip
def test_damaged_folders_and_other_models_end_in_one_sentence(folder, part, damage, wrong):
    damage(folder / part)
    refuses(wrong, load_pipeline, folder)


def test_a_model_that_does_not_say_its_side_is_asked_for_it(folder):
    for side in (0, None):
        edit_json(folder / "unet" / "config.json", sample_size=side)
        refuses(f"says {side} for sample_size", native_resolution, load_pipeline(folder))
    refuses("says None for sample_size", native_resolution, load_pipeline(folder))


def test_unknown_hub_ids_stay_off_the_network_when_told(monkeypatch):
    refuses("neither a folder nor whole in the local cache", load_pipeline, "nobody/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    moved = "runwayml/stable-diffusion-v1-5 has left the hub.*stable-diffusion-v1-5/sta"
    refuses(moved, load_pipeline, "runwayml/stable-diffusion-v1-5")


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_vanished_ids_are_found_in_the_cache_under_either_name(saved, monkeypatch, tmp_path, name):
    repo = tmp_path / ("models--" + name.replace("/", "--"))  # where the hub's client keeps a model of this name
    place = Path(shutil.copytree(saved[0], repo / "snapshots" / "abc"))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_weights(load_pipeline("runwayml/stable-diffusion-v1-5"), saved[1])
    edit_json(place / "model_index.json", _class_name="FluxPipeline")
    # the real reason, also offline
    refuses("holds a FluxPipeline; supported are", load_pipeline, name)
    edit_json(place / "model_index.json", _class_name="StableDiffusionPipeline")
    (place / UNET_FILE).unlink()  # an interrupted download
    refuses("not|nor whole", load_pipeline, "runwayml/stable-diffusion-v1-5")


W = torch.ones(3)
NO_WEIGHTS = {
    "a list": ([W], "holds list"), "a number": ({"a": 1.0}, "'a' is no plain"), "a number as name": ({5: W}, "'5'"),
    "bytes": ({"a": W.byte()}, "no plain"), "truth": ({"a": W > 0}, "no plain"), "complex": ({"a": W + 1j}, "no plain"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "no plain"), "none": ({"a": torch.empty(3, device="meta")}, "no plain"),
    "NaN": ({"a": W, "b": W * torch.nan}, "NaN or infinity in b"),
    "float8 NaN": ({"a": (W * torch.nan).to(torch.float8_e4m3fn)}, "NaN or infinity in a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_cannot_be_weights_is_refused_and_every_floating_type_and_a_whole_alpha_pass(kind):
    weights, said = NO_WEIGHTS[kind]
    refuses(said, model_files.check_weights, Path("x.bin"), weights)
    types = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    model_files.check_weights(Path("x"), {str(kind): W.to(kind) for kind in types} | {"q.alpha": torch.tensor(16)})
