"""How fast the search for the fixed point converges (paper, Sec. 3.2): residuals per timestep and round.

The paper: early in the inversion more rounds are needed; for t > T / 2 the loss falls below the threshold in a few. And
the released code always takes one optimiser step, also where DDIM's guess is below the threshold already: how often is
that so, and does it hurt there, leaving a larger residual than the guess's? The residual is the released loss, the mean
square of f(x) - x (Eq. 3). Fixed before anything was run: the claim holds if the interval of the rounds per step in the
first half of the steps, less those in the second, lies above zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DiffusionPipeline

from common.claims import Interval, verdict
from common.ddim import Schedule, ddim_inverse_step, make_schedule, to_eps
from common.images import center_crop_resize, load_image, to_tensor
from common.pipelines import Conditioning, encode_image, encode_prompt
from common.runs import bootstrap_interval, measure, progress
from common.tables import intervals, score_table
from spdinv.inversions import INVERSIONS
from spdinv.inversions.residual import mean_square
from spdinv.inversions.result import Inversion
from spdinv.inversions.spd import f_theta
from spdinv.reproduction.experiments import Task, draw


@contextmanager
def watched(unet: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, int, torch.Tensor]]]:
    """Within this context, (z [B,4,h,w], timestep, output [B,4,h,w]) of every call of `unet`."""
    calls = []

    def note(module, args, output):
        calls.append((args[0].detach().clone(), int(args[1]), output[0].detach()))  # a solver may work in place

    with unet.register_forward_hook(note):
        yield calls


def residuals(
    pipe: DiffusionPipeline, schedule: Schedule, inversion: Inversion, cond: Conditioning, calls: list
) -> list[list[float]]:
    """Per timestep, ascending, the loss of every candidate that a watched inversion of one picture evaluated, and last
    that of the latent it settled for. The guess f(z_{t-1}) is the first candidate; the call that made it is none.

    The last one costs another network call per timestep.
    """
    found = []
    for level, t in enumerate(schedule.timesteps[::-1]):
        z, x = inversion.trajectory[level], inversion.trajectory[level + 1]
        losses = []
        for candidate, at, output in calls:
            if at == t and not torch.equal(candidate, z.to(candidate)):
                candidate, output = candidate.to(z), output.to(z)
                f = ddim_inverse_step(schedule, z, to_eps(schedule, output, candidate, t), t)
                losses.append(mean_square(candidate - f).item())
        with torch.no_grad():
            settled = mean_square(x - f_theta(pipe, schedule, z, t, cond, x, [0])).item()
        found.append([*losses, settled])
    return found


def run(task: Task) -> dict:
    """Rows, a figure and a table in the output folder, one picture at a time; what has a row is not run again."""
    pipe, args = task.pipe, task.args
    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    names = {method.inversion: method.inversion_options for method in task.methods.values()}
    done = task.rows()
    for item in progress(args.shard.of(task.items), "items"):
        missing = [name for name in names if (name, item.id) not in done]
        if missing:
            picture = to_tensor(center_crop_resize(load_image(item.image_path), task.resolution)).to(pipe.device)
            latents, cond = encode_image(pipe, picture).float(), encode_prompt(pipe, [item.source_prompt])
        for name in missing:
            with measure() as cost, watched(pipe.unet) as calls:
                inversion = INVERSIONS[name](pipe, schedule, latents, cond, **names[name])
            losses, rounds = residuals(pipe, schedule, inversion, cond, calls), inversion.rounds[:, 0].tolist()
            task.append(
                name, item.id, metrics=summarise(losses, rounds, args.spd_threshold), seconds=cost.seconds,
                inversion_seconds=inversion.cost["seconds"], peak_memory_mb=cost.peak_memory_mb,
                residuals=losses, rounds_per_step=rounds,
            )  # fmt: skip
    wanted = [(name, item.id) for item in task.items for name in names]
    return report(task, list(names)) if task.done(wanted) else {}


def summarise(losses: list[list[float]], rounds: list[int], threshold: float) -> dict[str, float]:
    """Of one picture's inversion. losses: see `residuals`. Shares are of timesteps; NaN where there are none."""
    guess, settled = (np.array([step[place] for step in losses]) for place in (0, -1))
    below, half = guess < threshold, len(rounds) // 2
    worse = (settled > guess)[below]
    early, late = rounds[:half], rounds[half:]
    found = {
        "residual": settled.mean(),
        "residual_guess": guess.mean(),
        "guess_below_threshold": below.mean(),
        "forced_step_hurts": worse.mean() if below.any() and any(rounds) else np.nan,
        "settled_below_threshold": (settled < threshold).mean(),
        "rounds": np.mean(rounds),
        "rounds_early": np.mean(early) if early else np.nan,
        "rounds_late": np.mean(late),
        "rounds_early_less_late": np.mean(early) - np.mean(late) if early else np.nan,
    }
    return {name: float(value) for name, value in found.items()}


def report(task: Task, names: list[str]) -> dict:
    threshold, found = task.args.spd_threshold, task.rows()
    rows = {name: [found[name, item.id] for item in task.items] for name in names}
    summary = {name: intervals(of_name) for name, of_name in rows.items()}
    draw.convergence(task.output / "convergence.png", rows, threshold)
    print(f"Residual: mean square of f(x) - x; threshold {threshold:g}; early: the first half of the steps")
    print(score_table(summary), end="\n\n")
    for name in names:
        mean, low, high = bootstrap_interval(row["metrics"]["rounds_early_less_late"] for row in rows[name])
        if summary[name]["rounds"]["mean"] > 0:
            ruled = verdict(Interval(mean, low, high, len(task.items)), 1, "better")
            print(f"{name}: more rounds in the early half by {mean:.3g} [{low:.3g}, {high:.3g}] per step: {ruled}")
    return summary
