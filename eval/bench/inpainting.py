"""Image-guided inpainting for make bench: painting against diffusers' pipeline on the same weights, and what a step of
each way of tuning takes."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common.flags import PICTUREBOOK_FOLDER as MODELS
from common.flags import is_picturebook_folder
from common.runs import InputError
from eval.bench.ratios import against, in_turn, middle

ROOT = Path(__file__).parents[2]

# name -> flags of image_inpaint.train
TRAININGS = {
    "lora": ["--tuning", "lora", "--cache_views", "0"],
    "lora, cached views": ["--tuning", "lora", "--cache_views", "24"],
    "full": ["--tuning", "full", "--cache_views", "0"],
    "full, cached views": ["--tuning", "full", "--cache_views", "24"],
}
STEPS = 20
MEASURED = ("seconds_per_step", "peak_memory_mb", "trained_parameters", "file_bytes")
# Runs a command without its output, and prints the most memory in KiB (in bytes on macOS) that it was resident with. A
# process counts what the program that started it had, so that a small one has to stand between us and the training.
PEAK = """import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""


def bench_painting(model: str, device: str | None, steps: int, guidance: float, repeats: int) -> list[dict]:
    """The same noise, picture, hole and reference through image_inpaint's sampling and PaintByExamplePipeline, PLMS, in
    turn; one row per pair. Masks nearest, as diffusers has them."""
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
        return sample(pipe, source, fill, embed_references(pipe, reference), [generator], settings)

    def theirs(seed: int):
        pipe.scheduler = make_scheduler("plms", levels)
        return pipe(
            reference_pixels(reference, pipe), image=2 * source - 1, mask_image=fill, num_inference_steps=steps,
            guidance_scale=guidance, generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).images  # fmt: skip

    return in_turn(ours, theirs, repeats)


def bench_training(model: str, device: str | None, subject: str | None = None) -> list[dict]:
    """Seconds of a step, memory, trained parameters and file size, per way of tuning, each in a process of its own.

    Memory is the most that the process was resident with; on a GPU what its allocator held.
    """
    import torch

    rows = []
    on_gpu = (device or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda")
    given = ["--instance_data_dir", subject] if subject else []
    given += ["--device", device.partition(":")[0]] if device else []
    for name, flags in TRAININGS.items():
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_memory_mb(["--pretrained_model_name_or_path", model, "--output_dir", folder,
                                   "--max_train_steps", str(STEPS), *given, *flags])  # fmt: skip
            found = json.loads((Path(folder) / "metrics.json").read_text())
            if not on_gpu:
                found["peak_memory_mb"] = peak
        rows.append({"training": name, **{key: found[key] for key in MEASURED}})
    return rows


def peak_memory_mb(flags: list[str]) -> float:
    """Train with these flags of image_inpaint.train in a process of its own; the most MiB that it was resident with.

    Raises InputError with the training's own last line if it fails.
    """
    command = [sys.executable, "-c", PEAK, sys.executable, "-m", "image_inpaint.train", *flags]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"image_inpaint.train failed: {last.removeprefix('error: ')}")
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 2**10)


def run(pipe, args: argparse.Namespace) -> dict:
    """Both, printed; nothing where there is no inpainting model. pipe: of the other parts."""
    model = args.pretrained_model_name_or_path
    if model == "picturebook" and not (MODELS / "inpaint_unet").is_dir():
        print("Image-guided inpainting is left out: python -m common.picturebook.build inpaint trains its model")
        return {}
    if not is_picturebook_folder(model):
        print("Image-guided inpainting is measured on the picturebook")
        return {}
    steps = args.num_inference_steps
    painting = bench_painting(model, args.device, steps, 5.0, args.repeats)
    trainings = bench_training(model, args.device)
    print(report(painting, trainings, steps))
    return {"painting": painting, "inpainting_trainings": trainings}


def report(painting: list[dict], trainings: list[dict], steps: int) -> str:
    """Both in words."""
    ratio = [row["ours"] / row["diffusers"] for row in painting]
    lines = [
        f"Image-guided inpainting, {steps} steps, {len(painting)} pairs: ours / diffusers' {middle(ratio, 3)}"
        f"{against(ratio, 1.0)}; largest difference of pixels {max(row['largest_difference'] for row in painting):.1e}"
    ]
    for row in trainings:
        lines.append(
            f"Tuning, {row['training']}: {row['seconds_per_step']:.3f} s a step, {row['peak_memory_mb']:.0f} MiB, "
            f"{row['trained_parameters']} parameters, {row['file_bytes'] / 1e6:.2f} MB"
        )
    return "\n".join(lines)
