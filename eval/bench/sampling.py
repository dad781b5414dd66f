"""Our sampling against diffusers' own pipeline, in turn, on the same weights. For make bench."""

import argparse

from eval.bench.ratios import same_pictures


def run(pipe, args: argparse.Namespace) -> dict[str, dict]:
    """The same noise and prompt through spdinv's sampling loop and through pipe(...), where the pipeline is Stable
    Diffusion's."""
    import torch
    from diffusers import StableDiffusionPipeline

    from common.ddim import make_schedule
    from common.pipelines import native_resolution
    from spdinv.engines import ENGINES
    from spdinv.inversions.result import Inversion

    if not isinstance(pipe, StableDiffusionPipeline):
        return {}
    steps, guidance = args.num_inference_steps, args.guidance_scale
    schedule = make_schedule(pipe.scheduler, steps)
    side = native_resolution(pipe) // pipe.vae_scale_factor
    prompt = "a red cat in a meadow"
    pipe.set_progress_bar_config(disable=True)

    def noise(seed: int):
        return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(pipe.device)

    def ours(seed: int):
        return ENGINES["none"](pipe, schedule, Inversion(noise(seed)[None]), [prompt], guidance)

    def theirs(seed: int):
        return pipe(
            prompt, latents=noise(seed), num_inference_steps=steps, guidance_scale=guidance, output_type="latent"
        ).images

    what = f"Sampling, {steps} steps, guidance {guidance:g}"
    return {"sampling": same_pictures(what, ours, theirs, args.repeats)}
