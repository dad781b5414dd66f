"""svdiff.train from end to end on a small random model: files, exact resume, modes, wrong input."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from common.pipelines import encode_image, encode_prompt, load_pipeline
from common.training import load_pictures, step_generator
from svdiff import editing, merging, samples
from svdiff.options import Concept, class_folder
from svdiff.samples import Source, draw_batch
from svdiff.train import main
from tests.small_data import write_noise
from tests.tiny import tiny_sdxl


@pytest.fixture
def pictures(tmp_path):
    """Two subjects of three pictures, and three class pictures each, so that none has to be drawn."""
    for seed, name in enumerate(("cat", "dog", "cats", "dogs")):
        write_noise(tmp_path / name, [(64, 70)] * 3, seed)
    return tmp_path


@pytest.fixture
def train(tiny_folder, pictures, tmp_path, tmp_path_factory, monkeypatch):
    original = editing.draw  # two steps in place of fifty
    monkeypatch.setattr(editing, "draw", lambda pipe, prompt, seeds, how, *rest: original(
        pipe, prompt, seeds, editing.Sampling(2), *rest))  # fmt: skip
    one = ["--instance_data_dir", str(pictures / "cat"), "--instance_prompt", "photo of a sks cat", "--class_prompt",
           "photo of a cat", "--class_data_dir", str(pictures / "cats")]  # fmt: skip

    def run(name, *more, subject=one):
        main(["--pretrained_model_name_or_path", str(tiny_folder), "--num_class_images", "3", "--basis_dir",
              str(tmp_path_factory.getbasetemp() / "basis"), "--device", "cpu", "--num_validation_images", "1",
              "--learning_rate_1d", "1e-3", *subject, "--output_dir", str(tmp_path / name), *more])  # fmt: skip
        return tmp_path / name

    return run


def weights(folder):
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def same(one, two):
    return one.keys() == two.keys() and all(
        one[name].keys() == two[name].keys() and all(torch.equal(one[name][key], two[name][key]) for key in one[name])
        for name in one
    )


def loss_of(folder):
    return json.loads((folder / "metrics.json").read_text())["loss"]


def test_files_and_what_they_change(train, tiny_folder):
    output = train("run", "--max_train_steps", "2", "--learning_rate_1d", "1e-5")
    names = {"spectral_shifts.safetensors", "spectral_shifts_te.safetensors", "config.json", "metrics.json", "grid.png"}
    assert {path.name for path in output.iterdir()} == names
    config, metrics = (json.loads((output / name).read_text()) for name in ("config.json", "metrics.json"))
    assert config["learning_rate"] == 1e-3 and config["with_prior_preservation"]
    assert set(config["base"]) == {"unet", "text_encoder"} and config["validation_prompt"] == "photo of a sks cat"
    shifts = weights(output)
    assert metrics["trained_numbers"] == sum(value.numel() for file in shifts.values() for value in file.values())
    matrix, norm = (shifts["spectral_shifts.safetensors"][f"{name}.delta"] for name in ("conv_in", "conv_norm_out"))
    assert 1e-3 < matrix.abs().max() <= 2.1e-3 and 0 < norm.abs().max() <= 2.1e-5  # Adam: about a rate per step
    change = merging.load(load_pipeline(tiny_folder, "cpu"), output)
    assert {name.partition(".")[0] for name in change} == {"unet", "text_encoder"}


def test_subset_without_text_encoder(train):
    output = train("ca", "--max_train_steps", "1", "--parameter_subset", "UNet-CA-KV", "--no-train_text_encoder",
                   "--no-with_prior_preservation", "--gradient_checkpointing", "--mixed_precision", "bf16")  # fmt: skip
    shifts = weights(output)
    assert set(shifts) == {"spectral_shifts.safetensors"}
    assert all(key.endswith(("attn2.to_k.delta", "attn2.to_v.delta")) for key in shifts["spectral_shifts.safetensors"])
    assert all(value.dtype == torch.float32 for value in shifts["spectral_shifts.safetensors"].values())


def test_stable_diffusion_xl_in_bfloat16(train, tmp_path):
    """All parts and all kinds of layers, in half precision, with spectra in float32."""
    tiny_sdxl(tmp_path / "xl")
    found = weights(train("run", "--pretrained_model_name_or_path", str(tmp_path / "xl"), "--mixed_precision", "bf16",
                          "--max_train_steps", "1"))  # fmt: skip
    assert set(found) == {f"spectral_shifts{part}.safetensors" for part in ("", "_te", "_te_2")}
    for file in found.values():
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in file.values())
    for part, layer in (("", "add_embedding.linear_1"), ("_te", "text_model.embeddings.token_embedding"),
                        ("_te_2", "text_model.text_projection")):  # fmt: skip
        assert found[f"spectral_shifts{part}.safetensors"][f"{layer}.delta"].abs().max() > 5e-4


@pytest.mark.parametrize("space, file", [("full", "unet"), ("lora", "pytorch_lora_weights.safetensors")])
def test_other_parameter_spaces_are_loaded_as_changes_of_weights(train, tiny_folder, space, file):
    output = train(space, "--parameter_space", space, "--max_train_steps", "2", "--learning_rate", "1e-3")
    assert (output / file).exists()
    pipe = load_pipeline(tiny_folder, "cpu")
    change, name = merging.load(pipe, output), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert 0 < change[f"unet.{name}"].abs().max() < 0.1
    with merging.applied(pipe, change):
        tuned = pipe.unet.state_dict()[name].clone()
    if space == "lora":
        loaded = load_pipeline(tiny_folder, "cpu")
        loaded.load_lora_weights(output)
        loaded.fuse_lora()
        loaded.unload_lora_weights()
        torch.testing.assert_close(loaded.unet.state_dict()[name], tuned)
    else:
        assert any(name.startswith("text_encoder.") for name in change)
        torch.testing.assert_close(load_file(output / "unet" / "diffusion_pytorch_model.safetensors")[name], tuned)


def concepts_list(pictures, count=2):
    entries = [
        {"instance_data_dir": str(pictures / name), "instance_prompt": f"photo of a {token} {name}",
         "class_data_dir": str(pictures / f"{name}s"), "class_prompt": f"photo of a {name}"}
        for token, name in (("sks", "cat"), ("qwe", "dog"))
    ]  # fmt: skip
    (pictures / "concepts.json").write_text(json.dumps(entries[:count]))
    return ["--concepts_list", str(pictures / "concepts.json")]


@pytest.mark.parametrize("space", ["svdiff", "full"])
def test_two_subjects_with_cut_mix_and_unmix(train, pictures, space):
    two = concepts_list(pictures)
    more = ["--parameter_space", space, "--max_train_steps", "2", "--cut_mix_unmix_prob", "1"]
    plain = train("plain", *more, subject=two)
    unmixed = train("unmixed", *more, "--unmix_weight", "100", subject=two)
    folder = "unet" if space == "full" else "."
    assert not same(weights(plain / folder), weights(unmixed / folder))
    concepts = json.loads((plain / "config.json").read_text())["concepts"]
    assert [concept["instance_prompt"] for concept in concepts] == ["photo of a sks cat", "photo of a qwe dog"]


def test_one_picture_is_trained_without_prior(train, pictures):
    one = ["--image_path", str(pictures / "cat" / "0.png"), "--instance_prompt", "photo of a sks cat"]
    output = train("edit", "--max_train_steps", "1", subject=one)
    assert json.loads((output / "config.json").read_text())["with_prior_preservation"] is False


ONE = "ONE"  # in place of the flags of one subject: a list of one
WRONG = [
    (["--unmix_weight", "1"], "--concepts_list"),
    ([ONE, "--unmix_weight", "1"], "has only one"),
    ([ONE, "--unmix_weight", "1", "--cut_mix_unmix_prob", "0"], "above 0"),
    (["--image_path", __file__], "leave out --instance_data_dir"),
    (["--concepts_list", "/nowhere.json"], "leave out --instance_data_dir"),
    (["--parameter_space", "lora", "--parameter_subset", "UNet-1D"], "leave it out with lora"),
    (["--parameter_space", "lora", "--train_text_encoder"], "leave out --train_text_encoder"),
    (["--resolution", "60"], "no multiple of 8"),
    (["--subject", "cat"], "--subject is one of the picturebook's"),
]


@pytest.mark.parametrize("more, words", WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_wrong_input_is_one_sentence_and_leaves_nothing(train, pictures, tmp_path, refused, more, words):
    if ONE in more:
        refused(words, train, "out", *more[1:], subject=concepts_list(pictures, 1))
    else:
        refused(words, train, "out", *more)
    assert not (tmp_path / "out").exists()


CAT = {"instance_data_dir": "HERE", "instance_prompt": "a cat", "class_prompt": "a cat"}
CONCEPTS = [
    ([], "list of objects"), ({"a": 1}, "list of objects"), ("[", "not a JSON file"),
    ([{"instance_dir": "HERE"}], "there is no instance_dir"),
    ([{"instance_data_dir": "HERE"}], "instance_prompt is missing"),
    ([CAT | {"class_prompt": " "}], "class_prompt is missing"),
    ([CAT | {"instance_data_dir": "/nowhere"}], "no folder"),
    ([CAT | {"class_data_dir": 5}], "text"),
    ([CAT] * 2, "own token"),
    ([CAT | {"instance_prompt": f"a sks cat{more}"} for more in (" statue", " ")], "is a part of 'a sks cat statue'"),
    ([CAT | {"instance_prompt": f"a {word} cat " + "very " * 40} for word in ("sks", "qwe")],
     "longer than this model's 77 tokens"),
]  # fmt: skip


def test_the_loss_is_eq_3(train, tiny_folder, pictures):
    """The mean squared error of the subject's noise, and lambda times that of the class's, read anew from the draws."""
    output = train("one", "--max_train_steps", "1", "--prior_loss_weight", "3", "--parameter_subset", "Mid-CA",
                   "--no-train_text_encoder")  # fmt: skip
    pipe, generator = load_pipeline(tiny_folder, "cpu"), step_generator(0, 0)
    concept = Concept("", "photo of a sks cat", None, "photo of a cat")
    instances, classes = ([load_pictures(pictures / name, 64)] for name in ("cat", "cats"))
    batch = draw_batch(Source([concept], instances, classes, 64), 1, generator, 0)
    with torch.no_grad():
        z = pipe.vae.encode(batch.pictures * 2 - 1).latent_dist.sample(generator) * 0.18215
        noise, t = torch.randn(z.shape, generator=generator), torch.randint(1000, (2,), generator=generator)
        a = pipe.scheduler.alphas_cumprod[t][:, None, None, None]
        words = pipe.encode_prompt(batch.prompts, "cpu", 1, False)[0]
        errors = (pipe.unet(a**0.5 * z + (1 - a) ** 0.5 * noise, t, words).sample - noise).double() ** 2
    expected = errors[0].mean() + 3 * errors[1].mean()
    assert loss_of(output) == pytest.approx(float(expected), rel=1e-4)


def test_what_comes_again_unchanged_is_encoded_once(tiny_folder, pictures, monkeypatch):
    pipe = load_pipeline(tiny_folder, "cpu")
    texts, seen, original = [], [], pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: seen.append(len(x)) or original(x))
    monkeypatch.setattr(samples, "encode_prompt", lambda pipe, prompts, size: texts.append(prompts) or encode_prompt(
        pipe, prompts, size))  # fmt: skip
    concept = Concept("", "a sks cat", None, "a cat")
    stock = [[load_pictures(pictures / name, 64)] for name in ("cat", "cats")]
    fixed = Source([concept], *stock, 64, center_crop=True)
    for frozen, source in ((False, fixed), (True, replace(fixed, center_crop=False)), (True, fixed)):
        encoder, found = samples.Encoder(pipe, 64, frozen), []
        seen.clear(), texts.clear()
        for step in range(4):
            batch = draw_batch(source, 2, step_generator(0, step), step)
            found.append(encoder.latents(batch, step_generator(1, step)))
            plain = encode_image(pipe, batch.pictures, sample=True, generator=step_generator(1, step))
            torch.testing.assert_close(found[-1], plain, rtol=1e-4, atol=1e-4)
            cond = encoder.conditioning(batch.prompts)
            torch.testing.assert_close(cond.embeds, encode_prompt(pipe, batch.prompts).embeds, rtol=1e-4, atol=1e-4)
        assert sum(seen) - 16 == (6 if source.center_crop else 16)  # 16 of them by encode_image
        assert texts == ([["a sks cat"], ["a cat"]] if frozen else [["a sks cat", "a cat"]] * 4)


def test_the_share_of_dead_shifts_is_told(train):
    output = train("run", "--max_train_steps", "2", "--learning_rate", "0.5")
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 < metrics["dead_unet"] < 1 and 0 < metrics["dead_text_encoder"] < 1
    full = train("full", "--max_train_steps", "1", "--parameter_space", "full")
    assert "dead_unet" not in json.loads((full / "metrics.json").read_text())


def test_another_training_is_never_replaced_silently(train, pictures, tmp_path, refused):
    before = weights(train("run", "--max_train_steps", "1"))
    for words, said in ((["--seed", "3"], "seed"), (["--no-train_text_encoder"], "train_text_encoder"),
                        (["--instance_data_dir", str(pictures / "dog")], "training pictures")):  # fmt: skip
        said = f"_te.safetensors of another run (other {said})"
        refused(said, train, "run", "--max_train_steps", "1", *words)
    assert same(before, weights(train("run", "--max_train_steps", "1")))  # the same one again
    for place in ("unet", "pytorch_lora_weights.safetensors", "spectral_shifts_te_2.safetensors"):  # without a config
        (tmp_path / place / place).mkdir(parents=True)
        refused(f"holds {place} of another run", train, place)


def test_class_pictures_of_other_prompts_and_models_lie_apart():
    long = "a cat " * 20
    folders = {class_folder(prompt, model, 64) for prompt in ("a cat", "A cat", "a-cat", long + "1", long + "2")
               for model in "ab"}  # fmt: skip
    assert len(folders) == 10 and class_folder("a cat", "a", 64) == class_folder("a cat", "a", 64)


@pytest.mark.parametrize("entries, words", CONCEPTS)
def test_wrong_concepts(train, pictures, tmp_path, refused, entries, words):
    text = entries if isinstance(entries, str) else json.dumps(entries).replace("HERE", str(pictures / "cat"))
    (tmp_path / "list.json").write_text(text)
    refused(words, train, "out", subject=["--concepts_list", str(tmp_path / "list.json")])
    assert not (tmp_path / "out").exists()
