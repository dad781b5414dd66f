"""A lambda per tensor: rules by name, and the output's measured sensitivity."""

import pytest
import torch

from common.runs import InputError
from lipschitz_personalize.layer_lambdas import layer_factors, lipschitz_factors
from tests.refusing import refuses


def test_factors_per_layer_multiply_and_a_rule_without_a_layer_is_refused():
    names = ["a.attn1.to_q", "a.attn2.to_k", "a.norm"]
    assert layer_factors(names, [("attn", 2.0), ("attn2", 5.0)]) == {names[0]: 2.0, names[1]: 10.0, names[2]: 1.0}
    for rule, said in ((("attn3", 1.0), "no trained tensor"), (("attn(", 1.0), "no regular expression")):
        refuses(said, layer_factors, names, [rule])


@pytest.mark.parametrize("convention", ["mean_sum", "sum"])
def test_lipschitz_factors_of_a_linear_network(convention):
    """eps = 3 a + M b: ||J_a||^2 = 9 n, ||J_b||^2 = ||M||^2; the total pull is that of the plain convention."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(50, 4, generator=generator)
    parameters = {"a": torch.zeros(50, requires_grad=True), "b": torch.zeros(4, requires_grad=True)}
    output = lambda: 3 * parameters["a"] + m @ parameters["b"]  # noqa: E731
    factors = lipschitz_factors(parameters, [output] * 2000, generator, convention)
    plain = {"a": 1 / 50, "b": 1 / 4} if convention == "mean_sum" else {"a": 1.0, "b": 1.0}
    c = {name: factors[name] * plain[name] for name in plain}
    assert c["b"] / c["a"] == pytest.approx(m.square().sum().item() / 4 / 9, rel=0.1)
    assert 50 * c["a"] + 4 * c["b"] == pytest.approx(50 * plain["a"] + 4 * plain["b"], rel=1e-9)
    with pytest.raises(InputError, match="does not move"):  # a dead network
        lipschitz_factors(parameters, [lambda: parameters["a"] * 0], torch.Generator())
