"""Combining what was trained apart (paper, Sec. 3.2, 4.4): addition (Eq. 4), interpolation (Eq. 5), style mixing.

All of it is arithmetic on {name: tensor}, so the same functions serve spectral shifts, where ONE ReLU follows the sum,
and differences of full weights, W + a dW1 + (1 - a) dW2.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

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


Block = tuple[int, str, int]  # (resolution in latent pixels, "down" or "up", number), such as (16, "down", 1)


def units(unet: nn.Module) -> dict[str, Block | None]:
    """Path of every resnet, attention and resampling block, in the order of execution -> the name in P+ of those with
    cross-attention. The middle's attention is (8, "down", 0) there; where the last block on the way down attends as
    well (SDXL's does), it is counted on from there."""
    size, last = unet.config.sample_size, len(unet.down_blocks) - 1
    before = len(getattr(unet.down_blocks[last], "attentions", None) or [])
    stages = [(f"down_blocks.{n}", block, size >> n, "down", 0) for n, block in enumerate(unet.down_blocks)]
    stages += [("mid_block", unet.mid_block, size >> last, "down", before)]
    stages += [(f"up_blocks.{n}", block, size >> last << n, "up", 0) for n, block in enumerate(unet.up_blocks)]
    found: dict[str, Block | None] = {}
    for path, block, resolution, direction, first in stages:
        attentions = len(getattr(block, "attentions", None) or [])
        for number in range(len(block.resnets)):
            found[f"{path}.resnets.{number}"] = None
            if number < attentions:
                found[f"{path}.attentions.{number}"] = (resolution, direction, first + number)
        for kind in ("downsamplers", "upsamplers"):
            if getattr(block, kind, None) is not None:
                found[f"{path}.{kind}.0"] = None
    return found


def span(unet: nn.Module, first: Block, last: Block) -> list[str]:
    """Paths of all blocks that run from cross-attention block `first` to `last`, both included.

    The paper's (16, "down", 1) to (8, "down", 0) includes the resnets in between. Raises InputError, which names what
    there is, for a block that this UNet does not have, or a `last` before `first`.
    """
    order = units(unet)
    places = {name: place for place, name in enumerate(order.values()) if name}
    if first not in places or last not in places or places[first] > places[last]:
        there = ", ".join(f"{r},{direction},{number}" for r, direction, number in places)
        raise InputError(f"--geometry_layers: the layers have to be two of {there}, in this order")
    return list(order)[places[first] : places[last] + 1]


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
    whole = set(whole)
    return {name: delta if name in whole else delta * (torch.arange(len(delta)) < math.ceil(share * len(delta)))
            for name, delta in shifts.items()}  # fmt: skip
