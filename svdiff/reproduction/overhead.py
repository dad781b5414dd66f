"""What a training step costs: shifts in activation space, as train.py runs them, against what one would run instead."""

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.runs import measure
from svdiff.basis import find_bases, tunable
from svdiff.spectral import attach, rebuilt
from svdiff.subsets import shift_length

WORDS = 77
BATCH = 1


def weight_bytes(model: nn.Module) -> int:
    """All that a model holds: parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def inputs(unet: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    device, side = next(unet.parameters()).device, unet.config.sample_size
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(BATCH, unet.config.in_channels, side, side, generator=generator)
    words = torch.randn(BATCH, WORDS, unet.config.cross_attention_dim, generator=generator)
    return z.to(device), torch.full((BATCH,), 500, device=device), words.to(device)


def frozen(model: nn.Module, basis_dir: str) -> tuple[Callable, int, int]:
    """The base model: forward, and its input's gradient. Like all below: takes the model over; (step, bytes of weights,
    trained numbers)."""
    model.requires_grad_(False)
    z, t, words = inputs(model)
    z.requires_grad_()

    def step() -> None:
        torch.autograd.grad(model(z, t, words).sample.square().mean(), z)

    return step, weight_bytes(model), 0


def trained(model: nn.Module, parameters: list[Tensor], forward: Callable | None = None) -> Callable:
    """A step of AdamW on these parameters, as common.training has it; a timing, so that nothing moves."""
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    z, t, words = inputs(model)

    def step() -> None:
        output = forward(z, t, words) if forward else model(z, t, words).sample
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def shifts(model: nn.Module, basis_dir: str) -> tuple[Callable, int, int]:
    """Spectral shifts of all weights in activation space."""
    model.requires_grad_(False)
    paths = list(tunable(model))
    attached = attach(model, paths, find_bases(model, paths, basis_dir))
    deltas = [layer.delta for layer in attached.values()]
    return trained(model, deltas), weight_bytes(model), sum(map(Tensor.numel, deltas))


def rebuilding(model: nn.Module, basis_dir: str) -> tuple[Callable, int, int]:
    """The same shifts with W' written out in every forward pass, as the public implementations do."""
    layers = tunable(model.requires_grad_(False))
    bases = find_bases(model, layers, basis_dir)
    device = next(model.parameters()).device
    deltas = {path: torch.zeros(shift_length(layer), device=device).requires_grad_() for path, layer in layers.items()}

    def forward(z: Tensor, t: Tensor, words: Tensor) -> Tensor:
        new = {f"{path}.weight": rebuilt(layers[path], bases.get(path), delta) for path, delta in deltas.items()}
        return functional_call(model, new, (z, t, words)).sample

    factors = sum(part.numel() * part.element_size() for basis in bases.values() for part in vars(basis).values())
    written = sum(layer.weight.numel() * 4 for layer in layers.values())
    held = weight_bytes(model) + factors + written
    return trained(model, list(deltas.values()), forward), held, sum(map(Tensor.numel, deltas.values()))


def lora(model: nn.Module, basis_dir: str, rank: int = 4) -> tuple[Callable, int, int]:
    """peft's LoRA of rank 4 on the attention."""
    from peft import LoraConfig

    from svdiff.spaces import LORA_LAYERS

    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained(model, parameters), weight_bytes(model), sum(map(Tensor.numel, parameters))


def full(model: nn.Module, basis_dir: str) -> tuple[Callable, int, int]:
    """Every parameter."""
    parameters = list(model.requires_grad_(True).parameters())
    return trained(model, parameters), weight_bytes(model), sum(map(Tensor.numel, parameters))


SCHEMES = {"frozen": frozen, "shifts": shifts, "rebuilding": rebuilding, "lora": lora, "full": full}


def step_rows(make_unet: Callable[[], nn.Module], repeats: int) -> list[dict]:
    """One row per round; in a round every scheme is set up, takes a step to warm up and a step that counts, and is
    given up, so that all meet the same machine and no two need memory at once. make_unet: the same UNet every time;
    its basis is read from files, as a training reads it.

    Keys per scheme: <scheme>_seconds, _step_mb (memory beyond what was held before the step), _weights_mb, _trained.
    """
    rows = []
    with tempfile.TemporaryDirectory() as basis_dir:
        for _ in range(repeats):
            row: dict[str, float] = {}
            for name, make in SCHEMES.items():
                step, held, count = make(make_unet(), basis_dir)
                step()  # the first touch of memory, AdamW's state
                before = torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_initialized() else 0.0
                with measure() as cost:
                    step()
                row |= {f"{name}_seconds": cost.seconds, f"{name}_step_mb": cost.peak_memory_mb - before,
                        f"{name}_weights_mb": held / 2**20, f"{name}_trained": count}  # fmt: skip
                del step
            rows.append(row)
    return rows


def random_unet(device: torch.device | str) -> nn.Module:
    """Stable Diffusion 1.5's UNet with random weights, the same at every call."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768).eval().requires_grad_(False)
