"""Combining what was trained apart (paper, Sec. 3.2, 4.4): addition (Eq. 4), interpolation (Eq. 5), style mixing.

All of it is arithmetic on {name: tensor}, so the same functions serve spectral shifts, where ONE ReLU follows the sum,
and differences of full weights, W + a dW1 + (1 - a) dW2.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.runs import InputError

Tensors = Mapping[str, Tensor]


def add(changes: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """sum_i weight_i delta_i (Eq. 4 with all weights 1); a name that one of them lacks counts as zero there."""
    total: dict[str, Tensor] = {}
    for change, weight in zip(changes, weights or [1.0] * len(changes), strict=True):
        for name, delta in change.items():
            total[name] = total[name] + weight * delta if name in total else weight * delta
    return total


def interpolate(one: Tensors, two: Tensors, alpha: float) -> dict[str, Tensor]:
    """alpha delta_1 + (1 - alpha) delta_2 (Eq. 5)."""
    return add([one, two], [alpha, 1 - alpha])


def style_mix(appearance: Tensors, geometry: Tensors, layers: Iterable[str]) -> dict[str, Tensor]:
    """Geometry's shifts in `layers`, appearance's in all others (Sec. 4.4, Fig. 10)."""
    inside = set(layers)
    mixed = {name: delta for name, delta in appearance.items() if name not in inside}
    return mixed | {name: delta for name, delta in geometry.items() if name in inside}


# -------------------------------------------------------------------------------------------- layers in P+ notation


@dataclass(frozen=True)
class Unit:
    """A resnet, attention or resampling block, in the order of execution. name: that of P+, for a block with
    cross-attention: (resolution, "down" or "up", number), such as (16, "down", 1); resolution in latent pixels."""

    path: str
    name: tuple[int, str, int] | None = None


def units(unet: nn.Module) -> list[Unit]:
    """A UNet's blocks in the order of execution. The middle's attention is P+'s (8, "down", 0); where the last block on
    the way down attends as well (SDXL's does), it is counted on from there."""
    size, found = unet.config.sample_size, []

    def stage(block: nn.Module, path: str, resolution: int, direction: str, first: int = 0) -> None:
        attentions = getattr(block, "attentions", None) or []
        for number in range(len(block.resnets)):
            found.append(Unit(f"{path}.resnets.{number}"))
            if number < len(attentions):
                found.append(Unit(f"{path}.attentions.{number}", (resolution, direction, first + number)))
        for kind in ("downsamplers", "upsamplers"):
            if getattr(block, kind, None) is not None:
                found.append(Unit(f"{path}.{kind}.0"))

    for level, block in enumerate(unet.down_blocks):
        stage(block, f"down_blocks.{level}", size >> level, "down")
    lowest = size >> (len(unet.down_blocks) - 1)
    stage(unet.mid_block, "mid_block", lowest, "down", len(getattr(unet.down_blocks[-1], "attentions", None) or []))
    for level, block in enumerate(unet.up_blocks):
        stage(block, f"up_blocks.{level}", lowest << level, "up")
    return found


def span(unet: nn.Module, first: tuple[int, str, int], last: tuple[int, str, int]) -> list[str]:
    """Paths of all blocks that run from cross-attention block `first` to `last`, both included.

    The paper's (16, "down", 1) to (8, "down", 0) includes the resnets in between. Raises InputError, which names what
    there is, for a block that this UNet does not have, or a `last` before `first`.
    """
    order = units(unet)
    places = {unit.name: place for place, unit in enumerate(order) if unit.name}
    if first not in places or last not in places or places[first] > places[last]:
        there = ", ".join(f"{r},{direction},{number}" for r, direction, number in places)
        raise InputError(f"--geometry_layers: the layers have to be two of {there}, in this order")
    return [unit.path for unit in order[places[first] : places[last] + 1]]


def inside(names: Iterable[str], paths: Sequence[str]) -> list[str]:
    """Those of `names` (of layers or parameters) that lie inside one of the blocks at `paths`."""
    return [name for name in names if any(name.startswith(f"{path}.") for path in paths)]


# ----------------------------------------------------------------------------------------------------- correlation


def correlation(one: Tensors, two: Tensors) -> float:
    """Cosine of two shifts, averaged over the layers that both have (Fig. 9a), less those where one is all zero."""
    shared = [name for name in one if name in two and one[name].any() and two[name].any()]
    if not shared:
        return float("nan")
    cosines = [torch.nn.functional.cosine_similarity(one[n].flatten(), two[n].flatten(), dim=0) for n in shared]
    return torch.stack(cosines).mean().item()


def truncate(shifts: Tensors, share: float, whole: Iterable[str] = ()) -> dict[str, Tensor]:
    """Only the shifts of the largest singular values, `share` of each layer's, rounded up; the others are zero. whole:
    layers that stay as they are, as vectors do, which have no order of singular values."""
    kept = {name: shifts[name] for name in whole}
    for name, delta in shifts.items():
        if name in kept:
            continue
        count = -int(-share * len(delta) // 1)
        kept[name] = torch.cat([delta[:count], torch.zeros_like(delta[count:])])
    return kept
