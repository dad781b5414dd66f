"""The lecture runs, and the answers to its exercises."""

import pytest
import torch

from lipschitz_personalize.layer_lambdas import layer_factors
from lipschitz_personalize.regularizer import lora_change, make_regularizer
from tests import lectures


@pytest.mark.slow
def test_the_lecture_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = lectures.run_quickly("lipschitz_personalize")
    ends = [(path[-1] - path[0]).norm() for _, path in names["walks"].values()]
    assert ends == sorted(ends, reverse=True)  # a stronger spring ends nearer


def test_1_the_pull_on_a_number():
    def pull(weight, n):
        return 2 * weight / n

    assert pull(500, 320) == 3.125 and pull(500, 1280 * 1280 * 9) == pytest.approx(6.8e-5, rel=0.01)
    tensor = torch.nn.Parameter(torch.zeros(320))
    regularizer = make_regularizer({"norm": tensor}, 500.0)
    tensor.data += 1  # a unit of drift
    regularizer.add_gradient()
    assert torch.allclose(tensor.grad, torch.full((320,), pull(500, 320)))


def test_2_the_change_that_lora_stands_for():
    def change(a, b):
        return ((b.T @ b) * (a @ a.T)).sum()

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, generator=generator), torch.randn(40, 2, generator=generator)
    assert change(a, b).item() == pytest.approx((b @ a).square().sum().item(), rel=1e-5)
    assert change(a, b).item() == pytest.approx(lora_change([(a, b, 1.0)]).item(), rel=1e-6)


def test_3_walking_back():
    def left(s):
        return s**2

    tensor, base = torch.nn.Parameter(torch.zeros(7)), torch.zeros(7)
    regularizer = make_regularizer({"w": tensor}, 3.0)
    tensor.data += torch.arange(7.0)
    whole, trained = regularizer.value(), tensor.detach().clone()
    for s in (0.0, 0.3, 0.7, 1.0):
        tensor.data = base + s * (trained - base)
        assert regularizer.value() == pytest.approx(left(s) * whole)


def test_4_where_training_ends():
    def end(a, best, c, base):
        return (a * best + 2 * c * base) / (a + 2 * c)

    a, best, c, base = 3.0, 2.0, 0.4, -1.0
    weight = torch.nn.Parameter(torch.tensor([base], dtype=torch.float64))
    regularizer = make_regularizer({"w": weight}, c)  # of one number: mean and sum are the same
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (a / 2 * (weight - best).square()).sum().backward()
        regularizer.add_gradient()
        optimizer.step()
    assert weight.item() == pytest.approx(end(a, best, c, base), abs=1e-9)


def test_5_a_lambda_for_each_kind_of_layer():
    rules = [("attn2", 0.1), ("norm", 0.0)]
    names = ["down.attn1.to_q.weight", "down.attn2.to_k.weight", "down.norm1.weight"]
    assert list(layer_factors(names, rules).values()) == [1.0, 0.1, 0.0]
