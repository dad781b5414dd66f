"""The shipped weights: small enough, loadable by the name picturebook, and good at what each is for.

Thresholds are floors that catch a broken file or a mismatch of parts; the bars that the models are to reach, and what
they reach, are measured by `python -m common.picturebook.build --check`.
"""

import pytest
import torch

from common.picturebook import quality
from common.picturebook.classifier import load_classifier
from common.picturebook.shipping import MODELS
from common.pipelines import is_picturebook, load_pipeline


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
