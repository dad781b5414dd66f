"""What surgery adds to diffusers' own img2img on the same pipeline: time, time of the added operations alone, bytes."""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image
from torch import Tensor

from common.runs import InputError, bootstrap_interval, write_json
from common.tables import text_table
from pixels.edit_map import thresholds
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench, load_pair
from pixels.reproduction.tables import beside_published
from pixels.surgery import Surgery, edit, noise_levels

SDXL_LATENTS = (1, 4, 128, 128)  # of 1024 pixels


def clock(function, device: torch.device) -> float:
    """Seconds of one call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def paired_runs(bench: Bench, loaded: dict[str, Any], repeats: int) -> list[dict[str, float]]:
    """Loops alone, ours and diffusers' img2img in turn: both begin at latents and end at latents, so that neither the
    exemplar's pass through the VAE nor the decoder is in the difference. One row per pair; the first warms up."""
    backbone = bench.bind(loaded)
    known = {id(picture): backbone.encode(picture, False, None) for picture in (loaded["source"], *loaded["exemplars"])}
    loop = replace(backbone, encode=lambda picture, sample, generator: known[id(picture)], decode=lambda z: z)
    pipe = AutoPipelineForImage2Image.from_pipe(bench.model.pipe)
    pipe.scheduler = type(bench.model.scheduler).from_config(bench.model.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    told = bench.sampling
    settings: dict[str, Any] = {
        "prompt": told.prompt, "negative_prompt": told.negative_prompt, "guidance_scale": told.guidance_scale,
        "num_inference_steps": told.num_inference_steps, "strength": told.strength or 1.0,
        "image": known[id(loaded["source"])], "output_type": "latent",
    }  # fmt: skip
    if told.denoising_start is not None:
        settings["denoising_start"] = told.denoising_start
    generator = torch.Generator()

    def ours():
        bound = bench.bind(loaded)  # the prompt is encoded in either
        edit(replace(loop, predict=bound.predict), loaded["source"], loaded["exemplars"], loaded["maps"], bench.surgery,
             generator.manual_seed(0))  # fmt: skip

    def theirs():
        pipe(**settings, generator=generator.manual_seed(0))

    def measured(function) -> dict[str, float]:
        cuda = backbone.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(backbone.device)
        seconds = clock(function, backbone.device)
        return {
            "seconds": seconds,
            "mb": torch.cuda.max_memory_allocated(backbone.device) / 2**20 if cuda else float("nan"),
        }

    rows = []
    for repeat in range(repeats + 1):
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        took = {function.__name__: measured(function) for function in order}
        rows.append({f"{name}_{key}": value for name, cost in took.items() for key, value in cost.items()})
    return rows[1:]


def added_operations(backbone, shape: tuple[int, ...], dtype: torch.dtype, steps: int, repeats: int = 200) -> float:
    """Median seconds that one step of the loop spends on lines 13 to 15, for latents of `shape`."""
    z, noise, mixed = (torch.randn(shape).to(backbone.device, dtype) for _ in range(3))
    mu = torch.rand(shape[0], 1, *shape[2:], device=backbone.device)
    signal, sigma = (level[0] for level in noise_levels(backbone.scheduler, backbone.start(), z))
    level = thresholds("linear", steps).to(backbone.device)[steps // 2]

    def lines_13_to_15() -> Tensor:
        return torch.where(mu > level, signal * z + sigma * noise, mixed)

    lines_13_to_15()
    return statistics.median(clock(lines_13_to_15, backbone.device) for _ in range(repeats))


def added_bytes(shape: tuple[int, ...], dtype: torch.dtype, surgery: Surgery = Surgery(), steps: int = 40) -> int:  # noqa: B008
    """Bytes that the loop keeps or makes at once on top of plain img2img: source latents, their noise, the noised
    source, the map (float32), its mask, and three numbers per step. Compare 2 N stored latents in the released code."""
    latents = torch.Size(shape).numel() * dtype.itemsize
    cells = shape[0] * shape[2] * shape[3]
    return 3 * latents + cells * (4 + 1) + steps * (2 * dtype.itemsize + 4)


def overhead(bench: Bench, pairs: list[Pair]) -> None:
    """Appendix 6, by paired runs; and the added operations alone against one step, which a CPU can resolve."""
    if bench.model.kind == "kandinsky":
        raise InputError("--overhead compares with diffusers' img2img of SD and SDXL; Kandinsky's takes other inputs")
    loaded = load_pair(pairs[0], bench.size)
    backbone = bench.bind(loaded)
    rows = paired_runs(bench, loaded, bench.args.repeats)
    relative = [100 * (row["ours_seconds"] / row["theirs_seconds"] - 1) for row in rows]
    mean, low, high = bootstrap_interval(relative)
    steps, dtype = len(backbone.start()), bench.model.pipe.unet.dtype
    own = backbone.latent_shape(loaded["source"])
    step = statistics.median(row["theirs_seconds"] for row in rows) / steps
    lines = [["latents", "added operations, ms", "of a step here", "added bytes, MiB", "released code's stacks, MiB"]]
    numbers: dict[str, Any] = {"rows": rows, "percent": [mean, low, high], "step_seconds": step, "operations": {}}
    for shape in dict.fromkeys((own, SDXL_LATENTS)):
        seconds, extra = (
            added_operations(backbone, shape, dtype, steps),
            added_bytes(shape, dtype, bench.surgery, steps),
        )
        stacks = 2 * steps * torch.Size(shape).numel() * dtype.itemsize
        numbers["operations"]["x".join(map(str, shape))] = {"seconds": seconds, "bytes": extra, "stacks": stacks}
        share = f"{100 * seconds / step:.3f} %" if shape == own else ""
        lines.append(["x".join(map(str, shape)), f"{1000 * seconds:.4f}", share, f"{extra / 2**20:.3f}",
                      f"{stacks / 2**20:.2f}"])  # fmt: skip
    print(
        f"{len(rows)} pairs of {steps} steps: {mean:+.2f} % time [{low:+.2f}, {high:+.2f}] against diffusers' img2img"
    )
    memory = [row["ours_mb"] - row["theirs_mb"] for row in rows]
    measured = {"extra_time_percent": {"mean": mean, "low": low, "high": high, "n": len(rows)}}
    if memory[0] == memory[0]:
        base = rows[0]["theirs_mb"]
        for key, values in (("extra_memory_mb", memory), ("extra_memory_percent", [100 * m / base for m in memory])):
            average = sum(values) / len(values)
            measured[key] = {"mean": average, "low": average, "high": average, "n": len(values)}
    print(text_table(lines), end="\n\n")
    called = f"measured: {bench.model.kind}, {backbone.device}, {dtype}"
    print(beside_published("overhead", {called: {"pixels": measured}}))
    write_json(bench.output / "overhead.json", numbers)
