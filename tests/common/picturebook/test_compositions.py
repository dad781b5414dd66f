"""Compositions: maps with cores, halves in words, and a truth that nothing pasted or blended comes near."""

from dataclasses import replace

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
from tests.common.picturebook.readings import reading_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CACHE", str(tmp_path_factory.mktemp("drawn")))
        yield ensure_compositions()


@pytest.fixture(scope="module")
def items(folder):
    return read_pie_bench(folder, border=0)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


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


def test_black_covers_the_exemplars_thing_and_the_ramp_is_wide(folder, items):
    """An exemplar enters where the map is wholly black alone: what is to be seen of it has to lie there."""
    for item in items:
        grey = torch.from_numpy(np.array(Image.open(folder / item.extras["edit_map_path"]))) / 255
        cells = torch.nn.functional.interpolate(grey[None, None], (16, 16), mode="bilinear")[0, 0, 0]
        composition = Composition.from_dict(item.extras["composition"])
        assert (cells == 1).sum() >= 3 and (cells == 0).sum() >= 3 and ((cells > 0) & (cells < 1)).sum() >= 4
        assert (cells[0] < cells[-1]) == (composition.side == "right")
        assert (grey.numpy()[draw(composition.exemplar).masks[0] > 0] == 1).all()
        assert (item.mask == (grey > 0)).all()


def test_where_the_source_is_kept_the_truth_is_the_source(folder, items):
    for item in items:
        kept = np.array(Image.open(folder / item.extras["edit_map_path"])) == 0
        assert (pixels(item.image_path) == pixels(folder / item.extras["truth_path"]))[kept].all()


@torch.no_grad()
def test_no_paste_and_no_blend_comes_near_the_truth(folder, items):
    vae = shipped_vae()
    for item in items[::5]:
        source, truth = pixels(item.image_path), pixels(folder / item.extras["truth_path"])
        exemplar, share = (pixels(folder / item.extras[f"{name}_path"]) for name in ("exemplar", "edit_map"))
        share /= 255
        picture = torch.from_numpy(truth).permute(2, 0, 1)[None].float() / 127.5 - 1
        through = vae.decode(vae.encode(picture).latent_dist.mean).sample[0].permute(1, 2, 0)
        own = error(np.asarray(through.clamp(-1, 1) * 127.5 + 127.5), truth)
        region = share > 0.5
        made = {
            "paste": np.where(region, exemplar, source),
            "alpha": share * exemplar + (1 - share) * source,
            "Poisson": seamless(source.transpose(2, 0, 1), exemplar.transpose(2, 0, 1), region[..., 0]).transpose(
                1, 2, 0
            ),
        }
        for way, picture in made.items():
            assert error(picture, truth) > 3 * own, (item.id, way)


class Eye:
    """A classifier that reads what it is told, whole pictures first."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self, pictures):
        return [self.readings.pop(0)]


def test_a_half_is_seen_by_its_thing_and_its_background(items):
    item = Composition.from_dict(items[0].extras["composition"])
    whole, reading = reading_of(item.together), reading_of
    picture = torch.zeros(1, 3, 64, 64)
    assert halves_seen(item, picture, Eye(whole, whole, reading(item.new))) == {"kept": True, "new": True}
    elsewhere = replace(whole, background="elsewhere")
    assert halves_seen(item, picture, Eye(whole, whole, elsewhere)) == {"kept": True, "new": False}
    alone = reading(item.kept)
    assert halves_seen(item, picture, Eye(alone, alone, reading(item.new))) == {"kept": True, "new": False}
