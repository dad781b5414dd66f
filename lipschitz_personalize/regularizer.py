"""The penalty that keeps the weights near the base model's (Alg. 1 of the paper), and its exact gradient.

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

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.runs import InputError
from lipschitz_personalize.options import CONVENTIONS

# Tensors up to so many numbers (norms, biases) are subtracted before they are multiplied: there c_i is large, and
# 2 c theta - 2 c base, which saves a temporary of the tensor's size, would lose digits of a small gradient.
SMALL = 2**14


@dataclass(frozen=True, eq=False)
class Regularizer:
    """parameters: what is trained, by name. base: frozen copies (of any dtype, on any device), or None for zeros.
    coefficients: c_i by name. function: for the convention of that name, with its lambda in `weight`. decayed: names
    whose part 2 c_i theta_i the optimiser adds (see `adam_groups`)."""

    parameters: Mapping[str, Tensor]
    base: Mapping[str, Tensor] | None = None
    coefficients: Mapping[str, float] = field(default_factory=dict)
    function: Callable[[], Tensor] | None = None
    weight: float = 0.0
    decayed: set[str] = field(default_factory=set)

    def add_gradient(self) -> None:
        """Alg. 1, second term: grad_i += 2 c_i (theta_i - base_i). Gradients must not be scaled (fp16) just now."""
        if self.function is not None:
            for name, gradient in self.gradients():
                tensor = self.parameters[name]
                tensor.grad = gradient if tensor.grad is None else tensor.grad.add_(gradient)
            return
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
                pull = 2 * self.coefficients[name]
                if self.base is None:
                    tensor.grad.add_(tensor, alpha=pull)
                elif tensor.numel() <= SMALL:
                    tensor.grad.add_(tensor - self._base(name), alpha=pull)
                else:
                    if name not in self.decayed:
                        tensor.grad.add_(tensor, alpha=pull)
                    tensor.grad.add_(self._base(name), alpha=-pull)

    def adam_groups(self) -> list[dict]:
        """Parameter groups for torch.optim.Adam, whose own weight decay w adds w theta_i to the gradient: at w = 2 c_i
        that is the penalty's part 2 c_i theta_i, and `add_gradient` leaves it out from now on. For an optimiser that
        neither clips nor decays (the published full fine-tuning), whose steps stay the same."""
        groups: dict[float, list[Tensor]] = {}
        for name, tensor in self.parameters.items():
            if self.function is None and self.base is not None and tensor.numel() > SMALL:
                self.decayed.add(name)
            decay = 2 * self.coefficients[name] if name in self.decayed else 0.0
            groups.setdefault(decay, []).append(tensor)
        return [{"params": tensors, "weight_decay": decay} for decay, tensors in groups.items()]

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """(name, the penalty's own gradient) of every tensor that it moves."""
        if self.function is None:
            for name, tensor in self.parameters.items():
                yield name, 2 * self.coefficients[name] * self._drift(name, tensor)
            return
        tensors = {name: tensor for name, tensor in self.parameters.items() if tensor.requires_grad}
        with torch.enable_grad():
            found = torch.autograd.grad(self.weight * self.function(), list(tensors.values()), allow_unused=True)
        yield from (pair for pair in zip(tensors, found, strict=True) if pair[1] is not None)

    @torch.no_grad()
    def value(self) -> float:
        """The penalty itself, for the log: lambda is in it."""
        if self.function is not None:
            return self.weight * self.function().item()
        return sum(self.coefficients[name] * self._drift(name, tensor).double().square().sum().item()
                   for name, tensor in self.parameters.items())  # fmt: skip

    def share(self) -> float:
        """The norm of the penalty's gradient over the norm of the loss's, which is in .grad and nothing else yet."""
        pull = sum(gradient.double().square().sum().item() for _, gradient in self.gradients())
        loss = sum(tensor.grad.double().square().sum().item()
                   for tensor in self.parameters.values() if tensor.grad is not None)  # fmt: skip
        return (pull / loss) ** 0.5 if loss else float("inf") if pull else 0.0

    def _base(self, name: str) -> Tensor:
        tensor = self.parameters[name]
        return self.base[name].to(tensor.device, tensor.dtype, non_blocking=True)

    def _drift(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.base is None else tensor.detach() - self._base(name)


def make_regularizer(
    parameters: Mapping[str, Tensor], weight: float, convention: str = "mean_sum",
    counts: Mapping[str, int] | None = None, factors: Mapping[str, float] | None = None,
    function: Callable[[], Tensor] | None = None, base_dtype: torch.dtype | None = None,
    base_device: str | torch.device | None = None,
) -> Regularizer | None:  # fmt: skip
    """The penalty around where `parameters` stand now; None for weight 0, which is the plain trainer.

    counts: n_i of mean_sum where it is not the tensor's own size (a row that stands for a whole table). factors:
    lambda_i / lambda (see layer_lambdas.py). base_dtype, base_device: of the frozen copy; a 16-bit copy of float32
    weights moves the anchor by a relative 2^-8 (bfloat16) or 2^-11 (float16). Raises InputError for an unknown
    convention, or one that does not go with what is given.
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
