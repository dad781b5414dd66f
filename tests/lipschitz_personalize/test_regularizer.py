"""The penalty and its gradient against autograd in float64, in every convention."""

import pytest
import torch

from common.runs import InputError
from lipschitz_personalize.regularizer import layer_factors, lipschitz_factors, lora_change, make_regularizer


def tensors(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (4, 3, 3, 3), "norm.weight": (5,), "attn2.to_k.weight": (6, 2)}
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
        assert torch.allclose(tensor.grad.double(), 0.25 + naive[name].grad, rtol=1e-6, atol=1e-6)
        assert tensor.grad.dtype == dtype


def test_a_row_counts_as_its_whole_table():
    parameters = {"word": torch.nn.Parameter(torch.zeros(4))}
    regularizer = make_regularizer(parameters, 10.0, counts={"word": 1000})
    parameters["word"].data += 2
    regularizer.add_gradient()  # of 10 * mean over 1000 numbers, 996 of which did not move
    assert torch.allclose(parameters["word"].grad, torch.tensor(10 * 2 * 2 / 1000).expand(4))


def test_nothing_at_lambda_zero_and_nothing_at_the_base():
    parameters = {name: torch.nn.Parameter(value) for name, value in tensors(0).items()}
    assert make_regularizer(parameters, 0.0) is None
    regularizer = make_regularizer(parameters, 5.0)
    regularizer.add_gradient()
    assert regularizer.value() == 0 and all(not tensor.grad.any() for tensor in parameters.values())


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
        assert (tensor.grad.abs() <= 2 * 5.0 * relative * tensor.detach().abs() * 1.001).all()


def test_the_copy_does_not_follow_the_weights():
    parameters = {"w": torch.nn.Parameter(torch.ones(3))}
    regularizer = make_regularizer(parameters, 1.0)
    parameters["w"].data.add_(1.0)
    assert regularizer.value() == pytest.approx(1.0)


def test_lora_moves_the_weights_by_its_product():
    generator = torch.Generator().manual_seed(0)
    layers = [
        (torch.randn(2, 5, generator=generator, dtype=torch.float64).requires_grad_(),
         torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_(), 1.5)
        for _ in range(3)
    ]  # fmt: skip
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


def test_a_function_from_outside_spectral_shifts():
    generator = torch.Generator().manual_seed(0)
    u, sigma, v = torch.linalg.svd(torch.randn(6, 4, generator=generator, dtype=torch.float64), full_matrices=False)
    delta = (
        0.5 * torch.randn(4, generator=generator, dtype=torch.float64) - sigma.mean() * torch.eye(4)[3]
    ).requires_grad_()
    change = lambda: (torch.relu(sigma + delta) - sigma).square().sum()  # noqa: E731
    rebuilt = u @ torch.diag(torch.relu(sigma + delta)) @ v - u @ torch.diag(sigma) @ v
    assert change().item() == pytest.approx(rebuilt.square().sum().item())
    (expected,) = torch.autograd.grad(2.0 * rebuilt.square().sum(), [delta])
    make_regularizer({"delta": delta}, 2.0, "function", function=change).add_gradient()
    assert torch.allclose(delta.grad, expected)


def test_factors_per_layer_multiply_and_a_rule_without_a_layer_is_refused():
    names = ["a.attn1.to_q", "a.attn2.to_k", "a.norm"]
    assert layer_factors(names, [("attn", 2.0), ("attn2", 5.0)]) == {names[0]: 2.0, names[1]: 10.0, names[2]: 1.0}
    for rule, said in ((("attn3", 1.0), "no trained tensor"), (("attn(", 1.0), "no regular expression")):
        with pytest.raises(InputError, match=said):
            layer_factors(names, [rule])


@pytest.mark.parametrize("convention", ["mean_sum", "sum"])
def test_lipschitz_factors_of_a_linear_network(convention):
    """eps = 3 a + M b: ||J_a||^2 = 9 n, ||J_b||^2 = ||M||^2; the total pull is that of the plain convention."""
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(50, 4, generator=generator)
    parameters = {"a": torch.zeros(50, requires_grad=True), "b": torch.zeros(4, requires_grad=True)}
    output = lambda: 3 * parameters["a"] + m @ parameters["b"]  # noqa: E731
    factors = lipschitz_factors(parameters, [output] * 10, generator, convention, probes=200)
    plain = {"a": 1 / 50, "b": 1 / 4} if convention == "mean_sum" else {"a": 1.0, "b": 1.0}
    c = {name: factors[name] * plain[name] for name in plain}
    assert c["b"] / c["a"] == pytest.approx(m.square().sum().item() / 4 / 9, rel=0.1)
    assert 50 * c["a"] + 4 * c["b"] == pytest.approx(50 * plain["a"] + 4 * plain["b"], rel=1e-9)


def test_lipschitz_factors_of_a_dead_network_are_refused():
    parameters = {"a": torch.zeros(3, requires_grad=True)}
    with pytest.raises(InputError, match="does not move"):
        lipschitz_factors(parameters, [lambda: parameters["a"] * 0], torch.Generator())


@pytest.mark.parametrize("convention, said", [("mean", "no convention"), ("function", "indirectly")])
def test_conventions_that_cannot_be(convention, said):
    with pytest.raises(InputError, match=said):
        make_regularizer({"w": torch.nn.Parameter(torch.ones(2))}, 1.0, convention)
