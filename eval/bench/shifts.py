"""What a training step with spectral shifts (SVDiff) costs, against what one would run instead.

Schemes take their steps in turn, in an order that changes, and ratios are taken round by round: a machine that others
use as well slows all of them alike.
"""

import argparse
import copy
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.pipelines import load_pipeline
from eval.bench.ratios import against, middle
from svdiff.basis import Basis, as_matrix, find_bases, tunable
from svdiff.spectral import attach, rebuilt, spectral_form
from svdiff.subsets import shift_length, stable_diffusion_unet

WORDS = 77
Scheme = tuple[Callable[[], None], int, int]  # a step, bytes of weights, trained numbers
# pair -> (goal, whether it is an upper bound)
GOALS = {("shifts", "frozen"): (1.33, True), ("shifts", "lora"): (1.3, True), ("rebuilding", "shifts"): (1.3, False),
         ("full", "shifts"): (None, True)}  # fmt: skip


def weight_bytes(model: nn.Module) -> int:
    """All that a model holds: parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def inputs(unet: nn.Module, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    device, side = next(unet.parameters()).device, unet.config.sample_size
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(batch, unet.config.in_channels, side, side, generator=generator)
    words = torch.randn(batch, WORDS, unet.config.cross_attention_dim, generator=generator)
    return z.to(device), torch.full((batch,), 500, device=device), words.to(device)


# ---------------------------------------------------------------------------------------------------------- schemes


def frozen(model: nn.Module, basis_dir: str, batch: int) -> Scheme:
    """The base model: forward, and its input's gradient. Like all below it takes the model over."""
    model.requires_grad_(False)
    z, t, words = inputs(model, batch)
    z.requires_grad_()

    def step() -> None:
        torch.autograd.grad(model(z, t, words).sample.square().mean(), z)

    return step, weight_bytes(model), 0


def adamw(model: nn.Module, batch: int, parameters: list[Tensor], forward: Callable | None = None) -> Callable:
    """A step of AdamW on these parameters, as common.training has it; a timing, so that nothing moves."""
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)
    z, t, words = inputs(model, batch)

    def step() -> None:
        output = forward(z, t, words) if forward else model(z, t, words).sample
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def shifts(model: nn.Module, basis_dir: str, batch: int) -> Scheme:
    """Spectral shifts of all weights, as svdiff.train runs them."""
    model.requires_grad_(False)
    paths = list(tunable(model))
    attached = attach(model, paths, find_bases(model, paths, basis_dir))
    deltas = [layer.delta for layer in attached.values()]
    return adamw(model, batch, deltas), weight_bytes(model), sum(map(Tensor.numel, deltas))


def rebuilding(model: nn.Module, basis_dir: str, batch: int) -> Scheme:
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
    return adamw(model, batch, list(deltas.values()), forward), held, sum(map(Tensor.numel, deltas.values()))


def lora(model: nn.Module, basis_dir: str, batch: int, rank: int = 4) -> Scheme:
    """peft's LoRA of rank 4 on the attention."""
    from peft import LoraConfig

    from svdiff.spaces import LORA_LAYERS

    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return adamw(model, batch, parameters), weight_bytes(model), sum(map(Tensor.numel, parameters))


def full(model: nn.Module, basis_dir: str, batch: int) -> Scheme:
    """Every parameter."""
    parameters = list(model.requires_grad_(True).parameters())
    return adamw(model, batch, parameters), weight_bytes(model), sum(map(Tensor.numel, parameters))


SCHEMES = {"frozen": frozen, "shifts": shifts, "rebuilding": rebuilding, "lora": lora, "full": full}


# ------------------------------------------------------------------------------------------------------- measurement


def timed(steps: dict[str, Callable[[], None]], rounds: int) -> list[dict[str, float]]:
    """Seconds of every step, one row per round; a round before does not count."""
    rows, rng = [], random.Random(0)
    for _ in range(rounds + 1):
        row = {}
        for name in rng.sample(list(steps), len(steps)):
            start = time.perf_counter()
            steps[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            row[name] = time.perf_counter() - start
        rows.append(row)
    return rows[1:]


def step_rows(unet: nn.Module, rounds: int, batch: int) -> list[dict]:
    """A row per round: <scheme>_seconds, _weights_mb, _trained; a copy of the UNet for each scheme."""
    with tempfile.TemporaryDirectory() as basis_dir:
        made = {name: make(copy.deepcopy(unet), basis_dir, batch) for name, make in SCHEMES.items()}
    about = {key: value for name, (_, held, count) in made.items()
             for key, value in ((f"{name}_weights_mb", held / 2**20), (f"{name}_trained", count))}  # fmt: skip
    rows = timed({name: step for name, (step, _, _) in made.items()}, rounds)
    return [{"batch": batch, **{f"{name}_seconds": value for name, value in row.items()}, **about} for row in rows]


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


def layer_rows(rounds: int, batch: int, device: str | torch.device) -> list[dict]:
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

        def plain(layer=layer, x=x) -> None:
            torch.autograd.grad(layer(x).sum(), x)

        def shifted(layer=spectral, x=x) -> None:
            torch.autograd.grad(layer(x).sum(), (x, layer.delta))

        times = timed({"frozen": plain, "shifts": shifted}, rounds)
        rows.append(
            {"batch": batch, "weight": list(weight), "stride": stride, "input": list(shape), "layers": count}
            | {f"{name}_seconds": statistics.median(row[name] for row in times) for name in times[0]}
        )
    return rows  # fmt: skip


def training_rows(pipe, rounds: int, size: int = 2) -> list[dict]:
    """A step of svdiff.train with prior preservation and the text encoder tuned: its pictures and texts encoded as the
    training does (each once), and anew for every sample. A row of seconds per round."""
    from common.pipelines import encode_prompt
    from svdiff.objective import loss
    from svdiff.options import Concept
    from svdiff.samples import Encoder, Source, draw_batch

    paths = {part: list(tunable(getattr(pipe, part))) for part in ("unet", "text_encoder")}
    with tempfile.TemporaryDirectory() as basis_dir:
        for part, of_part in paths.items():
            model = getattr(pipe, part).requires_grad_(False)
            attach(model, of_part, find_bases(model, of_part, basis_dir))
    deltas = [p for part in paths for p in getattr(pipe, part).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(deltas, lr=0.0, weight_decay=0.0, fused=True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    stock = torch.randint(0, 256, (2, 5, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    source = Source([Concept("", "a sks cat", None, "a cat")], [list(stock[0])], [list(stock[1])], side)
    kept, anew = Encoder(pipe, side, frozen=False), Encoder(pipe, side, frozen=False)

    def step(encoder: Encoder, encode: Callable) -> None:
        generator = torch.Generator().manual_seed(0)
        batch = draw_batch(source, size, generator, 0)
        latents = encoder.latents(batch, generator)
        loss(pipe, latents, encode(batch.prompts), generator, size, 1.0).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        anew.posteriors.clear()

    rows = timed({"kept": lambda: step(kept, kept.conditioning),
                  "anew": lambda: step(anew, lambda prompts: encode_prompt(pipe, prompts))}, rounds)  # fmt: skip
    return [{f"{name}_seconds": value for name, value in row.items()} for row in rows]


# ------------------------------------------------------------------------------------------------------------ report


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print; {name in bench.json: rows}. --training_shapes sd15: layer by layer."""
    found: dict[str, list[dict]] = {}
    for batch in (4, 1):
        if args.training_shapes == "sd15":
            rows = found[f"shifts_sd15_batch{batch}"] = layer_rows(args.repeats, batch, pipe.device)
            sums = {name: sum(row["layers"] * row[f"{name}_seconds"] for row in rows) for name in ("frozen", "shifts")}
            print(f"SVDiff, layers of Stable Diffusion 1.5, batch {batch}: shifts / frozen "
                  f"{sums['shifts'] / sums['frozen']:.3f} (goal <= 1.25), {sums['frozen']:.1f} s frozen")  # fmt: skip
            continue
        rows = found[f"shifts_batch{batch}"] = step_rows(pipe.unet, args.repeats, batch)
        for (one, other), (goal, most) in GOALS.items():
            ratio = [row[f"{one}_seconds"] / row[f"{other}_seconds"] for row in rows]
            print(f"SVDiff step, batch {batch}, {one} / {other}: {middle(ratio)}{against(ratio, goal, most)}")
    if args.training_shapes != "sd15":
        held = {name: rows[0][f"{name}_weights_mb"] for name in SCHEMES}
        print("SVDiff weights: " + ", ".join(f"{name} {mb / held['frozen']:.2f}" for name, mb in held.items())
              + " of the base model's bytes (goal for shifts: <= 1.3)")  # fmt: skip
        pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)  # one to be trained
        rows = found["shifts_training"] = training_rows(pipe, args.repeats)
        saved = [1 - row["kept_seconds"] / row["anew_seconds"] for row in rows]
        print(f"SVDiff training step, what comes again encoded once: {middle(saved)} of it saved"
              f"{against(saved, 0.15, most=False)}")  # fmt: skip
    return found
