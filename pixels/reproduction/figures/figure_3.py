"""Figure 3: line 15 over time."""

import torch
import torch.nn.functional as F

from common.runs import InputError
from pixels.frames import to_picture
from pixels.reproduction.figures.sheet import finish
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair
from pixels.surgery import edit


def figure_3(bench: Bench, pairs: list[Pair]) -> None:
    """Above what is put back from the noised source, below what stays from the network."""
    loaded, trace = load_pair(pairs[0], bench.size), []
    backbone = bench.bind(loaded)
    generator = torch.Generator().manual_seed(bench.args.seed)
    edit(backbone, loaded["source"], loaded["exemplars"], loaded["maps"], bench.surgery, generator, trace)
    if not trace:
        raise InputError("--figure 3 shows the steps after the first: run at least two")
    shown = [trace[round(k * (len(trace) - 1) / 5)] for k in range(6)]

    def shown_part(latents: torch.Tensor, mask: torch.Tensor):
        area = F.interpolate(mask.float(), bench.size, mode="nearest")
        return to_picture(backbone.decode(latents).cpu() * area.cpu())

    sheet = [
        [shown_part(step.noised, step.keep) for step in shown],
        [shown_part(step.residue, ~step.keep) for step in shown],
    ]
    shares = [{"timestep": step.timestep, "kept": step.keep.float().mean().item()} for step in trace]
    labels = ["z_1^t * mask_t", "z_mix^(t+1) * (1 - mask_t)"]
    finish(bench, "figure_3", sheet, labels, [f"t = {step.timestep:g}" for step in shown], shares)
