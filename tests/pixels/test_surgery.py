"""The loop against float64 readings of Algorithms 1 and 2, cell by cell, and against diffusers' own img2img."""

import logging
import math

import numpy as np
import pytest
import torch

from pixels.surgery import Surgery, edit, edit_iteratively
from tests.pixels.scene import FIRST, MAP, OTHER, SECOND, SOURCE, THIRD
from tests.pixels.toy import SPREAD, alpha_bars, ddim, draws, mean_latents, network, reduce, seeded, toy_backbone
from tests.refusing import refuses

TAU = {
    "linear": lambda i, n: i / n,
    "quadratic": lambda i, n: (i / n) ** 2,
    "cubic": lambda i, n: (i / n) ** 3,
    "log": lambda i, n: math.log(1 + i) / math.log(1 + n),
    "sigmoid": lambda i, n: 1 / (1 + math.exp(3 - 6 * i / n)),
}


def naive(exemplars, maps, kind="ddim", steps=10, seed=5, threshold="linear", schedule="released", noise="fixed",
          posterior="sample", composite="none", discarded=0):  # fmt: skip
    """numpy, one cell at a time. Everything random comes from the generator in the documented order."""
    random, ab = draws(seeded(seed)), alpha_bars()
    for _ in range(discarded):
        next(random)

    def encode(picture):
        z = mean_latents(picture.numpy())
        return z + SPREAD * next(random) if posterior == "sample" else z

    zs, epss = zip(*[(encode(exemplar), next(random)) for exemplar in exemplars], strict=True)
    z_source, eps = encode(SOURCE), next(random)
    if noise == "shared":
        epss = [eps] * len(zs)
    stride = 1000 // steps
    ts = [1 + stride * j for j in reversed(range(steps))]
    n = steps if schedule == "released" else steps - 1
    mus = [reduce(m) for m in maps]
    sigma = lambda t: math.sqrt((1 - ab[t]) / ab[t])  # noqa: E731

    def q(z0, e, t):
        return z0 * math.sqrt(ab[t]) + math.sqrt(1 - ab[t]) * e if kind == "ddim" else z0 + sigma(t) * e

    z = None
    for i, t in enumerate(ts):
        tau = 0.0 if schedule == "paper" and i == 0 else TAU[threshold](i, n)
        if noise == "fresh" and i > 0:
            eps = next(random)
        noised, mixed = q(z_source, eps, t), np.empty((1, 4, 4, 6))
        for y in range(4):
            for x in range(6):
                cell = (0, slice(None), y, x)
                if i == 0:
                    mixed[cell] = noised[cell]
                    for z_k, e_k, mu in zip(zs, epss, mus, strict=True):
                        if not mu[y, x] > tau:
                            mixed[cell] = q(z_k, e_k, t)[cell]
                else:  # Alg. 2, l. 20, nested for each exemplar
                    mixed[cell] = z[cell]
                    if all(mu[y, x] > tau for mu in mus):
                        mixed[cell] = noised[cell]
        z = mixed
        below = t - stride
        if kind == "ddim":
            z = ddim(z, t, below)
        else:
            e = network(z / math.sqrt(1 + sigma(t) ** 2), t)
            z = z + ((sigma(below) if below >= 0 else 0.0) - sigma(t)) * e
    if composite == "latent":
        keep = np.minimum.reduce(mus) > TAU[threshold](steps - 1, n)
        z = np.where(keep, z_source, z)
    return z


def run(exemplars, maps, kind="ddim", steps=10, seed=5, discarded=0, **settings):
    """The latents that the loop hands to the decoder."""
    backbone = toy_backbone(kind, steps, discarded=(torch.float64,) * discarded)
    caught = []
    object.__setattr__(backbone, "decode", lambda z: caught.append(z) or torch.zeros(1, 3, 32, 48))
    edit(backbone, SOURCE, exemplars, maps, Surgery(**settings), seeded(seed))
    return caught[0].numpy()


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize("settings", [
    {}, {"schedule": "paper"}, {"noise": "fresh"}, {"noise": "shared"}, {"posterior": "mean"}, {"composite": "latent"},
    {"discarded": 2}, {"schedule": "paper", "noise": "fresh", "posterior": "mean"},
    *({"threshold": name} for name in ("quadratic", "cubic", "log", "sigmoid")),
    {"threshold": "sigmoid", "schedule": "paper"},
], ids=str)  # fmt: skip
def test_algorithm_1(kind, settings):
    assert np.abs(run([FIRST], [MAP], kind, **settings) - naive([FIRST], [MAP], kind, **settings)).max() < 2e-5


@pytest.mark.parametrize("settings", [{}, {"noise": "fresh"}, {"schedule": "paper"}], ids=str)
def test_algorithm_2_any_number_of_exemplars_in_one_pass(settings):
    exemplars, maps = [FIRST, SECOND, THIRD], [MAP, OTHER, MAP.flip(-1)]
    assert np.abs(run(exemplars, maps, **settings) - naive(exemplars, maps, **settings)).max() < 2e-5


def test_algorithm_2_as_printed_for_two_exemplars():
    """Lines 14 and 20, with masks as numbers: the nested formula, not the rule of thumb that replaces it."""
    ab, random, steps = alpha_bars(), draws(), 6
    z2, z3, z1 = (mean_latents(p.numpy()) for p in (FIRST, SECOND, SOURCE))
    e2, e3, e1 = next(random), next(random), next(random)
    q = lambda z, e, t: math.sqrt(ab[t]) * z + math.sqrt(1 - ab[t]) * e  # noqa: E731
    for i, t in enumerate(range(831, 0, -166)):
        mask1, mask2 = (np.float64(reduce(m) > i / steps) for m in (MAP, OTHER))
        if i == 0:
            z = (q(z1, e1, t) * mask1 + q(z2, e2, t) * (1 - mask1)) * mask2 + q(z3, e3, t) * (1 - mask2)
        else:
            z = (q(z1, e1, t) * mask1 + z * (1 - mask1)) * mask2 + z * (1 - mask2)
        z = ddim(z, t, t - 166)
    found = run([FIRST, SECOND], [MAP, OTHER], steps=steps, posterior="mean")
    assert np.abs(found - z).max() < 2e-5


def test_the_trace_holds_what_line_15_mixes():
    trace, backbone = [], toy_backbone()
    result = edit(backbone, SOURCE, [FIRST], [MAP], Surgery(), seeded(), trace)
    for i, step in enumerate(trace, start=1):
        assert torch.equal(step.keep, result.mu > i / 10)
        if i < len(trace):  # the next residue is this mixture, denoised
            mixed = torch.where(step.keep, step.noised, step.residue)
            expected = ddim(mixed.numpy(), int(step.timestep), int(step.timestep) - 100)
            assert np.abs(trace[i].residue.numpy() - expected).max() < 1e-5


def test_a_batch_gives_what_its_pictures_give_alone():
    sources, exemplars = torch.cat([SOURCE, SECOND]), torch.cat([FIRST, THIRD])
    maps = torch.cat([MAP, OTHER])
    together = edit(toy_backbone(), sources, [exemplars], [maps], Surgery(), [seeded(1), seeded(2)])
    for row in range(2):
        alone = edit(toy_backbone(), sources[row : row + 1], [exemplars[row : row + 1]], [maps[row : row + 1]],
                     Surgery(), seeded(row + 1))  # fmt: skip
        assert torch.equal(together.edited[row], alone.edited[0])
    one_map = edit(toy_backbone(), sources, [exemplars], [MAP], Surgery(), [seeded(1), seeded(2)])
    assert torch.equal(one_map.edited[0], together.edited[0])


def test_iteratively_each_edit_is_the_next_source():
    found = edit_iteratively(toy_backbone(), SOURCE, [FIRST, SECOND], [MAP, OTHER], generator=seeded())
    source, random = SOURCE, seeded()
    for result, exemplar, edit_map in zip(found, (FIRST, SECOND), (MAP, OTHER), strict=True):
        again = edit(toy_backbone(), source, [exemplar], [edit_map], generator=random)
        assert torch.equal(result.edited, again.edited)
        source = again.edited.double()


def test_pixel_composite_gives_white_back_to_the_source():
    plain = edit(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(), seeded()).edited
    composed = edit(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(composite="pixel"), seeded()).edited
    share = ((MAP - 0.9) / 0.1).clamp(0, 1)
    assert torch.allclose(composed, SOURCE.float() * share + plain * (1 - share), atol=1e-6)
    assert torch.equal(composed[..., 16:, 32:], SOURCE[..., 16:, 32:].float())
    lets_go = edit(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(composite="pixel", schedule="paper"), seeded())
    assert lets_go.edited.isfinite().all()  # its last threshold is 1: nothing is white enough


def test_a_map_without_black_is_warned_of_and_a_black_point_helps(caplog):
    noisy = (MAP * 0.98 + 0.02).clamp(0, 1)
    with caplog.at_level(logging.WARNING):
        result = edit(toy_backbone(), SOURCE, [FIRST], [noisy], Surgery(), seeded())
    assert result.coverage.exemplar == 0 and "the exemplar does not enter" in caplog.text
    assert "0 of 24 latent cells (0.0 %) take the exemplar" in str(result.coverage)
    caplog.clear()
    helped = edit(toy_backbone(), SOURCE, [FIRST], [noisy], Surgery(black_point=0.03), seeded())
    assert helped.coverage.exemplar == 4 and not caplog.text
    released = edit(toy_backbone(), SOURCE, [FIRST], [MAP], Surgery(), seeded())
    assert (helped.edited - released.edited).abs().max() < 1e-3


@pytest.mark.parametrize("exemplars, maps, message", [
    ([], [], "each exemplar needs a map"),
    ([FIRST], [MAP, MAP], "each exemplar needs a map"),
    ([FIRST[..., :24, :]], [MAP], "differ in shape"),
    ([FIRST], [MAP[0]], r"\[1, 1, H, W\] is needed"),
    ([FIRST], [MAP + 0.5], "outside"),
    ([FIRST], [MAP * torch.nan], "NaN"),
])  # fmt: skip
def test_wrong_shapes_and_values_are_refused(exemplars, maps, message):
    refuses(message, edit, toy_backbone(), SOURCE, exemplars, maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strict_comparison_at_a_level_of_the_map(dtype):
    """A grey of exactly i / N is let go at step i."""
    trace, grey = [], torch.full((1, 1, 32, 48), 0.7, dtype=dtype)
    edit(toy_backbone(), SOURCE, [FIRST], [grey], Surgery(), seeded(), trace)
    assert [bool(step.keep.any()) for step in trace] == [True] * 6 + [False] * 3
