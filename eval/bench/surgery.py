"""Latent surgery (PIXELS) against diffusers' own img2img of the same strength, as its Appendix 6. For make bench."""

import argparse
from dataclasses import replace

from eval.bench.ratios import middle, ratios, rounds


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Loops alone, ours and diffusers' img2img in turn: both begin at latents and end at latents, so that neither the
    exemplar's pass through the VAE nor the decoder is in the difference."""
    import torch
    from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline

    from common.pipelines import native_resolution
    from pixels.backbones import Model, bind
    from pixels.edit_map import gradient
    from pixels.options import Sampling
    from pixels.surgery import Surgery, edit

    steps, guidance, side = args.num_inference_steps, args.guidance_scale, native_resolution(pipe)
    source, exemplar = torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = Model("sd" if isinstance(pipe, StableDiffusionPipeline) else "sdxl", pipe, pipe.scheduler)
    told = Sampling("", "", guidance, steps, strength=0.5)
    backbone = bind(model, told, (side, side))
    known = {id(picture): backbone.encode(picture, False, None) for picture in (source, exemplar)}
    img2img = AutoPipelineForImage2Image.from_pipe(pipe)
    img2img.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    img2img.set_progress_bar_config(disable=True)

    def ours(seed: int):
        bound = bind(model, told, (side, side))  # the prompt is encoded in either
        loop = replace(bound, encode=lambda picture, sample, generator: known[id(picture)], decode=lambda z: z)
        generator, surgery = torch.Generator().manual_seed(seed), Surgery(black_point=0.1)
        edit(loop, source, [exemplar], [gradient((side, side))], surgery, generator)

    def theirs(seed: int):
        img2img("", negative_prompt="", image=known[id(source)], strength=0.5, guidance_scale=guidance,
                num_inference_steps=steps, output_type="latent",
                generator=torch.Generator().manual_seed(seed))  # fmt: skip

    rows = rounds({"ours": ours, "img2img": theirs}, args.repeats)
    extra = [row["ours_mb"] - row["img2img_mb"] for row in rows]
    memory = f"; {middle(extra, 1)} MB more (paper: less than 7)" if pipe.device.type == "cuda" else ""
    print(f"Latent surgery, half of {steps} steps, {len(rows)} pairs: ours / img2img "
          f"{middle(ratios(rows, 'ours', 'img2img'), 3)} (paper: 1.039){memory}")  # fmt: skip
    return {"surgery": rows}
