"""The penalty that keeps the weights near the base model's, and its exact gradient (Alg. 1 of the paper).

    L = ||eps - eps_theta(z_t, t, c)||^2 + lambda sum_i ||theta_i - theta_i^base||^2

Four conventions, named; every one of them is  sum_i c_i ||theta_i - base_i||^2  with its own c_i, or a function:

mean_sum       c_i = lambda / n_i: the sum over tensors of the MEAN squared difference. The official code for full
               fine-tuning, Custom Diffusion and the toy does this, and lambda = 500 only makes sense here. Default.
sum            c_i = lambda: the formula as printed.
lora_factors   c_i = lambda and base 0: the sum of squares of LoRA's A and B, as the official LoRA scripts do. It pulls
               A towards zero, not towards where it began.
function       lambda times a differentiable number that the caller gives: the squared distance ||W' - W||^2 of the
               weights that a parameterisation stands for (LoRA: `lora_change`).

The gradient 2 c_i (theta_i - base_i) is added to .grad by hand, once per optimiser step: no graph over the frozen copy.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.runs import InputError

CONVENTIONS = ("mean_sum", "sum", "lora_factors", "function")


@dataclass(frozen=True, eq=False)
class Regularizer:
    """parameters: what is trained, by name. base: frozen copies (of any dtype, on any device), or None for zeros.
    coefficients: c_i by name. function: for the convention of that name, with its lambda in `weight`."""

    parameters: Mapping[str, Tensor]
    base: Mapping[str, Tensor] | None = None
    coefficients: Mapping[str, float] = field(default_factory=dict)
    function: Callable[[], Tensor] | None = None
    weight: float = 0.0

    def add_gradient(self) -> None:
        """grad_i += 2 c_i (theta_i - base_i), exactly. Gradients must not be scaled (fp16) at this moment."""
        if self.function is not None:
            tensors = [tensor for tensor in self.parameters.values() if tensor.requires_grad]
            with torch.enable_grad():
                gradients = torch.autograd.grad(self.weight * self.function(), tensors, allow_unused=True)
            for tensor, gradient in zip(tensors, gradients, strict=True):
                if gradient is not None:
                    tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)
            return
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                drift = self._drift(name, tensor)
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
                tensor.grad.add_(drift.to(tensor.grad.dtype), alpha=2 * self.coefficients[name])

    @torch.no_grad()
    def value(self) -> float:
        """The penalty itself, for the log: lambda is in it."""
        if self.function is not None:
            return self.weight * self.function().item()
        return sum(self.coefficients[name] * self._drift(name, tensor).double().square().sum().item()
                   for name, tensor in self.parameters.items())  # fmt: skip

    def _drift(self, name: str, tensor: Tensor) -> Tensor:
        if self.base is None:
            return tensor
        return tensor - self.base[name].to(tensor.device, tensor.dtype, non_blocking=True)


def make_regularizer(
    parameters: Mapping[str, Tensor],
    weight: float,
    convention: str = "mean_sum",
    counts: Mapping[str, int] | None = None,
    factors: Mapping[str, float] | None = None,
    function: Callable[[], Tensor] | None = None,
    base_dtype: torch.dtype | None = None,
    base_device: str | torch.device | None = None,
) -> Regularizer | None:
    """The penalty around where `parameters` stand now; None for weight 0, which is the plain trainer.

    counts: n_i of mean_sum where it is not the tensor's own size (a row that stands for a whole table). factors:
    lambda_i / lambda (see `layer_factors`, `lipschitz_factors`). base_dtype, base_device: of the frozen copy; a 16-bit
    copy of 16-bit weights is exact, of float32 weights it moves the anchor by a relative 2^-8 (bfloat16) or 2^-11
    (float16). Raises InputError for an unknown convention, or one that does not go with what is given.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"there is no convention {convention!r}; take one of {', '.join(CONVENTIONS)}")
    if weight == 0:
        return None
    if convention == "function":
        if function is None:
            raise InputError("the convention function is for weights that are changed indirectly (LoRA); take mean_sum")
        return Regularizer(parameters, function=function, weight=weight)
    coefficients = {name: weight * (factors or {}).get(name, 1.0) for name in parameters}
    if convention == "lora_factors":
        return Regularizer(parameters, None, coefficients)
    if convention == "mean_sum":
        sizes = {name: (counts or {}).get(name, tensor.numel()) for name, tensor in parameters.items()}
        coefficients = {name: value / sizes[name] for name, value in coefficients.items()}
    base = {name: tensor.detach().to(base_device or tensor.device, base_dtype or tensor.dtype, copy=True)
            for name, tensor in parameters.items()}  # fmt: skip
    return Regularizer(parameters, base, coefficients)


def lora_change(layers: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    """sum ||s B A||_F^2 over (A [r, in], B [out, r], s): how far LoRA moves the weights, through r x r matrices only.

    ||B A||_F^2 = tr((B^T B)(A A^T)); both factors are symmetric, so the trace is the sum of their product's entries.
    """
    return torch.stack([s**2 * ((b.mT @ b) * (a @ a.mT)).sum() for a, b, s in layers]).sum()


# --------------------------------------------------------------------------------- lambda per layer (beyond the paper)


def layer_factors(names: Iterable[str], rules: Iterable[tuple[str, float]]) -> dict[str, float]:
    """lambda_i / lambda by name: the product of the factors of all (regular expression, factor) rules found in it.

    Raises InputError for a rule that matches no tensor.
    """
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
    convention: str = "mean_sum", counts: Mapping[str, int] | None = None, probes: int = 1,
) -> dict[str, float]:  # fmt: skip
    """lambda_i / lambda in proportion to how much the network's output moves per move of tensor i.

    To first order and in a random direction, ||delta eps||^2 = sum_i s_i ||delta theta_i||^2 with s_i = ||J_i||_F^2 /
    n_i, the mean squared sensitivity of eps to one of tensor i's numbers: its squared Lipschitz constant, averaged
    instead of maximised over directions. J_i need not be formed, since E ||J_i^T v||^2 = ||J_i||_F^2 for standard
    normal v: one backward pass per output and probe measures all tensors at once. outputs: functions that run the
    network with a graph (different prompts, timesteps). The factors are scaled so that the pull on all weights
    together, sum_i n_i c_i, stays that of the plain convention.
    """
    tensors = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    squares = dict.fromkeys(tensors, 0.0)
    for output in outputs:
        prediction = output()
        for probe in range(probes):
            v = torch.randn(prediction.shape, generator=generator).to(prediction)
            gradients = torch.autograd.grad(prediction, list(tensors.values()), v, retain_graph=probe + 1 < probes,
                                            allow_unused=True)  # fmt: skip
            for name, gradient in zip(tensors, gradients, strict=True):
                squares[name] += 0.0 if gradient is None else gradient.double().square().sum().item()
    wanted = {name: squares[name] / tensors[name].numel() for name in tensors}  # c_i, up to one factor for all
    plain = {
        name: 1.0 if convention == "sum" else 1 / (counts or {}).get(name, tensors[name].numel()) for name in tensors
    }
    pull = sum(tensors[name].numel() * wanted[name] for name in tensors)
    if not (math.isfinite(pull) and pull > 0):
        raise InputError("the output does not move with the weights, or is NaN: no Lipschitz factors can be measured")
    scale = sum(tensors[name].numel() * plain[name] for name in tensors) / pull
    return {name: scale * wanted[name] / plain[name] for name in tensors}
