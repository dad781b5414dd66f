"""The benchmark folders: published formats, true edits, masks that hold the change, splits that stay apart."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from common.data import read_pie_bench
from common.picturebook.benchmarks import PIE_TYPES, pie_bench
from common.picturebook.drawing import draw
from common.picturebook.edits import EDIT_NAMES, changed_mask, edit_from_dict, edit_map, make_edit, shows, with_brackets
from common.picturebook.scenes import FACING_KINDS
from tests.common.picturebook.readings import reading_of


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pie")
    pie_bench(folder, "test", quick=True)
    return folder


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_quick_subset_has_the_published_proportions(quick):
    items = read_pie_bench(quick)
    assert Counter(item.edit_type for item in items) == {key: few for key, (_, _, few) in PIE_TYPES.items()}
    assert len(items) == 40 and sum(full for _, full, _ in PIE_TYPES.values()) == 700


def test_outside_the_mask_the_true_edit_equals_the_source_but_for_the_shadow(quick):
    for item in read_pie_bench(quick, border=0):
        edit = edit_from_dict(item.extras["edit"])
        if edit.index is None:
            continue
        changed = (edit.source if edit.kind == "delete" else edit.target).things[edit.index]
        shadow = np.abs(np.arange(64)[:, None] / 64 - changed.ground) < 0.07
        difference = np.abs(read(item.image_path) - read(quick / item.extras["truth_path"])).sum(2) > 30
        assert difference.any(), item.id
        outside = difference & (item.mask.numpy() < 0.5) & ~shadow
        assert outside.mean() < 0.001, item.id


def test_captions_differ_and_blended_words_are_in_their_captions(quick):
    for item in read_pie_bench(quick):
        assert item.source_prompt != item.target_prompt
        assert "[" not in item.source_prompt + item.target_prompt
        if item.blended_words:
            assert item.blended_words[0] in item.source_prompt.split()
            assert item.blended_words[1] in item.target_prompt.split()


def test_captions_name_every_facing(quick):
    for item in read_pie_bench(quick):
        edit = edit_from_dict(item.extras["edit"])
        for scene, text in ((edit.source, item.source_prompt), (edit.target, item.target_prompt)):
            sides = [thing.facing for thing in scene.things if thing.kind in FACING_KINDS]
            assert [word for word in text.split() if word in ("left", "right")] == sides


def check_map(grey: np.ndarray, mask: np.ndarray, kind: str) -> None:
    """Wholly changed, wholly kept and grey cells at latent resolution; all that the mask touches is changed."""
    on_latents = F.interpolate(torch.from_numpy(grey)[None, None].float(), (16, 16), mode="bilinear")[0, 0].numpy()
    touched = mask.reshape(16, 4, 16, 4).max((1, 3)) > 0.5
    if kind == "style":
        assert (on_latents == 1).all()
        return
    if kind == "background":
        assert not grey[ndimage.binary_erosion(mask < 0.5)].any()
    else:
        assert (on_latents[touched] == 1).all()
    assert (on_latents == 1).sum() >= 12 and (on_latents == 0).sum() >= 4
    assert ((on_latents > 0) & (on_latents < 1)).sum() >= 20


@pytest.mark.parametrize("kind", EDIT_NAMES.values())
def test_edit_maps_have_cores_and_a_ramp(kind):
    for seed in range(15):
        edit = make_edit(kind, random.Random(f"map {seed}"))
        mask = changed_mask(edit, draw(edit.source).masks, draw(edit.target).masks)
        check_map(np.round(255 * edit_map(edit, mask)) / 255, mask, kind)


def test_every_track_finds_its_pictures(quick):
    for item in read_pie_bench(quick):
        for key in ("truth_path", "exemplar_path", "edit_map_path", "subject_path"):
            assert Image.open(quick / item.extras[key]).size == (64, 64)


@pytest.mark.parametrize("kind", EDIT_NAMES.values())
def test_success_is_seen_on_the_true_edit_and_not_on_the_source(kind):
    for seed in range(30):
        edit = make_edit(kind, random.Random(seed))
        assert shows(edit, reading_of(edit.target)), edit
        assert not shows(edit, reading_of(edit.source)), edit
        assert edit_from_dict(edit.to_dict()) == edit
        assert (np.asarray(draw(edit.source).picture) != np.asarray(draw(edit.target).picture)).any()


def test_brackets_mark_the_words_that_differ():
    words = with_brackets("a red cat in a room", "a blue cat in a room")
    assert words == ("a [red] cat in a room", "a [blue] cat in a room")
    assert with_brackets("a red cat", "a red cat with a hat") == ("a red cat", "a red cat [with a hat]")


def test_splits_share_no_item(tmp_path):
    pie_bench(tmp_path / "validation", "validation", quick=True)
    pie_bench(tmp_path / "test", "test", quick=True)
    one, two = ({item.extras["edit"]["source"]["seed"] for item in read_pie_bench(tmp_path / split)}
                for split in ("validation", "test"))  # fmt: skip
    assert not one & two
