"""Compositions: maps with cores, halves in words, and a truth that nothing pasted or blended comes near."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import read_pie_bench
from common.picturebook.benchmarks import ensure_compositions
from common.picturebook.compositions import Composition, halves_seen
from common.picturebook.drawing import draw
from common.picturebook.scenes import caption
from common.picturebook.shipping import shipped_vae
from pixels.reproduction.baselines import seamless
from tests.common.picturebook.readings import pixels, reading_of


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
