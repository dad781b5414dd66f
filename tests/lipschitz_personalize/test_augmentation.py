"""Custom Diffusion's augmentation: shares, places, masks and words."""

import torch

from lipschitz_personalize.augmentation import LARGE, SMALL, augment


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
