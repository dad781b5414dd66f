"""The benchmark folders: published formats, true edits, masks that hold the change, compositions that nothing pasted
comes near, splits that stay apart.
"""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from common.data import read_pie_bench
from common.picturebook.benchmarks import PIE_TYPES, ensure_compositions, pie_bench
from common.picturebook.compositions import Composition, halves_seen
from common.picturebook.drawing import draw
from common.picturebook.edits import EDIT_NAMES, changed_mask, edit_from_dict, edit_map, make_edit, shows, with_brackets
from common.picturebook.scenes import FACING_KINDS, caption
from common.picturebook.shipping import shipped_vae
from pixels.reproduction.baselines import seamless
from tests.common.picturebook.readings import pixels, reading_of


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pie")
    pie_bench(folder, "test", quick=True)
    return folder


def test_the_quick_subset_has_the_published_proportions_and_shares_no_item_with_validation(quick, tmp_path):
    items = read_pie_bench(quick)
    assert Counter(item.edit_type for item in items) == {key: few for key, (_, _, few) in PIE_TYPES.items()}
    assert len(items) == 40 and sum(full for _, full, _ in PIE_TYPES.values()) == 700
    pie_bench(tmp_path, "validation", quick=True)
    one, two = ({item.extras["edit"]["source"]["seed"] for item in part} for part in (items, read_pie_bench(tmp_path)))
    assert not one & two


def test_every_item_has_its_pictures_and_captions_that_differ_hold_its_words_and_name_every_facing(quick):
    for item in read_pie_bench(quick):
        for key in ("truth_path", "exemplar_path", "edit_map_path", "subject_path"):
            assert Image.open(quick / item.extras[key]).size == (64, 64)
        assert item.source_prompt != item.target_prompt and "[" not in item.source_prompt + item.target_prompt
        edit, texts = edit_from_dict(item.extras["edit"]), (item.source_prompt.split(), item.target_prompt.split())
        assert all(word in text for word, text in zip(item.blended_words or (), texts, strict=False))
        for scene, text in zip((edit.source, edit.target), texts, strict=True):
            sides = [thing.facing for thing in scene.things if thing.kind in FACING_KINDS]
            assert [word for word in text if word in ("left", "right")] == sides


def test_outside_the_mask_the_true_edit_equals_the_source_but_for_the_shadow(quick):
    for item in read_pie_bench(quick, border=0):
        edit = edit_from_dict(item.extras["edit"])
        if edit.index is None:
            continue
        changed = (edit.source if edit.kind == "delete" else edit.target).things[edit.index]
        shadow = np.abs(np.arange(64)[:, None] / 64 - changed.ground) < 0.07
        difference = np.abs(pixels(item.image_path) - pixels(quick / item.extras["truth_path"])).sum(2) > 30
        assert difference.any(), item.id
        outside = difference & (item.mask.numpy() < 0.5) & ~shadow
        assert outside.mean() < 0.001, item.id


@pytest.mark.parametrize("kind", EDIT_NAMES.values())
def test_edit_maps_have_cores_and_a_ramp(kind):
    """Wholly changed, wholly kept and grey cells at latent resolution; all that the mask touches is changed."""
    for seed in range(15):
        edit = make_edit(kind, random.Random(f"map {seed}"))
        mask = changed_mask(edit, draw(edit.source).masks, draw(edit.target).masks)
        grey = torch.from_numpy(np.round(255 * edit_map(edit, mask)) / 255)
        cells = F.interpolate(grey[None, None].float(), (16, 16), mode="bilinear")[0, 0].numpy()
        if kind == "style":
            assert (cells == 1).all()
            continue
        if kind == "background":
            assert not grey[ndimage.binary_erosion(mask < 0.5)].any()
        else:
            assert (cells[mask.reshape(16, 4, 16, 4).max((1, 3)) > 0.5] == 1).all()
        assert (cells == 1).sum() >= 12 and (cells == 0).sum() >= 4 and ((cells > 0) & (cells < 1)).sum() >= 20


@pytest.mark.parametrize("kind", EDIT_NAMES.values())
def test_success_is_seen_on_the_true_edit_and_not_on_the_source(kind):
    for seed in range(30):
        edit = make_edit(kind, random.Random(seed))
        assert shows(edit, reading_of(edit.target)) and not shows(edit, reading_of(edit.source)), edit
        assert edit_from_dict(edit.to_dict()) == edit
        assert (pixels(draw(edit.source).picture) != pixels(draw(edit.target).picture)).any()


def test_brackets_mark_the_words_that_differ():
    words = with_brackets("a red cat in a room", "a blue cat in a room")
    assert words == ("a [red] cat in a room", "a [blue] cat in a room")
    assert with_brackets("a red cat", "a red cat with a hat") == ("a red cat", "a red cat [with a hat]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CACHE", str(tmp_path_factory.mktemp("drawn")))
        yield ensure_compositions()


@pytest.fixture(scope="module")
def items(folder):
    return read_pie_bench(folder, border=0)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).mean())


def test_sixty_items_whose_truth_is_an_ordinary_scene(folder, items):
    assert len(items) == 60
    for item in items:
        composition = Composition.from_dict(item.extras["composition"])
        kept, new, exemplar, both = composition.kept, composition.new, composition.exemplar, composition.together
        assert {scene.background for scene in (kept, new, exemplar, both)} == {kept.background}
        assert {scene.light for scene in (kept, new, exemplar, both)} == {kept.light}
        assert exemplar.seed != kept.seed == both.seed and set(both.things) == {*kept.things, *new.things}
        assert item.source_prompt == caption(kept, facing=True) and item.target_prompt == caption(both, facing=True)
        assert (pixels(folder / item.extras["truth_path"]) == np.asarray(draw(both).picture)).all()


def test_black_covers_the_exemplars_thing_the_ramp_is_wide_and_white_keeps_the_source(folder, items):
    """An exemplar enters where the map is wholly black alone: what is to be seen of it has to lie there."""
    for item in items:
        grey = torch.from_numpy(np.array(Image.open(folder / item.extras["edit_map_path"]))) / 255
        cells = torch.nn.functional.interpolate(grey[None, None], (16, 16), mode="bilinear")[0, 0, 0]
        composition = Composition.from_dict(item.extras["composition"])
        assert (cells == 1).sum() >= 3 and (cells == 0).sum() >= 3 and ((cells > 0) & (cells < 1)).sum() >= 4
        assert (cells[0] < cells[-1]) == (composition.side == "right")
        assert (grey.numpy()[draw(composition.exemplar).masks[0] > 0] == 1).all()
        assert (item.mask == (grey > 0)).all()
        same = pixels(item.image_path) == pixels(folder / item.extras["truth_path"])
        assert same[grey.numpy() == 0].all()


@torch.no_grad()
def test_no_paste_and_no_blend_comes_near_the_truth(folder, items):
    vae = shipped_vae()
    for item in items[::5]:
        paths = (item.image_path, *(folder / item.extras[f"{name}_path"] for name in ("truth", "exemplar", "edit_map")))
        source, truth, exemplar, share = (pixels(path).transpose(2, 0, 1).astype(float) for path in paths)
        share, picture = share / 255, torch.from_numpy(truth)[None].float() / 127.5 - 1
        through = vae.decode(vae.encode(picture).latent_dist.mean).sample[0].clamp(-1, 1) * 127.5 + 127.5
        made = {
            "paste": np.where(share > 0.5, exemplar, source),
            "alpha": share * exemplar + (1 - share) * source,
            "Poisson": seamless(source, exemplar, share[0] > 0.5),
        }
        for way, picture in made.items():
            assert error(picture, truth) > 3 * error(np.asarray(through), truth), (item.id, way)


def test_a_half_is_seen_by_its_thing_and_its_background(items):
    item = Composition.from_dict(items[0].extras["composition"])
    whole, new, alone = (reading_of(scene) for scene in (item.together, item.new, item.kept))
    elsewhere = replace(whole, background="elsewhere")
    for read, seen in (((whole, whole, new), True), ((whole, whole, elsewhere), False), ((alone, alone, new), False)):
        readings = iter(read)  # of a classifier that reads what it is told, whole pictures first
        eye = SimpleNamespace(read=lambda pictures, readings=readings: [next(readings)])
        assert halves_seen(item, torch.zeros(1, 3, 64, 64), eye) == {"kept": True, "new": seen}
