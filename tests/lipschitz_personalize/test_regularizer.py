"""The penalty and its gradient against autograd in float64, in every convention; a lambda per tensor."""

import pytest
import torch

from common.runs import InputError
from lipschitz_personalize.layer_lambdas import layer_factors, lipschitz_factors
from lipschitz_personalize.regularizer import SMALL, lora_change, make_regularizer
from tests.refusing import refuses


def tensors(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (64, 32, 3, 3), "norm.weight": (5,), "attn2.to_k.weight": (6, 2)}
    assert 64 * 32 * 9 > SMALL  # tensors of both sides of the limit
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def moved(parameters, seed):
    """The same Parameter objects at other values, with gradients of something else."""
    for name, change in tensors(seed, torch.float32).items():
        parameters[name].data += change.to(parameters[name].dtype)
        parameters[name].grad = torch.full_like(parameters[name], 0.25)


@pytest.mark.parametrize("convention", ["mean_sum", "sum", "lora_factors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_against_autograd(convention, dtype):
    parameters = {name: torch.nn.Parameter(value.to(dtype)) for name, value in tensors(0).items()}
    base = {name: tensor.detach().double().clone() for name, tensor in parameters.items()}
    regularizer = make_regularizer(parameters, 7.0, convention, factors={"norm.weight": 3.0})
    moved(parameters, 1)
    naive = {name: tensor.detach().double().requires_grad_() for name, tensor in parameters.items()}
    terms = {
        "mean_sum": lambda name: (naive[name] - base[name]).square().mean(),
        "sum": lambda name: (naive[name] - base[name]).square().sum(),
        "lora_factors": lambda name: naive[name].square().sum(),
    }
    loss = 7.0 * sum((3.0 if name == "norm.weight" else 1.0) * terms[convention](name) for name in naive)
    loss.backward()
    regularizer.add_gradient()
    assert regularizer.value() == pytest.approx(loss.item(), rel=1e-6)
    for name, tensor in parameters.items():
        digits = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-5}
        assert torch.allclose(tensor.grad.double(), 0.25 + naive[name].grad, **digits)
        assert tensor.grad.dtype == dtype


def test_a_row_counts_as_its_whole_table_and_the_share_is_of_the_losss_gradient():
    parameters = {"word": torch.nn.Parameter(torch.zeros(4))}
    regularizer = make_regularizer(parameters, 10.0, counts={"word": 1000})
    parameters["word"].data += 2
    parameters["word"].grad = torch.full((4,), 0.5)
    pull = 10 * 2 * 2 / 1000  # of 10 * mean over 1000 numbers, 996 of which did not move
    assert regularizer.share() == pytest.approx(pull / 0.5) and (parameters["word"].grad == 0.5).all()
    regularizer.add_gradient()
    assert torch.allclose(parameters["word"].grad, torch.tensor(0.5 + pull).expand(4))


def test_nothing_at_lambda_zero_and_nothing_at_the_base():
    parameters = {name: torch.nn.Parameter(value) for name, value in tensors(0).items()}
    assert make_regularizer(parameters, 0.0) is None
    regularizer = make_regularizer(parameters, 5.0)
    regularizer.add_gradient()
    assert regularizer.value() == 0 and regularizer.share() == 0
    assert all(tensor.grad.abs().max() <= 1e-15 for tensor in parameters.values())
    assert not parameters["norm.weight"].grad.any()


@pytest.mark.parametrize("dtype, relative", [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_a_copy_of_sixteen_bits_is_exact_for_such_weights_and_near_for_others(dtype, relative):
    stored = {name: torch.nn.Parameter(value.to(dtype).float()) for name, value in tensors(0).items()}
    regularizer = make_regularizer(stored, 5.0, base_dtype=dtype, base_device="cpu")
    assert regularizer.value() == 0
    assert {copy.dtype for copy in regularizer.base.values()} == {dtype}
    others = {name: torch.nn.Parameter(value.float()) for name, value in tensors(1).items()}
    regularizer = make_regularizer(others, 5.0, "sum", base_dtype=dtype)
    regularizer.add_gradient()
    for tensor in others.values():
        assert (tensor.grad.abs() <= 2 * 5.0 * relative * tensor.detach().abs() * 1.001 + 1e-6).all()


def test_lora_moves_the_weights_by_its_product():
    generator = torch.Generator().manual_seed(0)
    factor = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    layers = [(factor(2, 5), factor(7, 2), 1.5) for _ in range(3)]
    naive = sum((s * b @ a).square().sum() for a, b, s in layers)
    assert lora_change(layers).item() == pytest.approx(naive.item(), rel=1e-12)
    parameters = {f"{i}{j}": layer[j] for i, layer in enumerate(layers) for j in (0, 1)}
    expected = torch.autograd.grad(3.0 * naive, list(parameters.values()))
    parameters["00"].grad = torch.ones_like(parameters["00"])
    regularizer = make_regularizer(parameters, 3.0, "function", function=lambda: lora_change(layers))
    regularizer.add_gradient()
    for number, (gradient, tensor) in enumerate(zip(expected, parameters.values(), strict=True)):
        assert torch.allclose(tensor.grad, gradient + (number == 0), rtol=1e-10)
    assert regularizer.value() == pytest.approx(3 * naive.item())


class Network(torch.nn.Module):
    """Tensors of both sides of SMALL, and gradients of many sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = torch.nn.Linear(120, 150), torch.nn.LayerNorm(150), torch.nn.Linear(150, 3)
        self.double()

    def forward(self, x):
        return self.last(self.norm(torch.tanh(self.first(x))))


def fifty_steps(how):
    """Weights after fifty steps of Adam with the penalty: "autograd" of the formula, "general" or "decay"."""
    net = Network()
    parameters, generator = dict(net.named_parameters()), torch.Generator().manual_seed(1)
    base = {name: tensor.detach().clone() for name, tensor in parameters.items()}
    regularizer = make_regularizer(parameters, 500.0)
    groups = regularizer.adam_groups() if how == "decay" else parameters.values()
    optimizer = torch.optim.Adam(groups, lr=1e-3, fused=True)
    for _ in range(50):
        x, y = torch.randn(8, 123, generator=generator, dtype=torch.float64).split([120, 3], dim=1)
        loss = (net(x) - y).square().mean()
        if how == "autograd":
            loss = loss + 500.0 * sum((parameters[name] - base[name]).square().mean() for name in base)
        loss.backward()
        if how != "autograd":
            regularizer.add_gradient()
        optimizer.step()
        optimizer.zero_grad()
    assert max((parameters[name] - base[name]).abs().max() for name in base) > 1e-3  # it has trained
    return parameters, regularizer


@pytest.mark.parametrize("how", ["general", "decay"])
def test_fifty_steps_of_adam_are_those_of_the_formula(how):
    (found, regularizer), (expected, _) = fifty_steps(how), fifty_steps("autograd")
    assert regularizer.decayed == ({"first.weight"} if how == "decay" else set())
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 1e-12  # Adam enlarges the last digits of gradients near zero
    assert (found["first.weight"] - expected["first.weight"]).norm() < 1e-14 * expected["first.weight"].norm()


@pytest.mark.parametrize("convention, said", [("mean", "no convention"), ("function", "indirectly")])
def test_conventions_that_cannot_be(convention, said):
    refuses(said, make_regularizer, {"w": torch.nn.Parameter(torch.ones(2))}, 1.0, convention)


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
