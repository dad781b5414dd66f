"""Stage inpaint: holes, crops, channels and what is kept on disk; the shipped folders load as the published ones do."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from common.picturebook import quality, shipping
from common.picturebook.checks import inpainting as checks
from common.picturebook.drawing import draw
from common.picturebook.scenes import sample_scene
from common.picturebook.stages import inpaint
from common.picturebook.stages.clip import new_clip
from common.picturebook.stages.corpus import Corpus
from common.picturebook.stages.unet import new_unet
from common.picturebook.stages.vae import new_vae
from common.pipelines import is_picturebook
from image_inpaint.loading import load


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """vae, clip and unet, random."""
    torch.manual_seed(0)
    tokenizer = shipping.ship_tokenizer_and_scheduler(tmp_path_factory.mktemp("words"))
    unet = new_unet().eval()
    return new_vae().eval().requires_grad_(False), new_clip(tokenizer).eval(), unet


def test_boxes_are_the_smallest_around_masks_and_those_of_the_things_in_a_drawing():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((20, 30)) < 0.01
        ones = [(x, y) for y in range(20) for x in range(30) if mask[y, x]]
        xs, ys = zip(*ones, strict=True) if ones else ((), ())
        assert inpaint.box_of(mask) == ((min(xs), min(ys), max(xs) + 1, max(ys) + 1) if ones else None)
    drawing = draw(next(s for s in (sample_scene(k) for k in range(50)) if len(s.things) == 2))
    boxes = inpaint.boxes_in(drawing)
    assert [tuple(boxes[row]) for row in (0, 1)] == [inpaint.box_of(mask > 0) for mask in drawing.masks]
    assert (boxes[2] == -1).all()


def test_a_hole_covers_its_box_and_leaves_some_of_the_picture():
    box, areas = (20, 25, 40, 50), []
    for seed in range(200):
        hole = inpaint.hole_of(box, random.Random(seed))
        areas.append(hole.mean())
        inner = hole[27:48, 22:38]  # a rough shape may cut the corners
        assert hole.shape == (64, 64) and set(np.unique(hole)) <= {0.0, 1.0}
        assert hole[37, 21:39].all() and hole[26:49, 30].all() and inner.mean() > 0.9
    assert 500 / 4096 <= min(areas) and max(areas) < 0.9 and len(set(areas)) > 100


@torch.no_grad()
def test_new_channels_change_nothing_at_first(parts):
    _, clip, unet = parts
    wide = inpaint.new_inpainter(unet, clip)["unet"].eval()
    z, t, context = torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), torch.randn(2, 5, 128)
    widened = wide(torch.cat([z, torch.randn(2, 5, 16, 16)], 1), t, context).sample
    assert torch.allclose(widened, unet(z, t, context).sample, atol=1e-6)


@torch.no_grad()
def test_what_is_kept_on_disk_is_the_picture_without_its_hole(parts, tmp_path, monkeypatch):
    vae, clip, unet = parts
    monkeypatch.setattr(inpaint, "BLOCK", 4)
    corpus, tower = Corpus(tmp_path, 6), inpaint.new_inpainter(unet, clip)["encoder"].model.eval()
    known = inpaint.prepare(corpus, vae, tower, tmp_path)
    boxes = inpaint.all_boxes(corpus, tmp_path)
    for index, view in ((0, 0), (3, 1), (5, 0)):
        rng = random.Random(f"inpaint {index} {view}")
        box = tuple(int(x) for x in rng.choice([b for b in boxes[index] if b[0] >= 0]))
        crop = inpaint.reference_of(Image.fromarray(corpus.pictures[index]), box, rng)
        hole = inpaint.hole_of(box, rng)
        pixels = np.asarray(corpus.pictures[index], np.float64) / 127.5 - 1
        pixels[hole > 0] = 0  # mid-grey
        latents = vae.encode(torch.from_numpy(pixels).float().permute(2, 0, 1)[None]).latent_dist.mean[0]
        away = (known["masked"][index, view].float() - latents).abs()  # bfloat16 where it is fast
        assert away.mean() < 0.02 * latents.std() and away.max() < 0.2 * latents.std()
        centres = (1 - hole).reshape(16, 4, 16, 4)[:, 1:3, :, 1:3].mean((1, 3))  # bilinear: the middle four of sixteen
        assert np.allclose(known["keep"][index, view, 0].numpy() / 255, centres, atol=0.003)
        shown = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 127.5 - 1
        token = clip.vision_model(pixel_values=shown).pooler_output[0]
        assert torch.allclose(known["features"][index, view].float(), token, atol=0.01)
    changed = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("inpaint_*"))]
    again = inpaint.prepare(corpus, vae, tower, tmp_path)
    assert len(changed) == 2 and changed == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("inpaint_*"))]
    assert all(torch.equal(again[key], known[key]) for key in known)


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """A models folder with an inpainter of two steps on eight scenes, and the inpainter."""
    vae, clip, unet = parts
    work, models = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inpaint, "BATCH", 4)
        model = inpaint.train(Corpus(work, 8), vae, inpaint.new_inpainter(unet, clip), work, steps=2)
    shipping.ship_clip(clip, shipping.ship_tokenizer_and_scheduler(models), models)
    shipping.ship_vae(vae, 0.5, models)
    shipping.ship_unet(unet, models)
    shipping.ship_inpainter(model, models)
    return models, model


@torch.no_grad()
def test_the_folders_load_in_diffusers_and_in_the_papers_folder_under_published_names(trained):
    models, model = trained
    papers = load(str(models), "cpu")
    assert is_picturebook(papers) and list(papers.feature_extractor.image_mean) == [0.5, 0.5, 0.5]
    channels, t, context = torch.randn(1, 9, 16, 16), 500, torch.randn(1, 1, 128)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    for pipe in (papers, shipping.shipped_inpainting(models)):
        seen = model["encoder"](pixels)
        assert seen.shape == (2, 1, 128)
        for ours, theirs in ((model["unet"](channels, t, context).sample, pipe.unet(channels, t, context).sample),
                             (seen, pipe.image_encoder(pixels))):  # fmt: skip
            assert (ours - theirs).abs().max() < 0.02 * ours.abs().max()
    with safe_open(models / "inpaint_image_encoder" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"uncond_vector", "proj_out.weight", "final_layer_norm.bias", "mapper.blocks.0.attn1.to_q.weight",
            "model.vision_model.encoder.layers.0.self_attn.q_proj.weight"} <= names  # fmt: skip
    assert max(path.stat().st_size for path in models.rglob("*.safetensors")) < 15_000_000


def test_the_twin_test_knows_the_individual_from_its_unmarked_twin():
    items = checks.tasks(12, marked=True)
    true, twin = ([scene.with_thing(0, **change) for scene in (item.scene for item in items)]
                  for change in ({}, {"marking": 0}))  # fmt: skip
    assert all(checks.nearer_to_truth(items, quality.drawn(true)))
    assert not any(checks.nearer_to_truth(items, quality.drawn(twin)))


def test_the_step_across_a_rim_against_a_loop():
    pictures, hole, steps = torch.rand(1, 3, 6, 7, generator=torch.manual_seed(0)), torch.zeros(1, 1, 6, 7), []
    hole[..., 2:4, 1:5] = 1
    for y, x in np.ndindex(6, 7):
        for v, u in ((y + 1, x), (y, x + 1)):
            if v < 6 and u < 7 and hole[0, 0, y, x] != hole[0, 0, v, u]:
                steps.append((pictures[0, :, y, x] - pictures[0, :, v, u]).abs().mean().item())
    assert checks.across(pictures, hole).item() == pytest.approx(255 * np.mean(steps), rel=1e-5)
