"""The noise gap (paper, supplement A): how far an inverted noise code is from the noise the picture was drawn from.

Pictures are drawn from known noise with the source prompts of the items, at guidance scale 1, where the ideal noise can
be reached (inversions have no guidance), and at the editing's scale. They are inverted from the recorded z_0, and from
the picture, which adds the error of the VAE. The paper says neither which scale nor which start it took.

Rows are named inversion@cfg<scale>-<start>, such as ddim@cfg1-latents; "gaussian" is the true noise.

The inversion called exact solves Eq. 3 to rounding: from z_0 it has no gap but the solver's, and from the picture its
gap is all the VAE's. Claims and how they are judged: claims.toml.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from common.ddim import make_schedule
from common.encoders import Encoders
from common.metrics import clip_text_similarity, score_key
from common.pipelines import decode_latents
from common.runs import atomic_path, measure, write_text
from common.tables import cell, intervals, score_table, text_table
from spdinv.inversions import INVERSIONS
from spdinv.inversions.result import Inversion
from spdinv.reproduction.experiments import Task, draw
from spdinv.reproduction.experiments.generated import drawings, in_order, scales_of, through_a_file
from spdinv.reproduction.experiments.probe import attributes, probe_all, shares_read
from spdinv.reproduction.tables import beside_published, interval_of, of_methods
from spdinv.sampling import generate

STARTS = ("latents", "picture")  # the recorded z_0, and VAE(decode(z_0))
GAUSSIAN = "gaussian"
SHOWN = "noise_gap latent_mse inversion_forward inversion_backward noise_deviation noise_correlation".split()


def noise_gap(true: torch.Tensor, inverted: torch.Tensor) -> torch.Tensor:
    """D_noi of every level and picture, [T+1,B]: the mean square of inverted minus true latent, both [T+1,B,4,h,w]."""
    return (inverted - true).square().mean(dim=(2, 3, 4))


def name_of(inversion: str, scale: float, start: str) -> str:
    return f"{inversion}@cfg{scale:g}-{start}"


def run(task: Task) -> dict:
    """Rows, noise codes, figures and tables in the output folder; what has a row is not run again.

    latent_mse is of the way back without guidance, as the inversion went.
    """
    args, pipe, done = task.args, task.pipe, set(task.rows())
    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    inversions = {method.inversion: method.inversion_options for method in task.methods.values()}
    names = {scale: [GAUSSIAN, *(name_of(one, scale, start) for start in STARTS for one in inversions)]
             for scale in scales_of(args, 1.0, args.guidance_scale)}  # fmt: skip

    def keep(name: str, batch: list, codes: torch.Tensor, rows: list[dict]) -> None:
        for item, code, row in zip(batch, codes.float(), rows, strict=True):
            if (name, item.id) not in done:
                with atomic_path(code_path(task.output, name, item.id)) as path:  # what has a row has a code
                    save_file({"noise": code.cpu().contiguous()}, path)
                metrics = {**row["metrics"], **statistics(code), **clip_score(pipe, code[None], item, task.encoders)}
                task.append(name, item.id, **{**row, "metrics": metrics})
                done.add((name, item.id))

    for batch, scale, cond, true in drawings(task, names, done):
        keep(GAUSSIAN, batch, true[-1], [{"metrics": {}, "seconds": 0.0, "peak_memory_mb": 0.0}] * len(batch))
        for start in STARTS:
            latents = true[0] if start == "latents" else through_a_file(pipe, true[0])
            for inversion, settings in inversions.items():
                name = name_of(inversion, scale, start)
                if all((name, item.id) in done for item in batch):
                    continue
                with measure() as cost:
                    found = INVERSIONS[inversion](pipe, schedule, latents, cond, **settings)
                rows = describe(true, latents, found, generate(pipe, schedule, found.noise, cond, 1.0)[0])
                shared = {"seconds": cost.seconds / len(batch), "peak_memory_mb": cost.peak_memory_mb,
                          "inversion_seconds": found.cost["seconds"] / len(batch)}  # fmt: skip
                keep(name, batch, found.noise, [row | shared for row in rows])
    return report(task, list(inversions)) if task.done(in_order(task, names)) else {}


def describe(true: torch.Tensor, latents: torch.Tensor, found: Inversion, back: torch.Tensor) -> list[dict[str, Any]]:
    """Per picture the metrics of an inversion of `latents` [B,4,h,w], and its gap at every level.

    back: what sampling without guidance makes of the inverted noise, [B,4,h,w].
    """
    gap, rounds = noise_gap(true, found.trajectory).T.tolist(), found.rounds.float().mean(0).tolist()
    errors = (back - latents).square().mean(dim=(1, 2, 3)).tolist()
    calls = {f"inversion_{kind}": found.cost[kind] / len(latents) for kind in ("forward", "backward")}
    return [
        {"metrics": {"noise_gap": gap[i][-1], "latent_mse": errors[i], "rounds": rounds[i], **calls}, "gap": gap[i]}
        for i in range(len(latents))
    ]


def code_path(output: Path, name: str, item: str) -> Path:
    return output / "codes" / name / f"{item}.safetensors"


def statistics(code: torch.Tensor) -> dict[str, float]:
    """What is standard normal in ideal noise: mean, deviation, and the mean absolute correlation of two channels."""
    correlation = torch.corrcoef(code.flatten(1)).abs()
    pairs = correlation[torch.triu(torch.ones_like(correlation), 1) == 1]
    return {"noise_mean": code.mean().item(), "noise_deviation": code.std().item(),
            "noise_correlation": pairs.mean().item()}  # fmt: skip


@torch.no_grad()
def clip_score(pipe: DiffusionPipeline, code: torch.Tensor, item, encoders: Encoders) -> dict[str, float]:
    """100 max(cosine, 0) of the decoded noise [1,4,h,w] and the source prompt. How the paper shows noise to CLIP is not
    stated; decoding it is the only way that needs no further choice."""
    cosine = clip_text_similarity(decode_latents(pipe, code), [item.source_prompt], encoders.clip)
    return {score_key("clip_source", encoders.clip.label): 100 * cosine.clamp(min=0).item()}


# ------------------------------------------------------------------------------------------------------------ report


def report(task: Task, inversions: list[str]) -> dict:
    """Two figures, and the tables on the screen, of the items and inversions at hand."""
    items, output, rows = task.items, task.output, task.rows()
    ids = [item.id for item in items]
    panels = {  # title -> inversion -> name of its rows
        f"drawn at CFG {scale:g}, inverted from {start}": {one: name_of(one, scale, start) for one in inversions}
        for scale in scales_of(task.args, 1.0, task.args.guidance_scale) for start in STARTS
    }  # fmt: skip
    names = [GAUSSIAN, *(name for panel in panels.values() for name in panel.values())]
    summary = {name: intervals([rows[name, item] for item in ids]) for name in names}
    curves = {name: np.array([rows[name, item]["gap"] for item in ids]) for name in names[1:]}
    codes = {name: np.stack([load_file(code_path(output, name, item))["noise"].numpy() for item in ids])
             for name in names}  # fmt: skip

    def drawn(content: dict, *also: str) -> dict:
        return {title: {**{name: content[name] for name in also}, **{one: content[name] for one, name in panel.items()}}
                for title, panel in panels.items()}  # fmt: skip

    draw.gap_curves(output / "curves.png", drawn(curves))
    draw.code_maps(output / "codes.png", drawn(codes, GAUSSIAN))
    for table in ("noise_gap", "s1"):
        measured = {f"measured: {title}": of_methods(table, found) for title, found in drawn(summary).items()}
        measured["measured"] = of_methods(table, {GAUSSIAN: summary[GAUSSIAN]})
        print(beside_published(table, measured), end="\n\n")
    shares = {title: shares_of(panel, rows, ids) for title, panel in panels.items()}
    for title, found in shares.items():
        print(f"{title}: {'; '.join(f'{name} {cell(value)}' for name, value in found.items())}")
    print()
    shown = {name: {key: value for key, value in values.items() if key in SHOWN or "clip" in key}
             for name, values in summary.items()}  # fmt: skip
    print(score_table(shown), end="\n\n")
    probes = probe_all(codes, [attributes(item) for item in items])
    print(probe_table(probes), end="\n\n")
    for name, read in shares_read(probes, len(ids)).items():  # into the rows, where the claims find it
        for item, share in zip(ids, read, strict=True):
            rows[name, item]["metrics"]["prompt_read"] = share
    if probes:
        write_text(output / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()))
    return {
        "summary": summary, "shares": shares, "mean_curves": {name: curve.mean(0) for name, curve in curves.items()},
        "probes": {name: {**one, "right": {code: values.mean() for code, values in one["right"].items()}}
                   for name, one in probes.items()},
    }  # fmt: skip


def shares_of(panel: dict[str, str], rows: dict[tuple[str, str], dict], ids: list[str]) -> dict[str, dict[str, float]]:
    """By what share each inversion's mean gap at z_T lies below DDIM's (the paper: 36 %); and the VAE's part, where
    there is any: the mean square that decoding and encoding does to z_0, and the share of DDIM's gap that is left where
    Eq. 3 is solved exactly. Bootstrap over pictures of ratios of means."""
    gaps = {one: np.array([rows[name, item]["metrics"]["noise_gap"] for item in ids]) for one, name in panel.items()}
    found = {}
    if "ddim" in gaps:
        for one in gaps.keys() - {"ddim"}:
            found[f"{one} below ddim by a share of"] = ratio(gaps["ddim"] - gaps[one], gaps["ddim"])
    start = np.array([rows[next(iter(panel.values())), item]["gap"][0] for item in ids])
    if start.any():
        found["the VAE does to z_0"] = interval_of(start)
        if {"ddim", "exact"} <= gaps.keys():
            found["the VAE's share of ddim's gap"] = ratio(gaps["exact"], gaps["ddim"])
    return found


def ratio(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """mean(a) / mean(b) with its bootstrap interval over the pairs."""
    picks = np.random.default_rng(0).integers(len(a), size=(2000, len(a)))
    low, high = np.quantile(a[picks].mean(1) / b[picks].mean(1), (0.025, 0.975))
    return {"mean": a.mean() / b.mean(), "low": low, "high": high, "n": len(a)}


def probe_table(probes: dict[str, dict[str, Any]]) -> str:
    """Attributes across; down, chance and the share that is read off each kind of code."""
    if not probes:
        return "No linear probe: it needs the picturebook's captions, and at least two values of ten pictures each."
    lines = [["read off z_T by a linear probe, % right [95 % interval]", *(f"{a} (n = {p['n']})" for a, p in
                                                                        probes.items())]]  # fmt: skip
    lines.append(["chance", *(f"{100 * one['chance']:.1f}" for one in probes.values())])
    for name in next(iter(probes.values()))["right"]:
        lines.append([name, *(cell(interval_of(one["right"][name]), 100) for one in probes.values())])
    return text_table(lines)
