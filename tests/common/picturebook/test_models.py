"""The shipped weights: small enough, loadable by the name picturebook, and good at what each is for.

Thresholds are floors that catch a broken file or a mismatch of parts; the bars that the models are to reach, and what
they reach, are measured by `python -m common.picturebook.build --check`.
"""

import pytest
import torch

from common.encoders import load_encoders
from common.metrics import lpips_distance, structure_distance
from common.picturebook import quality
from common.picturebook.classifier import load_classifier
from common.picturebook.shipping import MODELS
from common.pipelines import is_picturebook, load_pipeline
from spdinv.editing import edit_picture
from spdinv.options import Method


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def test_files_fit_into_a_repository():
    sizes = {path.name: path.stat().st_size for path in MODELS.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= 15_000_000
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 40_000_000


def test_picturebook_is_the_default_pipeline(pipe):
    assert is_picturebook(pipe) and pipe.vae_scale_factor == 4 and pipe.unet.config.sample_size == 16


@torch.no_grad()
def test_the_vae_gives_scenes_back(pipe):
    pictures = quality.drawn(quality.held_out_scenes(16, 1))
    made = pipe.vae.decode(pipe.vae.encode(pictures * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    assert quality.psnr(made.clamp(0, 1), pictures).mean() > 28


@torch.no_grad()
def test_latents_have_about_unit_variance(pipe):
    pictures = quality.drawn(quality.held_out_scenes(16, 2))
    latents = pipe.vae.encode(pictures * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    assert 0.8 < latents.std() < 1.2


def test_the_classifier_reads_drawn_scenes_of_seen_and_unseen_pairs():
    for unseen in (False, True):
        scenes = quality.held_out_scenes(60, 1, unseen)
        assert quality.share(quality.pairs_seen(scenes, quality.drawn(scenes), load_classifier())) > 90


def test_clip_finds_the_right_caption_among_wrong_colors():
    encoders = load_encoders("picturebook")
    scenes = [s for s in quality.held_out_scenes(60, 1) if (s.light, s.style) == ("day", "plain")]
    right = [quality.plain_words(scene) for scene in scenes]
    colors = [scene.things[0].color for scene in scenes]
    wrong = [
        text.replace(color, "purple" if color != "purple" else "green")
        for text, color in zip(right, colors, strict=True)
    ]
    text = encoders.clip.embed_text(right), encoders.clip.embed_text(wrong)
    picture = encoders.clip.embed(quality.drawn(scenes))
    closer = (picture * text[0]).sum(1) > (picture * text[1]).sum(1)
    assert closer.float().mean() > 0.9


def test_distances_grow_with_the_change():
    encoders = load_encoders("picturebook")
    scenes = quality.held_out_scenes(12, 1)
    pictures = quality.drawn(scenes)
    near = quality.drawn([s.with_thing(0, size=s.things[0].size * 1.05) for s in scenes])
    far = quality.drawn([s.with_thing(0, x=s.things[0].x - 0.2, size=s.things[0].size * 0.6) for s in scenes])
    for distance in (
        lambda a, b: lpips_distance(a, b, encoders.lpips),
        lambda a, b: structure_distance(a, b, encoders.dino),
    ):
        assert distance(pictures, pictures).abs().max() < 1e-6
        assert (distance(pictures, near) < distance(pictures, far)).all()


def test_ddim_inversion_comes_back_to_the_picture(pipe):
    scene = quality.held_out_scenes(1, 1)[0]
    picture, text = quality.drawn([scene]), quality.plain_words(scene)
    edit = edit_picture(pipe, picture, text, None, Method("ddim", "none", guidance_scale=1.0))
    own = pipe.vae.decode(edit.latents / pipe.vae.config.scaling_factor).sample / 2 + 0.5
    assert quality.psnr(edit.reconstruction, own.detach().clamp(0, 1)).item() > 28


def test_the_unet_hears_the_background(pipe):
    prompts = [f"a red house {place}" for place in ("in a meadow", "by the sea", "in a room", "in a desert")]
    readings = load_classifier().read(quality.generate(pipe, prompts))
    assert [reading.background for reading in readings] == ["meadow", "sea", "room", "desert"]
