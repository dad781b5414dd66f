"""What a micro-step sees: Custom Diffusion's augmentation, pictures and words, and class pictures beside them."""

from argparse import Namespace

import pytest
import torch
from PIL.Image import Resampling

from common.images import list_pictures, load_image, to_tensor
from common.training import step_generator
from lipschitz_personalize import batches
from lipschitz_personalize.batches import LARGE, SMALL, augment
from lipschitz_personalize.objectives import encode_text, load_backbone


def test_small_large_and_plain_pictures_each_with_their_words():
    picture = torch.linspace(0, 1, 3 * 48 * 48).reshape(3, 48, 48)
    generator, counts = torch.Generator().manual_seed(0), {"small": 0, "large": 0, "plain": 0}
    for _ in range(400):
        changed, mask, prefix = augment(picture, 4, generator)
        assert changed.shape == picture.shape and mask.shape == (1, 12, 12)
        assert 0 <= changed.min() and changed.max() <= 1 and mask.sum() > 0
        if prefix in SMALL:
            counts["small"] += 1
            pasted = (changed != 0.5).any(0)
            rows, columns = pasted.nonzero(as_tuple=True)
            side = rows.max() - rows.min() + 1
            assert 48 // 3 <= side < 0.6 * 48 and side % 2 == 0
            inside = mask[0].repeat_interleave(4, 0).repeat_interleave(4, 1).bool()
            assert not (inside & ~pasted).any()  # what counts is picture, with a margin
            assert rows.min() < inside.nonzero()[:, 0].min() and columns.max() > inside.nonzero()[:, 1].max()
        else:
            assert mask.all()
            counts["plain" if prefix == "" else "large"] += 1
            assert prefix in LARGE or torch.equal(changed, picture)
    assert 100 < counts["large"] < 170  # one of three
    assert 85 < counts["small"] < 150 and 130 < counts["plain"] < 200  # of [16, 48] those under 28.8, and the rest


def test_tiny_pictures_keep_something_that_counts():
    for seed in range(100):
        _, mask, _ = augment(torch.rand(3, 16, 16), 4, torch.Generator().manual_seed(seed))
        assert mask.sum() > 0


ALONE = Namespace(process_index=0, num_processes=1)


@pytest.fixture(scope="module")
def pipe(models):
    return load_backbone(str(models["sd"]), "cpu")


def flags(subject, **more):
    return Namespace(**{
        "instance_prompt": "a red cat", "class_prompt": "a cat", "class_data_dir": str(subject), "seed": 0,
        "resolution": 32, "squash": False, "center_crop": False, "random_flip": False, "cache_latents": False,
        "parameter_space": "custom_diffusion", "augment": True, "with_prior_preservation": True, "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
    } | more)  # fmt: skip


def test_a_shrunk_picture_comes_with_its_words_and_its_mask_and_class_pictures_are_left_alone(pipe, subject):
    args, met = flags(subject), set()
    given = batches.sources(pipe, args, list_pictures(subject), trains_text=True)
    for step in range(12):
        batch = batches.next_batch(pipe, args, given, step, 0, ALONE, step_generator(0, step))
        assert batch.latents.shape == (4, 4, 8, 8) and len(batch.cond) == 4 and batch.instances == 2
        assert batch.mask.shape == (2, 1, 8, 8)
        assert torch.allclose(batch.cond.embeds[2:], encode_text(pipe, ["a cat"] * 2).embeds, atol=1e-6)
        for mask, embeds in zip(batch.mask, batch.cond.embeds, strict=False):
            words = ["", *SMALL, "zoomed in ", "close up "]
            said = encode_text(pipe, [word + "a red cat" for word in words]).embeds
            (found,) = [word for word, one in zip(words, said, strict=True) if torch.allclose(one, embeds, atol=1e-5)]
            assert (found in SMALL) == (not mask.all())
            met.add(found)
    assert len(met) >= 4


def test_pictures_are_resized_as_by_the_script_whose_settings_these_are(models, subject):
    """In full and squashed bicubic, Custom Diffusion's and SD's LoRA bilinear, SDXL's LoRA Lanczos; class pictures are
    never squashed."""
    paths = list_pictures(subject)
    for model, space, squash, way in (("sd", "full", True, "BICUBIC"), ("sd", "full", False, "BILINEAR"),
                                      ("sd", "custom_diffusion", True, "BILINEAR"), ("sd", "lora", False, "BILINEAR"),
                                      ("sdxl", "lora", False, "LANCZOS")):  # fmt: skip
        args = flags(subject, parameter_space=space, squash=squash, augment=False)
        own, theirs = batches.sources(load_backbone(str(models[model]), "cpu"), args, paths, trains_text=False)
        expected = load_image(paths[2]).resize((32, 32 if squash else 50), Resampling[way])  # of 32x50 pixels
        assert torch.equal(own.pictures[2], (to_tensor(expected)[0] * 255).round().byte())
        assert theirs.pictures[2].shape == (3, 50, 32)


def test_sdxls_lora_is_told_how_large_a_file_is_and_where_it_was_cut(models, subject):
    xl = load_backbone(str(models["sdxl"]), "cpu")
    args = flags(subject, parameter_space="lora", augment=False, random_flip=True, train_batch_size=3, resolution=24)
    given = batches.sources(xl, args, list_pictures(subject), trains_text=False)
    sizes = {}
    for step in range(12):
        ids = batches.next_batch(xl, args, given, step, 0, ALONE, step_generator(0, step)).cond.added["time_ids"]
        assert ids[:, 4:].tolist() == [[24, 24]] * 6 and ids[3:].tolist() == [[24, 24, 0, 0, 24, 24]] * 3  # the class
        for height, width, top, left in ids[:3, :4].int().tolist():
            sizes.setdefault((height, width), set()).add((top, left))
    assert sizes.keys() == {(32, 32), (32, 40), (50, 32)} and sizes[32, 32] == {(0, 0)}
    assert {top for top, _ in sizes[32, 40]} == {0} == {left for _, left in sizes[50, 32]}
    assert len(sizes[32, 40]) > 2 and max(left for _, left in sizes[32, 40]) <= 30 - 24
    args.parameter_space = "custom_diffusion"
    (source, _) = batches.sources(xl, args, list_pictures(subject), trains_text=False)
    assert source.sizes is None


def test_cached_latents_are_one_sample_per_picture_and_flags_decide_the_rest(pipe, subject):
    args = flags(subject, parameter_space="full", squash=True, cache_latents=True, with_prior_preservation=False)
    (source,) = batches.sources(pipe, args, list_pictures(subject), trains_text=False)
    assert source.latents.shape == (3, 4, 8, 8) and len(source.conditioning) == 1 and not source.augmented
    first, again = (batches.next_batch(pipe, args, [source], 0, 0, ALONE, step_generator(0, n)) for n in (0, 1))
    assert torch.equal(first.latents, again.latents) and first.mask is None  # whatever the step's own noise
    args.cache_latents = False
    (source,) = batches.sources(pipe, args, list_pictures(subject), trains_text=False)
    first, again = (batches.next_batch(pipe, args, [source], 0, 0, ALONE, step_generator(0, n)) for n in (0, 1))
    assert source.latents is None and not torch.equal(first.latents, again.latents)
