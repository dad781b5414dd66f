"""Compositions: maps with cores, halves in words, and a truth that nothing pasted or blended comes near."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse
from scipy.sparse.linalg import spsolve

from common.data import read_pie_bench
from common.picturebook.benchmarks import ensure_compositions
from common.picturebook.compositions import Composition, halves_seen, true_picture
from common.picturebook.shipping import shipped_vae
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


def poisson(source: np.ndarray, exemplar: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Perez et al. 2003: the exemplar's gradients where `inside`, the source's values on its border."""
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(inside.sum())
    rows, columns, weights, right = [], [], [], np.zeros((inside.sum(), 3))
    for (y, x), row in zip(np.argwhere(inside), number[inside], strict=True):
        neighbours = [(y + dy, x + dx) for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        neighbours = [(a, b) for a, b in neighbours if 0 <= a < 64 and 0 <= b < 64]
        rows.append(row), columns.append(row), weights.append(len(neighbours))
        for place in neighbours:
            right[row] += exemplar[y, x] - exemplar[place]
            if inside[place]:
                rows.append(row), columns.append(number[place]), weights.append(-1)
            else:
                right[row] += source[place]
    matrix = sparse.csr_matrix((weights, (rows, columns)))
    made = source.copy()
    made[inside] = spsolve(matrix, right)
    return made.clip(0, 255)


def error(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).mean())


def test_sixty_items_with_both_halves_in_words(folder, items):
    assert len(items) == 60
    for item in items:
        kept, new, night = item.extras["kept_caption"], item.extras["new_caption"], " at night"
        assert item.source_prompt == kept and kept.endswith(night) == new.endswith(night)
        assert item.target_prompt == f"{kept.removesuffix(night)} and {new}"
        composition = Composition.from_dict(item.extras["composition"])
        assert composition.kept.light == composition.new.light != composition.exemplar.light
        assert composition.kept.background != composition.new.background == composition.exemplar.background
        assert composition.exemplar.things[0].size > 1.25 * composition.new.things[0].size
        assert (pixels(folder / item.extras["truth_path"]) == np.asarray(true_picture(composition))).all()


def test_maps_have_two_cores_and_a_wide_ramp(folder, items):
    for item in items:
        grey = torch.from_numpy(np.array(Image.open(folder / item.extras["edit_map_path"]))) / 255
        cells = torch.nn.functional.interpolate(grey[None, None], (16, 16), mode="bilinear")[0, 0, 0]
        side = Composition.from_dict(item.extras["composition"]).side
        assert (cells == 1).sum() >= 3 and (cells == 0).sum() >= 3 and ((cells > 0) & (cells < 1)).sum() >= 5
        assert (cells[0] < cells[-1]) == (side == "right")
        assert (item.mask == (grey > 0)).all()


def test_where_the_source_is_kept_the_truth_is_the_source(folder, items):
    for item in items:
        kept = np.array(Image.open(folder / item.extras["edit_map_path"])) == 0
        difference = np.abs(pixels(item.image_path) - pixels(folder / item.extras["truth_path"])).max(2)
        assert (difference[kept] > 8).mean() < 0.1  # the new thing may reach over


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
        region = share[..., 0] > 0.5
        made = {
            "paste": np.where(region[..., None], exemplar, source),
            "alpha": share * exemplar + (1 - share) * source,
            "Poisson": poisson(source, exemplar, region),
        }
        for way, picture in made.items():
            assert error(picture, truth) > 6 * own, (item.id, way)


class Eye:
    """A classifier that reads what it is told, whole pictures first."""

    def __init__(self, *readings):
        self.readings = list(readings)

    def read(self, pictures):
        return [self.readings.pop(0)]


def test_a_half_is_seen_by_its_thing_and_its_background(items):
    item = Composition.from_dict(items[0].extras["composition"])
    reading, both = reading_of, replace(item.kept, things=(*item.kept.things, *item.new.things))
    whole = reading(both)
    picture = torch.zeros(1, 3, 64, 64)
    assert halves_seen(item, picture, Eye(whole, whole, reading(item.new))) == {"kept": True, "new": True}
    assert halves_seen(item, picture, Eye(whole, whole, whole)) == {"kept": True, "new": False}
    alone = reading(item.kept)
    assert halves_seen(item, picture, Eye(alone, alone, reading(item.new))) == {"kept": True, "new": False}
