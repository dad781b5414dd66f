"""Image-guided inpainting for make bench: painting against diffusers' pipeline on the same weights, and what a step of
each way of tuning takes."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common.flags import PICTUREBOOK_FOLDER as MODELS
from common.flags import is_picturebook_folder
from common.runs import ROOT, InputError
from eval.bench.ratios import same_pictures

STEPS = 20
# name -> flags of image_inpaint.train
TRAININGS = {
    "lora": ["--tuning", "lora", "--cache_views", "0"],
    "lora, cached views": ["--tuning", "lora", "--cache_views", "24"],
    "full": ["--tuning", "full", "--cache_views", "0"],
    "full, cached views": ["--tuning", "full", "--cache_views", "24"],
}
MEASURED = ("seconds_per_step", "peak_memory_mb", "trained_parameters", "file_bytes")


def run(pipe, args: argparse.Namespace) -> dict:
    """Both, printed; nothing where there is no inpainting model. pipe: of the other parts."""
    model = args.pretrained_model_name_or_path
    if not is_picturebook_folder(model) or model == "picturebook" and not (MODELS / "inpaint_unet").is_dir():
        print("Image-guided inpainting is left out: it is measured on the picturebook, and python -m "
              "common.picturebook.build inpaint trains its model")  # fmt: skip
        return {}
    painting = bench_painting(model, args.device, args.num_inference_steps, 5.0, args.repeats)
    trainings = [bench_training(name, model, args.device) for name in TRAININGS]
    for row in trainings:
        print(f"Tuning, {row['training']}: {row['seconds_per_step']:.3f} s a step, {row['peak_memory_mb']:.0f} MiB, "
              f"{row['trained_parameters']} parameters, {row['file_bytes'] / 1e6:.2f} MB")  # fmt: skip
    return {"painting": painting, "inpainting_trainings": trainings}


def bench_painting(model: str, device: str | None, steps: int, guidance: float, repeats: int) -> dict:
    """The same noise, picture, hole and reference through image_inpaint's sampling and PaintByExamplePipeline, PLMS.
    Masks nearest, as diffusers has them."""
    import torch

    from common.pipelines import native_resolution
    from image_inpaint.conditioning import embed_references, reference_pixels
    from image_inpaint.loading import load
    from image_inpaint.sampling import Sampling, make_scheduler, sample

    pipe = load(model, device)
    side = native_resolution(pipe)
    draw = torch.Generator().manual_seed(0)
    source, reference = torch.rand(2, 1, 3, side, side, generator=draw)
    fill = torch.zeros(1, 1, side, side)
    fill[..., side // 4 : 3 * side // 4, side // 3 :] = 1
    settings, levels = Sampling("plms", steps, guidance, "nearest"), pipe.scheduler.config

    def ours(seed: int):
        pipe.scheduler = make_scheduler("plms", levels)
        generator = torch.Generator().manual_seed(seed)
        return sample(pipe, source, fill, embed_references(pipe, reference), [generator], settings).cpu()

    def theirs(seed: int):
        pipe.scheduler = make_scheduler("plms", levels)
        return pipe(
            reference_pixels(reference, pipe), image=2 * source - 1, mask_image=fill, num_inference_steps=steps,
            guidance_scale=guidance, generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).images.cpu()  # fmt: skip

    return same_pictures(f"Image-guided inpainting, {steps} steps", ours, theirs, repeats)


def bench_training(name: str, model: str, device: str | None, subject: str | None = None) -> dict:
    """What a way of tuning MEASURED of itself, in a process of its own: one that has trained before holds freed memory,
    in which the next training shows no growth. Raises InputError with its last line if it fails."""
    given = ["--instance_data_dir", subject] if subject else []
    given += ["--device", device.partition(":")[0]] if device else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "image_inpaint.train", "--pretrained_model_name_or_path", model,
                   "--output_dir", folder, "--max_train_steps", str(STEPS), *given, *TRAININGS[name]]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"image_inpaint.train failed: {last.removeprefix('error: ')}")
        found = json.loads((Path(folder) / "metrics.json").read_text())
    return {"training": name, **{key: found[key] for key in MEASURED}}
