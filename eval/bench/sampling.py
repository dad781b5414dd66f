"""Our sampling against diffusers' own pipeline, in turn, on the same weights. For make bench."""

import argparse

from eval.bench.ratios import against, in_turn, middle


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Sampling, where the pipeline is Stable Diffusion's, measured and printed; {name in bench.json: rows}."""
    from diffusers import StableDiffusionPipeline

    if not isinstance(pipe, StableDiffusionPipeline):
        return {}
    rows = sampling_rows(pipe, args)
    ratio = [row["ours"] / row["diffusers"] for row in rows]
    gap = max(row["largest_difference"] for row in rows)
    print(f"Sampling, {args.num_inference_steps} steps, guidance {args.guidance_scale:g}, {len(rows)} pairs: ours / "
          f"diffusers' {middle(ratio, 3)}{against(ratio, 1.0)}; largest difference of latents {gap:.1e}")  # fmt: skip
    return {"sampling": rows}


def sampling_rows(pipe, args: argparse.Namespace) -> list[dict]:
    """The same noise and prompt through spdinv's sampling loop and through pipe(...), in turn; one row per pair."""
    import torch

    from common.ddim import make_schedule
    from common.pipelines import native_resolution
    from spdinv.engines import ENGINES
    from spdinv.inversions.result import Inversion

    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    side = native_resolution(pipe) // pipe.vae_scale_factor
    prompt = "a red cat in a meadow"
    pipe.set_progress_bar_config(disable=True)

    def noise(seed: int):
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(pipe.device)

    def ours(seed: int):
        return ENGINES["none"](pipe, schedule, Inversion(noise(seed)[None]), [prompt], args.guidance_scale)

    def theirs(seed: int):
        return pipe(
            prompt, latents=noise(seed), num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale, output_type="latent",
        ).images  # fmt: skip

    return in_turn(ours, theirs, args.repeats)
