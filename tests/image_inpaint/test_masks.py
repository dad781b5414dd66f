"""Holes, augmentation and crops against independent readings of Paint-by-Example's rules."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy import ndimage

from image_inpaint import augment, masks, painting
from image_inpaint.triples import Augmentation, make_triple, square_window
from tests.refusing import refuses

BOX, SIZE = (120, 100, 300, 260), (512, 512)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_boxes_are_enlarged_by_at_most_a_part_of_the_free_space():
    found = np.array([masks.enlarge(BOX, SIZE, seeded(seed)) for seed in range(500)])
    low = [BOX[0] - int(0.4 * 120), BOX[1] - int(0.4 * 100), 300, 260]
    high = [120, 100, 300 + int(0.4 * 212), 260 + int(0.4 * 252)]
    assert (found >= low).all() and (found <= high).all()
    assert (found.min(0) <= np.array(low) + 2).all() and (found.max(0) >= np.array(high) - 2).all()


def test_bezier_points_lie_on_the_curves_and_halves_are_not_both_there():
    points = masks.bezier_points((10, 20, 50, 60), (0, 5, 60, 90))
    for x, y in points:
        on = []
        for (x0, y0), (x1, y1), (x2, y2) in (
            ((10, 20), (30, 5), (50, 20)), ((50, 20), (60, 40), (50, 60)),
            ((50, 60), (30, 90), (10, 60)), ((10, 60), (0, 40), (10, 20)),
        ):  # fmt: skip
            ts = np.arange(1, 19) / 20
            curve = np.stack([(1 - ts) ** 2 * a + 2 * ts * (1 - ts) * b + ts**2 * c
                              for a, b, c in ((x0, x1, x2), (y0, y1, y2))])  # fmt: skip
            on.append(np.abs(curve - np.array([[x], [y]])).sum(0).min())
        assert min(on) < 1e-9
    assert 4 * 9 <= len(points) <= 4 * 18


def test_bezier_masks_have_the_published_areas():
    """Facts of the released shapes, boxes at random: area over that of the box 1.03 to 2.09, 1.33 on average."""
    shares = []
    for seed in range(200):
        generator = seeded(seed)
        outer = masks.enlarge(BOX, SIZE, generator)
        mask = masks.bezier_mask(BOX, outer, SIZE, generator)
        shares.append(float(mask.sum()) / (180 * 160))
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0.95 < min(shares) and max(shares) < 2.2 and 1.15 < np.mean(shares) < 1.5


def test_without_augmentation_the_hole_is_the_box_and_with_it_both_shapes_come():
    mask, outer = masks.training_mask(BOX, SIZE, seeded(0), augment=False)
    assert outer == BOX and torch.equal(mask, masks.box_mask(BOX, SIZE)) and mask.sum() == 180 * 160
    drawn = [masks.training_mask(BOX, SIZE, seeded(seed)) for seed in range(200)]
    assert 70 < sum(torch.equal(mask, masks.box_mask(outer, SIZE)) for mask, outer in drawn) < 130


@pytest.mark.parametrize("box, message", [
    ((5, 5, 5, 9), "nothing of it"), ((900, 0, 950, 20), "nothing of it"), ((0.1, 0.2, 0.9, 1), "pixels are needed"),
    *((box, "left, top") for box in (7, None, [[1, 2, 3, 4]], (1, 2, 3), (0, 0, math.nan, 4), (0, 0, 10**400, 4),
                                     ("a", 0, 1, 1), (0, False, True, 9))),
])  # fmt: skip
def test_boxes_outside_are_refused(box, message):
    refuses(message, masks.check_box, box, SIZE)


def test_boxes_are_clipped_and_the_usable_ones_are_of_2_to_80_percent():
    assert masks.check_box((-5.2, 3.6, 700, 20), SIZE) == (0, 4, 512, 20)
    assert masks.usable(BOX, SIZE) and not masks.usable((0, 0, 500, 500), SIZE)
    assert not masks.usable((0, 0, 50, 50), SIZE)
    assert masks.box_of(masks.box_mask(BOX, SIZE)) == BOX
    refuses("empty", masks.box_of, torch.zeros(4, 4))


def test_rotation_against_scipy():
    rows, columns = np.mgrid[0:40, 0:60]
    smooth = (np.sin(rows / 9) + np.cos(columns / 11)) / 4 + 0.5
    ours = augment.warp(torch.tensor(smooth)[None, None], augment.rotation(15.0, (40, 60)))[0, 0].numpy()
    theirs = ndimage.rotate(smooth, 15.0, reshape=False, order=1, mode="mirror")
    assert np.abs(ours - theirs)[12:28, 18:42].max() < 0.01


def test_blur_is_the_mean_of_a_square():
    picture = torch.rand(1, 3, 20, 20, generator=seeded(0))
    blurred = augment.blur(picture, 5)
    assert blurred[0, 1, 10, 7] == pytest.approx(picture[0, 1, 8:13, 5:10].mean().item(), rel=1e-5)
    assert {augment.blur_kernel(torch.zeros(1, 3, 224, 224), seeded(seed)) for seed in range(60)} == {3, 5, 7}


def test_elastic_moves_three_corners_as_albumentations_does():
    """Its defaults at 224 pixels: corners 74 from the centre, each coordinate moved by up to 50; warpAffine's forward
    map from three pairs of points, here solved in float64 and undone by scipy."""
    height, width = 224, 224
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = (np.sin(rows / 30) + np.cos(columns / 40)) / 4 + 0.5
    shifts = []
    for seed in range(60):
        ours = augment.warp(torch.tensor(smooth)[None, None], augment.elastic((height, width), seeded(seed)))[0, 0]
        draws = 2 * torch.rand(3, 2, generator=seeded(seed)).double().numpy() - 1
        corners = np.array([[1, 1], [1, -1], [-1, -1]]) * 224 / 3
        moved = corners + 50 * draws
        shifts.append(moved - corners)
        forward = np.linalg.solve(np.c_[corners, np.ones(3)], moved).T  # x, y and 1 to x, y
        matrix, offset = np.linalg.inv(forward[:, :2]), forward[:, 2]
        middle = np.array([111.5, 111.5])
        y, x = rows - middle[0], columns - middle[1]
        sx, sy = np.einsum("ij,jhw->ihw", matrix, np.stack([x - offset[0], y - offset[1]]))
        theirs = ndimage.map_coordinates(smooth, [sy + middle[0], sx + middle[1]], order=1)
        inside = (np.abs(sx) < 110) & (np.abs(sy) < 110)
        assert inside.sum() > 3000 and np.abs(ours.numpy() - theirs)[inside].max() < 1e-4
    assert 45 < np.abs(shifts).max() <= 50


def test_each_augmentation_has_a_flag_and_its_chance():
    picture = torch.rand(1, 3, 32, 32, generator=seeded(0))
    for name in augment.NAMES:
        made = [augment.augment_reference(picture, [name], seeded(seed)) for seed in range(200)]
        changed = sum(not torch.equal(one, picture) for one in made)
        assert abs(changed / 200 - augment.CHANCE[name]) < 0.12
    assert torch.equal(augment.augment_reference(picture, [], seeded(0)), picture)


def test_the_source_and_its_region_move_together():
    canvas = Image.new("RGB", (80, 60), "white")
    ImageDraw.Draw(canvas).ellipse((10, 20, 34, 44), fill="black")
    source = torch.from_numpy(np.array(canvas)).permute(2, 0, 1)[None] / 255
    region = (source[:, :1] < 0.5).float()
    for seed in range(20):
        names = [("flip", "rotation"), ("elastic",)][seed % 2]
        turned, moved = augment.augment_source(source, region, names, seeded(seed))
        dark = (turned[:, :1] < 0.5).float()
        assert moved.any() and ((dark * moved).sum() / moved.sum()).item() > 0.85
        if seed % 2 == 0:  # elastic may bring in the reflection too
            assert ((dark * moved).sum() / dark.sum()).item() > 0.85


def test_square_windows_contain_the_box_and_are_inside():
    box, size, found = (300, 50, 360, 200), (256, 640), []
    for seed in range(300):
        left, top, right, bottom = square_window(box, size, seeded(seed))
        assert 0 <= left <= 300 and 0 <= top <= 50 and 360 <= right <= 640 and 200 <= bottom <= 256
        assert right - left == bottom - top <= 256
        found.append((left, right - left))
    assert len({left for left, _ in found}) > 50 and min(side for _, side in found) < 256
    assert square_window((0, 0, 300, 100), size, seeded(0)) is None
    # as released: no choice of places, no crop, be it that one square alone holds the box or that the picture is one
    assert square_window((0, 40, 256, 200), size, seeded(0)) is None
    assert square_window((100, 100, 150, 150), (256, 256), seeded(1)) is None


def test_a_triple_is_the_picture_its_hole_and_what_was_in_it():
    rng = np.random.default_rng(0)
    picture = torch.from_numpy(rng.random((3, 64, 64), dtype=np.float32))
    plain = make_triple(picture, (20, 24, 40, 50), 64, 32, Augmentation((), (), False, False), seeded(0))
    assert torch.equal(plain.source, picture)
    assert torch.equal(plain.fill[0], masks.box_mask((20, 24, 40, 50), (64, 64)))
    crop = Image.fromarray((picture[:, 23:51, 19:41].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    expected = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.abs(plain.reference.permute(1, 2, 0).numpy() - expected).mean() < 0.02
    wide = torch.cat([picture, picture.flip(-1)], -1)
    for seed in range(20):  # everything on
        triple = make_triple(wide, (20, 24, 40, 50), 64, 32, Augmentation(), seeded(seed))
        assert triple.source.shape == (3, 64, 64) and triple.reference.shape == (3, 32, 32)
        assert triple.fill.max() > 0.9 and triple.fill.mean() < 0.95
        for part in (triple.source, triple.reference, triple.fill):
            assert part.min() >= 0 and part.max() <= 1


def test_the_hole_is_cropped_with_the_picture():
    """The picture shows its own hole: whatever the crop, what is white is to be filled."""
    for seed in range(5):
        box = (40 + 3 * seed, 20, 80, 44)
        picture = masks.box_mask(box, (64, 128)).expand(3, -1, -1)
        triple = make_triple(picture, box, 64, 32, Augmentation((), (), False, True), seeded(seed))
        assert triple.fill.sum() >= 24 * (40 - 3 * seed)
        assert torch.allclose(triple.source, triple.fill.expand(3, -1, -1), atol=1e-6)


@pytest.mark.parametrize("height, width, box", [
    (64, 64, (10, 10, 30, 30)), (300, 500, (400, 20, 480, 90)), (100, 700, (50, 10, 400, 90)),
])  # fmt: skip
def test_windows_hold_the_hole_and_keep_the_proportions(height, width, box):
    window = painting.find_window(masks.box_mask(box, (height, width)), 64, 16)
    left, top, right, bottom = window.box
    assert 0 <= left <= box[0] and 0 <= top <= box[1] and width >= right >= box[2] and height >= bottom >= box[3]
    assert window.size[0] % 16 == 0 and window.size[1] % 16 == 0 and min(window.size) == 64
    assert abs(math.log((bottom - top) / (right - left) * window.size[1] / window.size[0])) < 0.2


def test_a_hole_that_is_all_of_the_picture_or_longer_than_its_short_side_has_a_window():
    assert painting.find_window(torch.ones(64, 64), 64, 16).box == (0, 0, 64, 64)

    window = painting.find_window(masks.box_mask((400, 1000, 3600, 2000), (3000, 4000)), 512, 64)
    assert window.box == (0, 0, 4000, 3000) and window.size == (512, 704)
    long = painting.find_window(masks.box_mask((2000, 20, 2200, 60), (100, 5000)), 64, 16)
    assert long.box == (1900, 0, 2300, 100)  # twice the hole's side, where the picture has room


def test_the_default_feather_grows_with_the_picture():
    for side, expected in ((64, 1), (512, 8)):
        fill = masks.box_mask((20, 20, 50, 50), (side, side))
        window = painting.find_window(fill, 64, 16)
        given = Image.new("RGB", (side, side)), torch.ones(1, 3, 64, 64), fill, window, True
        by_default, one, eight = (painting.paste_back(*given, feather) for feather in (None, 1, 8))
        assert by_default == {1: one, 8: eight}[expected] and one != eight


def test_the_feather_rises_inside_of_the_hole_only():
    fill = masks.box_mask((20, 20, 50, 50), (64, 64))
    opacity = painting.feathered(fill, 4)
    assert (opacity[fill == 0] == 0).all() and opacity[35, 35] == 1
    assert opacity[35, 20:25].tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert torch.equal(painting.feathered(fill, 0), fill)
