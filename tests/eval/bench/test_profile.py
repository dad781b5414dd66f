"""Kinds of operations are told apart, and multiplications counted, on steps that consist of one kind."""

import torch

from eval.bench.profile import explain


def test_products_and_sums_are_told_apart_and_multiplications_counted():
    one, other = torch.randn(2, 300, 300)
    found = explain("once", {"once": lambda number: one @ other, "twice": lambda number: (one @ other) @ other,
                             "sums": lambda number: [torch.add(one, other) for _ in range(20)]})  # fmt: skip
    assert found["once"]["products"] > 0.5 and found["twice"]["multiplications"] == 2
    assert found["sums"]["sums and copies"] > 10 * found["sums"]["products"] and not found["sums"]["multiplications"]
