"""The toy of Sec. 4.3: its schedule, model, estimator and files."""

import copy
import json
import math
from argparse import Namespace

import pytest
import torch
from PIL import Image

from lipschitz_personalize.reproduction import toy


def test_the_model_has_the_published_size_and_the_data_its_places():
    assert sum(tensor.numel() for tensor in toy.Denoiser().parameters()) == 12178
    data = toy.sample_data(torch.Generator().manual_seed(0))
    assert data.shape == (6, 1000, 2)
    for c in range(5):
        place = 3 * torch.tensor([math.cos(2 * math.pi * c / 5), math.sin(2 * math.pi * c / 5)])
        assert torch.allclose(data[c].mean(0), place, atol=0.06)
    assert torch.allclose(data[5].mean(0), torch.zeros(2), atol=0.06)
    assert torch.allclose(data.std(1), torch.full((6, 2), 0.5), atol=0.05)


def test_the_schedule_is_the_cosine_one_with_a_floor():
    table = toy.alpha_bar_table()
    f = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(101)]
    assert table.shape == (100,)
    assert table[:-1].tolist() == pytest.approx([f[t] / f[0] for t in range(1, 100)], rel=1e-4)
    assert table[-1].item() == pytest.approx(1e-5)


def test_the_divergence_of_gaussians_is_known():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 2000, 2, generator=generator)
    assert toy.knn_divergence(p, q) == pytest.approx(0.0, abs=0.1)
    assert toy.knn_divergence(p, q + torch.tensor([1.0, 1.0])) == pytest.approx(1.0, abs=0.2)  # |shift|^2 / 2
    wide = 2 * (math.log(2) + 1 / 8 - 1 / 2)  # of N(0, 1) to N(0, 4), per dimension
    assert toy.knn_divergence(p, 2 * q) == pytest.approx(wide, abs=0.15)


def test_sampling_with_the_true_noise_finds_the_clusters():
    """The exact eps of a Gaussian N(m, s^2) at x_t is known; ancestral sampling then has to end in that Gaussian."""
    alpha_bar, m, s = toy.alpha_bar_table(), toy.centres(), toy.SPREAD

    def exact(x, t, c):
        a = alpha_bar[t][:, None]
        return (1 - a).sqrt() * (x - a.sqrt() * m[c]) / (a * s**2 + 1 - a)

    drawn = toy.draw(exact, alpha_bar, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(1), m, atol=0.08)
    assert torch.allclose(drawn.std(1), torch.full((6, 2), s), atol=0.08)


@pytest.mark.parametrize("method", toy.METHODS)
def test_an_epoch_of_fine_tuning_against_a_reading_of_its_own(method):
    """Two steps on the new class; prior: + 100 times the loss on class 0; ours: + 50 sums of mean squares."""
    data, a = toy.sample_data(torch.Generator().manual_seed(0)), toy.alpha_bar_table()
    torch.manual_seed(0)
    model = toy.Denoiser()
    other = copy.deepcopy(model)
    args = Namespace(prior_loss_weight=100.0, l2_reg_weight=50.0, finetune_epochs=1)
    toy.fine_tune(method, args, model, torch.optim.Adam(model.parameters(), 2e-3), a, data,
                  torch.Generator().manual_seed(1))  # fmt: skip

    generator, base = torch.Generator().manual_seed(1), copy.deepcopy(other)
    optimizer = torch.optim.Adam(other.parameters(), 2e-3)

    def loss(x, c):
        t = torch.randint(100, (len(x),), generator=generator)
        eps = torch.randn(len(x), 2, generator=generator)
        noisy = a[t, None].sqrt() * x + (1 - a[t, None]).sqrt() * eps
        return (other(noisy, t, torch.full((len(x),), c)) - eps).square().mean()

    order = torch.randperm(1000, generator=generator)
    for picked in (order[:512], order[512:]):
        total = loss(data[5, picked], 5)
        if method == "prior":
            total = total + 100 * loss(data[0, torch.randint(1000, (len(picked),), generator=generator)], 0)
        if method == "ours":
            pairs = zip(other.parameters(), base.parameters(), strict=True)
            total = total + 50 * sum((new - old.detach()).square().mean() for new, old in pairs)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for new, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(new, expected, atol=1e-5)


def test_a_short_run_leaves_picture_and_numbers(tmp_path, monkeypatch):
    steps, tune = [], toy.fine_tune

    def recorded(method, args, model, optimizer, *rest):
        steps.append({int(one["step"]) for one in optimizer.state_dict()["state"].values()})
        tune(method, args, model, optimizer, *rest)

    monkeypatch.setattr(toy, "fine_tune", recorded)
    toy.main(["--pretrain_epochs", "2", "--finetune_epochs", "2", "--output_dir", str(tmp_path / "toy")])
    metrics = json.loads((tmp_path / "toy" / "metrics.json").read_text())
    assert metrics.keys() == {"pretrained", "naive", "prior", "ours", "seconds"}
    assert steps == [{20}] * 3  # two epochs of ten batches: Adam goes on from the pretraining, for each anew
    assert all(math.isfinite(metrics[method]["kl_old"]) for method in toy.METHODS)
    assert Image.open(tmp_path / "toy" / "toy.png").size[0] > 1000
