"""Beyond the paper, whose lambda is one number: a lambda for each tensor, by its name or by what it does to the output.

Both give factors lambda_i / lambda, which multiply the penalty of regularizer.py. (Asked for by the paper's reviewers.)
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from common.runs import InputError
from common.training import step_generator
from lipschitz_personalize.objectives import encode_text, predict, random_noisy

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # noise levels at which the output's sensitivity is measured


def factors_of(pipe, args, space) -> dict[str, float]:
    """lambda_i / lambda of a training's flags --l2_layer_weights and --l2_lipschitz; 1 where neither is given."""
    factors = layer_factors(space.parameters, args.l2_layer_weights)
    if not args.l2_lipschitz:
        return factors
    prompt = args.instance_prompt if space.trains_text else args.class_prompt or args.instance_prompt

    def output(level: float) -> Callable[[], Tensor]:
        z, t = random_noisy(pipe, level, step_generator(args.seed, 0, 2, int(100 * level)))
        return lambda: predict(pipe, z, t, encode_text(pipe, [prompt], args.resolution))

    measured = lipschitz_factors(space.parameters, [output(level) for level in LEVELS],
                                 step_generator(args.seed, 0, 3), args.l2_convention, space.counts)  # fmt: skip
    return {name: factors[name] * measured[name] for name in factors}


def layer_factors(names: Iterable[str], rules: Iterable[tuple[str, float]]) -> dict[str, float]:
    """lambda_i / lambda by name: the product of the factors of all (regular expression, factor) rules found in it.
    InputError for a rule that is found in none."""
    factors = dict.fromkeys(names, 1.0)
    for pattern, factor in rules:
        try:
            matched = [name for name in factors if re.search(pattern, name)]
        except re.error as problem:
            raise InputError(f"{pattern!r} is no regular expression: {problem}") from None
        if not matched:
            raise InputError(f"no trained tensor has {pattern!r} in its name; such names are {next(iter(factors))}")
        for name in matched:
            factors[name] *= factor
    return factors


def lipschitz_factors(
    parameters: Mapping[str, Tensor], outputs: Iterable[Callable[[], Tensor]], generator: torch.Generator,
    convention: str = "mean_sum", counts: Mapping[str, int] | None = None,
) -> dict[str, float]:  # fmt: skip
    """lambda_i / lambda in proportion to how much the network's output moves per move of tensor i.

    To first order and in a random direction, ||delta eps||^2 = sum_i s_i ||delta theta_i||^2 with s_i = ||J_i||_F^2 /
    n_i, the squared Lipschitz constant of eps in tensor i, averaged instead of maximised over directions. As
    E ||J_i^T v||^2 = ||J_i||_F^2 for standard normal v, one backward pass per output measures all tensors at once.
    outputs: functions that run the network with a graph (different prompts, timesteps). The factors are scaled so that
    the pull on all weights together, sum_i n_i c_i, stays that of the plain convention.
    """
    tensors = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    squares = dict.fromkeys(tensors, 0.0)
    for output in outputs:
        prediction = output()
        v = torch.randn(prediction.shape, generator=generator).to(prediction)
        gradients = torch.autograd.grad(prediction, list(tensors.values()), v, allow_unused=True)
        for name, gradient in zip(tensors, gradients, strict=True):
            squares[name] += 0.0 if gradient is None else gradient.double().square().sum().item()
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    wanted = {name: squares[name] / sizes[name] for name in tensors}  # c_i, up to one factor for all
    counted = sizes | dict(counts or {})
    plain = {name: 1.0 if convention == "sum" else 1 / counted[name] for name in tensors}
    pull = sum(sizes[name] * wanted[name] for name in tensors)
    if not (math.isfinite(pull) and pull > 0):
        raise InputError("the output does not move with the weights, or is NaN: no Lipschitz factors can be measured")
    scale = sum(sizes[name] * plain[name] for name in tensors) / pull
    return {name: scale * wanted[name] / plain[name] for name in tensors}
