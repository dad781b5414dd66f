"""Shipped weights: load as any pipeline, are those that were trained, small enough, and no broken file.

Thresholds are floors; what the models reach is measured by `python -m common.picturebook.build --check`.
"""

import pytest
import torch
from safetensors import safe_open

from common.encoders import load_clip, load_dino
from common.picturebook import quality, shipping
from common.picturebook.classifier import AttributeClassifier, load_classifier
from common.picturebook.shipping import MODELS
from common.picturebook.stages.clip import new_clip
from common.picturebook.stages.dino import embed, new_dino
from common.picturebook.stages.unet import new_unet
from common.picturebook.stages.vae import new_vae
from common.pipelines import encode_prompt, is_picturebook, load_pipeline, native_resolution


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def test_files_fit_into_a_repository():
    sizes = [path.stat().st_size for path in MODELS.rglob("*") if path.is_file()]
    assert max(sizes) <= 15_000_000 and sum(sizes) <= 40_000_000


@torch.no_grad()
def test_the_vae_of_the_default_pipeline_gives_scenes_back_from_latents_of_about_unit_variance(pipe):
    assert is_picturebook(pipe) and pipe.vae_scale_factor == 4 and pipe.unet.config.sample_size == 16
    pictures = quality.drawn(quality.held_out_scenes(16, 1))
    latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mean
    made = pipe.vae.decode(latents).sample / 2 + 0.5
    assert quality.psnr(made.clamp(0, 1), pictures).mean() > 28
    assert 0.8 < (latents * pipe.vae.config.scaling_factor).std() < 1.2


def test_the_classifier_reads_drawn_scenes_of_seen_and_unseen_pairs():
    for unseen in (False, True):
        scenes = quality.held_out_scenes(60, 1, unseen)
        assert quality.share(quality.pairs_seen(scenes, quality.drawn(scenes), load_classifier())) > 90


def test_the_unet_hears_the_background(pipe):
    prompts = [f"a red house {place}" for place in ("in a meadow", "by the sea", "in a room", "in a desert")]
    readings = load_classifier().read(quality.generate(pipe, prompts))
    assert [reading.background for reading in readings] == ["meadow", "sea", "room", "desert"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole models folder of random weights, and the networks it was made from."""
    torch.manual_seed(0)
    models = tmp_path_factory.mktemp("models")
    tokenizer = shipping.ship_tokenizer_and_scheduler(models)
    parts = {"vae": new_vae(), "unet": new_unet(), "clip": new_clip(tokenizer), "dino": new_dino()}
    parts["classifier"] = AttributeClassifier()
    shipping.ship_vae(parts["vae"], 0.4321, models)
    shipping.ship_unet(parts["unet"], models)
    shipping.ship_clip(parts["clip"], tokenizer, models)
    shipping.ship_dino(parts["dino"], models)
    shipping.ship_classifier(parts["classifier"], models)
    return models, {name: part.eval() for name, part in parts.items()}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    """Equal up to the float16 in which weights are shipped."""
    assert (a - b).abs().max() < 0.02 * b.abs().max()


@torch.no_grad()
def test_the_pipeline_has_the_trained_networks(made):
    models, parts = made
    with safe_open(models / "text_encoder" / "model.safetensors", "pt") as file:  # under the published names
        assert {"text_model.embeddings.token_embedding.weight",
                "text_model.encoder.layers.0.self_attn.q_proj.weight"} <= set(file.keys())  # fmt: skip
    pipe = load_pipeline(str(models))
    assert is_picturebook(pipe) and native_resolution(pipe) == 64
    assert pipe.vae.config.scaling_factor == 0.4321
    z, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 128)
    close(pipe.unet(z, 500, context).sample, parts["unet"](z, 500, context).sample)
    close(pipe.vae.decode(z).sample, parts["vae"].decode(z).sample)
    ids = pipe.tokenizer("a red cat", padding="max_length", return_tensors="pt").input_ids
    close(encode_prompt(pipe, ["a red cat"]).embeds, parts["clip"].text_model(ids).last_hidden_state)


@torch.no_grad()
def test_the_encoders_have_the_trained_networks(made, monkeypatch):
    models, parts = made
    monkeypatch.setattr("common.encoders.PICTUREBOOK_FOLDER", models)
    pictures = torch.rand(2, 3, 64, 64).mul(255).round() / 255
    expected = parts["clip"].get_image_features(pictures * 2 - 1).pooler_output
    close(load_clip("picturebook").embed(pictures), torch.nn.functional.normalize(expected, dim=1))
    seen = load_dino("picturebook").embed(pictures)
    close(torch.nn.functional.normalize(seen, dim=1), embed(parts["dino"], pictures))
    classifier = load_classifier(folder=models / "classifier")
    close(classifier(pictures)["pairs"], parts["classifier"](pictures)["pairs"])
