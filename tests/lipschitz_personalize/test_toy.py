"""The toy of Sec. 4.3: its schedule, model, estimator and files."""

import json
import math

import pytest
import torch
from PIL import Image

from lipschitz_personalize import toy


def test_the_model_has_the_published_size_and_the_data_its_places():
    assert sum(tensor.numel() for tensor in toy.make_model().parameters()) == 12178
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


def test_a_short_run_leaves_picture_and_numbers(tmp_path):
    toy.main(["--pretrain_epochs", "2", "--finetune_epochs", "2", "--output_dir", str(tmp_path / "toy")])
    metrics = json.loads((tmp_path / "toy" / "metrics.json").read_text())
    assert metrics.keys() == {"pretrained", "naive", "prior", "ours", "seconds"}
    assert all(math.isfinite(metrics[method]["kl_old"]) for method in toy.METHODS)
    assert Image.open(tmp_path / "toy" / "toy.png").size[0] > 1000


@pytest.mark.parametrize("words, code", [(["--finetune_epochs", "0"], 2), (["--output_dir", __file__], 2)])
def test_bad_input(words, code, capsys):
    with pytest.raises(SystemExit) as exit:
        toy.main(words)
    assert exit.value.code == code and capsys.readouterr().err.startswith("error: ")
