"""Latent surgery (PIXELS) against diffusers' own img2img of the same strength, as its Appendix 6. For make bench."""

import argparse
import time
from dataclasses import replace

from eval.bench.ratios import middle


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Latent surgery, measured and printed."""
    rows = surgery_rows(pipe, args)
    ratio = [row["ours_seconds"] / row["theirs_seconds"] for row in rows]
    extra = [row["ours_mb"] - row["theirs_mb"] for row in rows]
    memory = f"; {middle(extra, 1)} MB more (paper: less than 7)" if extra[0] == extra[0] else ""
    print(f"Latent surgery, half of {args.num_inference_steps} steps, {len(rows)} pairs: ours / img2img "
          f"{middle(ratio, 3)} (paper: 1.039){memory}")  # fmt: skip
    return {"surgery": rows}


def surgery_rows(pipe, args: argparse.Namespace) -> list[dict]:
    """Loops alone, ours and diffusers' img2img in turn: both begin at latents and end at latents, so that neither the
    exemplar's pass through the VAE nor the decoder is in the difference. One row per pair; memory on a GPU alone."""
    import torch
    from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline

    from common.pipelines import native_resolution
    from pixels.backbones import Model
    from pixels.edit_map import gradient
    from pixels.options import Sampling, bind
    from pixels.surgery import Surgery, edit

    side = native_resolution(pipe)
    source, exemplar = torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = Model("sd" if isinstance(pipe, StableDiffusionPipeline) else "sdxl", pipe, pipe.scheduler)
    told = Sampling("", "", args.guidance_scale, args.num_inference_steps, strength=0.5)
    backbone = bind(model, told, (side, side))
    known = {id(picture): backbone.encode(picture, False, None) for picture in (source, exemplar)}
    img2img = AutoPipelineForImage2Image.from_pipe(pipe)
    img2img.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    img2img.set_progress_bar_config(disable=True)
    generator, cuda = torch.Generator(), pipe.device.type == "cuda"

    def ours():
        bound = bind(model, told, (side, side))  # the prompt is encoded in either
        loop = replace(bound, encode=lambda picture, sample, generator: known[id(picture)], decode=lambda z: z)
        surgery, edit_map = Surgery(black_point=0.1), gradient((side, side))
        edit(loop, source, [exemplar], [edit_map], surgery, generator.manual_seed(0))

    def theirs():
        img2img("", negative_prompt="", image=known[id(source)], strength=0.5, guidance_scale=args.guidance_scale,
                num_inference_steps=args.num_inference_steps, output_type="latent",
                generator=generator.manual_seed(0))  # fmt: skip

    def measured(function) -> dict[str, float]:
        if cuda:
            torch.cuda.reset_peak_memory_stats(pipe.device)
            torch.cuda.synchronize(pipe.device)
        start = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize(pipe.device)
        seconds = time.perf_counter() - start
        return {"seconds": seconds,
                "mb": torch.cuda.max_memory_allocated(pipe.device) / 2**20 if cuda else float("nan")}  # fmt: skip

    rows = []
    for repeat in range(args.repeats + 1):  # the first pair warms up
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        took = {function.__name__: measured(function) for function in order}
        rows.append({f"{name}_{key}": value for name, cost in took.items() for key, value in cost.items()})
    return rows[1:]
