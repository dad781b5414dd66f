"""Where the time of a step goes, by kind of operation, and how many multiplications it has: what explains a ratio."""

import os
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of every GPU that is not there

# kind -> parts of the names of torch's operations: the first that fits; what fits none is "others"
KINDS = {"convolutions": ("conv",), "products": ("mm", "attention"), "norms": ("norm",),
         "sums and copies": ("add", "copy", "mul", "sum", "cat", "fill", "zero", "sub"), "others": ("",)}  # fmt: skip


def seconds_by_kind(work: Callable[[int], object], calls: int = 5) -> dict[str, float]:
    """Seconds of one call of `work` by kind, the mean of some calls; on a GPU those of its kernels."""
    from torch.profiler import profile

    with profile() as seen:
        for number in range(calls):
            work(number)
    found, cuda = dict.fromkeys(KINDS, 0.0), torch.cuda.is_available()
    for event in seen.key_averages():
        kind = next(kind for kind, names in KINDS.items() if any(name in event.key.lower() for name in names))
        found[kind] += (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6 / calls
    return found


def explain(first: str, steps: dict[str, Callable[[int], object]]) -> dict[str, dict[str, float]]:
    """Print and return what every step takes by kind of operation, as shares of the whole of the `first` one, and its
    multiplications over that one's."""
    taken, found = {name: seconds_by_kind(work) for name, work in steps.items()}, {}
    for name, work in steps.items():
        with FlopCounterMode(display=False) as counter:
            work(0)
        found[name] = {kind: value / sum(taken[first].values()) for kind, value in taken[name].items()}
        found[name]["multiplications"] = counter.get_total_flops()
    whole = found[first]["multiplications"]
    for name, shares in found.items():
        shares["multiplications"] /= whole
        print(f"  {name}, of a step of {first}: " + ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items()))
    return found
