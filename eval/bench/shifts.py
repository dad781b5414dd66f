"""What a training step with spectral shifts (SVDiff) costs, against what one would run instead.

Schemes take their steps in turn, and ratios are taken round by round.
"""

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from itertools import chain

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.func import functional_call

from eval.bench.profile import explain
from eval.bench.ratios import against, middle, ratios, rounds
from svdiff.basis import Basis, as_matrix, find_bases, tunable
from svdiff.spaces import LORA_LAYERS
from svdiff.spectral import attach, rebuilt, spectral_form
from svdiff.subsets import shift_length, stable_diffusion_unet

WORDS = 77
# pair -> (goal, whether it is an upper bound)
GOALS = {("shifts", "frozen"): (1.33, True), ("shifts", "lora"): (1.3, True), ("rebuilding", "shifts"): (1.3, False),
         ("full", "shifts"): (None, True)}  # fmt: skip


def nbytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all that a model holds: parameters and buffers."""
    return nbytes(chain(model.parameters(), model.buffers()))


def inputs(unet: nn.Module, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    device, side = next(unet.parameters()).device, unet.config.sample_size
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, unet.config.in_channels, side, side, generator=generator)
    words = torch.randn(batch, WORDS, unet.config.cross_attention_dim, generator=generator)
    return z.to(device), torch.full((batch,), 500, device=device), words.to(device)


# ---------------------------------------------------------------------------------------------------------- schemes
# Each takes a frozen UNet over, with the bases of its layers: (trained tensors, forward pass, bytes held beside it).


def frozen(unet: nn.Module, bases: dict[str, Basis]):
    """The base model: forward, and its input's gradient."""
    return [], unet, 0


def shifts(unet: nn.Module, bases: dict[str, Basis]):
    """Spectral shifts of all weights, as svdiff.train runs them."""
    return [layer.delta for layer in attach(unet, list(tunable(unet)), bases).values()], unet, 0


def rebuilding(unet: nn.Module, bases: dict[str, Basis]):
    """The same shifts with W' written out in every forward pass, as the public implementations do."""
    layers = tunable(unet)
    deltas = {path: torch.zeros(shift_length(layer), device=unet.device, requires_grad=True)
              for path, layer in layers.items()}  # fmt: skip

    def forward(*given: Tensor):
        new = {f"{path}.weight": rebuilt(layers[path], bases.get(path), delta) for path, delta in deltas.items()}
        return functional_call(unet, new, given)

    factors = (part for basis in bases.values() for part in vars(basis).values())
    written = (layer.weight for layer in layers.values())
    return list(deltas.values()), forward, nbytes(chain(factors, written))


def lora(unet: nn.Module, bases: dict[str, Basis], rank: int = 4):
    """peft's LoRA of rank 4 on the attention."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad], unet, 0


def full(unet: nn.Module, bases: dict[str, Basis]):
    """Every parameter."""
    return list(unet.requires_grad_(True).parameters()), unet, 0


SCHEMES = {"frozen": frozen, "shifts": shifts, "rebuilding": rebuilding, "lora": lora, "full": full}


def step_of(trained: list[Tensor], forward: Callable, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[int], None]:
    """Forward, backward and a step of AdamW, as common.training has it; a timing, so that nothing moves."""
    inner = trained or [given[0].requires_grad_()]  # of the frozen model, its input
    optimizer = torch.optim.AdamW(inner, lr=0.0, weight_decay=0.0, fused=True)

    def step(number: int) -> None:
        forward(*given).sample.square().mean().backward()
        if trained:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# ------------------------------------------------------------------------------------------------------- measurement


def step_rows(unet: nn.Module, repeats: int, batch: int) -> tuple[list[dict], dict[str, Callable[[int], None]]]:
    """A row per round: <scheme>_seconds, _weights_mb, _trained; and the schemes' steps, each on a copy of the UNet."""
    with tempfile.TemporaryDirectory() as folder:
        bases = find_bases(unet, tunable(unet), folder)
    steps, about = {}, {"batch": batch}
    for name, scheme in SCHEMES.items():
        own = copy.deepcopy(unet).requires_grad_(False)
        trained, forward, beside = scheme(own, bases)
        steps[name] = step_of(trained, forward, inputs(own, batch))
        about |= {f"{name}_weights_mb": (weight_bytes(own) + beside) / 2**20,
                  f"{name}_trained": sum(map(Tensor.numel, trained))}  # fmt: skip
    return [about | row for row in rounds(steps, repeats)], steps


def layer_shapes(unet: nn.Module, batch: int) -> dict[tuple, tuple[nn.Module, int]]:
    """(weight's shape, stride, input's shape) -> (a layer, how many there are), of a UNet on the meta device."""
    found: dict[tuple, tuple[nn.Module, int]] = {}

    def note(layer: nn.Module, args: tuple, output: Tensor) -> None:
        key = (tuple(layer.weight.shape), getattr(layer, "stride", None), tuple(args[0].shape))
        found[key] = (layer, found.get(key, (layer, 0))[1] + 1)

    hooks = [layer.register_forward_hook(note) for layer in tunable(unet).values() if layer.weight.ndim > 1]
    unet(*inputs(unet, batch))
    for hook in hooks:
        hook.remove()
    return found


def layer_rows(repeats: int, batch: int, device: str | torch.device) -> list[dict]:
    """Stable Diffusion 1.5's linear and convolution layers, one shape after the other with random weights: forward, and
    the gradients of input and shifts. A row per shape with the median seconds of both forms; norms and attention, which
    cost the same either way, are not in it."""
    rows = []
    for (weight, stride, shape), (meta, count) in layer_shapes(stable_diffusion_unet(), batch).items():
        layer = copy.deepcopy(meta).to_empty(device=device).requires_grad_(False)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.02)
        m, n = as_matrix(layer).shape
        parts = (torch.randn(size, device=device) * 0.02 for size in ((m, min(m, n)), (min(m, n),), (min(m, n), n)))
        spectral = spectral_form(copy.deepcopy(layer), Basis(*parts))
        x = torch.randn(shape, device=device, requires_grad=True)

        def both(layer=layer, spectral=spectral, x=x) -> dict[str, Callable[[int], object]]:
            return {"frozen": lambda number: torch.autograd.grad(layer(x).sum(), x),
                    "shifts": lambda number: torch.autograd.grad(spectral(x).sum(), (x, spectral.delta))}  # fmt: skip

        times = rounds(both(), repeats)
        medians = {key: statistics.median(row[key] for row in times) for key in times[0] if key.endswith("_seconds")}
        rows.append({"batch": batch, "weight": list(weight), "stride": stride, "input": list(shape), "layers": count}
                    | medians)  # fmt: skip
    return rows


def run(pipe, args: argparse.Namespace) -> dict[str, list | dict]:
    """Measure and print; {name in bench.json: rows}. --training_shapes sd15: layer by layer."""
    found: dict[str, list | dict] = {}
    for batch in (4, 1):
        if args.training_shapes == "sd15":
            rows = found[f"shifts_sd15_batch{batch}"] = layer_rows(args.repeats, batch, pipe.device)
            sums = {name: sum(row["layers"] * row[f"{name}_seconds"] for row in rows) for name in ("frozen", "shifts")}
            print(f"SVDiff, layers of Stable Diffusion 1.5, batch {batch}: shifts / frozen "
                  f"{sums['shifts'] / sums['frozen']:.3f} (goal <= 1.25), {sums['frozen']:.1f} s frozen")  # fmt: skip
            continue
        rows, steps = step_rows(pipe.unet, args.repeats, batch)
        found[f"shifts_batch{batch}"] = rows
        for (one, other), (goal, most) in GOALS.items():
            ratio = ratios(rows, one, other)
            print(f"SVDiff step, batch {batch}, {one} / {other}: {middle(ratio)}{against(ratio, goal, most)}")
        found[f"profile_batch{batch}"] = explain("frozen", {name: steps[name] for name in ("frozen", "shifts")})
        if batch == 1:
            held = (f"{name} {rows[0][f'{name}_weights_mb'] / rows[0]['frozen_weights_mb']:.2f}" for name in SCHEMES)
            print(f"SVDiff weights, of the base model's bytes: {', '.join(held)} (goal for shifts: <= 1.3)")
    return found
