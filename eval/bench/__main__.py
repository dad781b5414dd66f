"""Speed and memory: inversions side by side, our DDIM sampling and latent surgery against diffusers' own pipelines, the
Lipschitz penalty against a training step and against prior preservation, spectral shifts against LoRA and full weights.

    python -m eval.bench --items 3
    python -m eval.bench --parts shifts --training_shapes sd15
"""

import argparse
import time
from pathlib import Path

from common.flags import number
from common.runs import InputError, make_parser, paired_bootstrap, script, write_config, write_json

# name -> (inversion of spdinv.inversions, its options); "spd_paper" is Alg. 1 to the letter
SOLVERS = {
    "ddim": ("ddim", {}),
    "spd": ("spd", {}),
    "spd_paper": ("spd", {"solver": "sgd"}),
    "spd_descent": ("spd", {"solver": "descent"}),
    "spd_anderson": ("spd", {"solver": "anderson"}),
}
PARTS = ("inversions", "sampling", "surgery", "penalty", "shifts", "inpainting")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; all by default")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--dataset", default="picturebook", help="picturebook, or a PIE-Bench folder; its first pictures are used")
    add("--items", type=number(int, 1), default=3, help="pictures to invert")
    add("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS), help="inversions to run")
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="DDIM steps")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of sampling; inversion has none")
    add("--repeats", type=number(int, 1), default=5, help="pairs of samplings, ours and diffusers' in turn")
    add("--training_shapes", choices=("model", "sd15"), default="model", help="network of the parts penalty and "
        "shifts: the model's, or random ones of Stable Diffusion 1.5's shapes (penalty: some 20 GB)")  # fmt: skip
    add("--output_dir", default="outputs/bench", help="folder for bench.json")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    args = parser.parse_args(argv)
    if args.dataset != "picturebook" and not (Path(args.dataset) / "mapping_file.json").is_file():
        raise InputError(f"--dataset {args.dataset} holds no mapping_file.json; give a PIE-Bench folder")
    if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise InputError(f"--output_dir {args.output_dir} is a file; give a folder")
    return args


def residual(pipe, schedule, inversion, cond) -> float:
    """How far a trajectory is from fixed points: mean over steps of the loss of Eq. 4 as released (SPDInv)."""
    import torch

    from spdinv.inversions.residual import f_theta, mean_square

    found = []
    with torch.no_grad():
        for level, t in enumerate(schedule.timesteps[::-1]):
            z, x = inversion.trajectory[level], inversion.trajectory[level + 1]
            found.append(mean_square(x - f_theta(pipe, schedule, z, t, cond, x, [0])).item())
    return sum(found) / len(found)


def bench_inversions(pipe, args: argparse.Namespace) -> list[dict]:
    """One row per solver and picture. A short inversion first, so that no solver pays for the first touch of memory.

    noise_gap, noise_gap_file: mean squared distance of z_T to the noise that a picture was drawn from with the same
    prompt, inverted from the sampler's own z_0, and from that picture as a file would hold it.
    """
    from common.data import read_pie_bench
    from common.ddim import make_schedule
    from common.images import center_crop_resize, load_image, to_tensor
    from common.metrics import psnr
    from common.picturebook.benchmarks import ensure_pie_bench
    from common.pipelines import decode_latents, encode_image, encode_prompt, native_resolution
    from common.runs import measure
    from spdinv.engines import ENGINES
    from spdinv.inversions import INVERSIONS
    from spdinv.reproduction.experiments.generated import ideal_noise, through_a_file
    from spdinv.sampling import generate

    folder = ensure_pie_bench() if args.dataset == "picturebook" else args.dataset
    schedule = make_schedule(pipe.scheduler, args.num_inference_steps)
    rows = []
    for item in read_pie_bench(folder, limit=args.items):
        picture = to_tensor(center_crop_resize(load_image(item.image_path), native_resolution(pipe))).to(pipe.device)
        latents, cond = encode_image(pipe, picture).float(), encode_prompt(pipe, [item.source_prompt])
        noise = ideal_noise(pipe, [item.id], 0, native_resolution(pipe))
        drawn = generate(pipe, schedule, noise, cond, 1.0)[0]
        known = {"noise_gap": drawn, "noise_gap_file": through_a_file(pipe, drawn)}
        for solver in args.solvers:
            name, options = SOLVERS[solver]
            if not any(row["solver"] == solver for row in rows):
                INVERSIONS[name](pipe, make_schedule(pipe.scheduler, 2), latents, cond, **options)
            with measure() as cost:
                inversion = INVERSIONS[name](pipe, schedule, latents, cond, **options)
            found = {key: INVERSIONS[name](pipe, schedule, z, cond, **options).noise for key, z in known.items()}
            back = ENGINES["none"](pipe, schedule, inversion, [item.source_prompt], 1.0)
            rows.append({
                "solver": solver,
                "item": item.id,
                "residual": residual(pipe, schedule, inversion, cond),
                **{key: (z - noise).square().mean().item() for key, z in found.items()},
                "latent_mse": (back - latents).square().mean().item(),
                "psnr": psnr(decode_latents(pipe, latents), decode_latents(pipe, back)).item(),  # against the VAE's own
                "forward": inversion.cost["forward"],
                "backward": inversion.cost["backward"],
                "seconds": cost.seconds,
                "peak_memory_mb": cost.peak_memory_mb,
            })  # fmt: skip
    return rows


def bench_sampling(pipe, args: argparse.Namespace) -> list[dict]:
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

    def ours(noise):
        start = Inversion(noise[None], torch.zeros(0, 1, dtype=torch.int64), {})
        return ENGINES["none"](pipe, schedule, start, [prompt], args.guidance_scale)

    def theirs(noise):
        return pipe(
            prompt, latents=noise, num_inference_steps=args.num_inference_steps, guidance_scale=args.guidance_scale,
            output_type="latent",
        ).images  # fmt: skip

    def seconds(draw, noise):
        start = time.perf_counter()
        latents = draw(noise)
        latents.sum().item()  # waits for a GPU
        return time.perf_counter() - start, latents

    rows = []
    for repeat in range(args.repeats + 1):  # the first pair warms up
        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(repeat)).to(pipe.device)
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        took = {draw.__name__: seconds(draw, noise) for draw in order}
        gap = (took["ours"][1] - took["theirs"][1]).abs().max().item()
        rows.append({"ours": took["ours"][0], "diffusers": took["theirs"][0], "largest_difference": gap})
    return rows[1:]


def bench_surgery(pipe, args: argparse.Namespace) -> list[dict]:
    """Latent surgery (PIXELS) and diffusers' img2img of the same strength, loops alone, in turn; one row per pair."""
    import torch
    from diffusers import StableDiffusionPipeline

    from common.pipelines import native_resolution
    from pixels.backbones import Model
    from pixels.edit_map import gradient
    from pixels.options import Sampling
    from pixels.reproduction.overhead import paired_runs
    from pixels.reproduction.scoring import Bench
    from pixels.surgery import Surgery

    side = native_resolution(pipe)
    source, exemplar = torch.rand(2, 1, 3, side, side, generator=torch.Generator().manual_seed(0))
    loaded = {"source": source, "exemplars": [exemplar], "maps": [gradient((side, side))]}
    model = Model("sd" if isinstance(pipe, StableDiffusionPipeline) else "sdxl", pipe, pipe.scheduler)
    told = Sampling("", "", args.guidance_scale, args.num_inference_steps, strength=0.5)
    seeds, surgery = argparse.Namespace(seed=0), Surgery(black_point=0.1)
    bench = Bench(seeds, model, (side, side), told, surgery, None, Path(args.output_dir))
    return paired_runs(bench, loaded, args.repeats)


def summary(rows: list[dict], solvers: list[str]) -> str:
    """Means per solver; seconds with the paired difference to the first solver."""
    from common.tables import by, text_table

    columns = [name for name in rows[0] if name not in ("solver", "item")]
    lines = [["solver", *columns, f"seconds - {solvers[0]} [95 % interval]"]]
    seconds = {solver: [row["seconds"] for row in group] for solver, group in by(rows, "solver").items()}
    for solver, group in by(rows, "solver").items():
        means = [f"{sum(row[name] for row in group) / len(group):.4g}" for name in columns]
        mean, low, high = paired_bootstrap(seconds[solver], seconds[solvers[0]])
        lines.append([solver, *means, "" if solver == solvers[0] else f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"])
    return text_table(lines)


def print_sampling(rows: list[dict], args: argparse.Namespace) -> None:
    """Ours against diffusers' seconds, in percent with paired intervals."""
    relative = [row["ours"] / row["diffusers"] - 1 for row in rows]
    mean, low, high = (100 * value for value in paired_bootstrap(relative, [0.0] * len(relative)))
    ours, theirs = (sum(row[name] for row in rows) / len(rows) for name in ("ours", "diffusers"))
    print(
        f"Sampling, {args.num_inference_steps} steps, guidance {args.guidance_scale:g}, {len(rows)} pairs: "
        f"ours {ours:.3f} s, diffusers {theirs:.3f} s; ours {mean:+.1f} % [{low:+.1f}, {high:+.1f}]; "
        f"largest difference of latents {max(row['largest_difference'] for row in rows):.1e}"
    )


def print_surgery(rows: list[dict], args: argparse.Namespace) -> None:
    """Latent surgery against img2img, in percent with paired intervals."""
    relative = [row["ours_seconds"] / row["theirs_seconds"] - 1 for row in rows]
    mean, low, high = (100 * value for value in paired_bootstrap(relative, [0.0] * len(relative)))
    print(
        f"Latent surgery, half of {args.num_inference_steps} steps, {len(rows)} pairs: {mean:+.1f} % "
        f"[{low:+.1f}, {high:+.1f}] against diffusers' img2img"
    )


def run_part(part: str, pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure one of PARTS and print what was found; {name in bench.json: rows}."""
    from diffusers import StableDiffusionPipeline

    from eval.bench import inpainting, penalty, shifts

    if part == "inpainting":
        return inpainting.run(args)
    if part == "penalty":
        return penalty.run(args)
    if part == "inversions":
        print(f"Inverting {args.items} pictures under their own prompts, {args.num_inference_steps} steps")
        rows = bench_inversions(pipe, args)
        print(summary(rows, args.solvers), end="\n\n")
    elif part == "sampling":
        rows = bench_sampling(pipe, args) if isinstance(pipe, StableDiffusionPipeline) else []
        if rows:
            print_sampling(rows, args)
    elif part == "surgery":
        rows = bench_surgery(pipe, args)
        print_surgery(rows, args)
    else:
        return shifts.run(pipe, args)
    return {part: rows}


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from common.pipelines import load_pipeline

    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    output, found = Path(args.output_dir), {}
    for part in args.parts:
        found |= run_part(part, pipe, args)
        write_json(output / "bench.json", found)  # after each, so that an interrupted run has measured something
    write_config(output, args)
    print(f"written to {output / 'bench.json'}")


if __name__ == "__main__":
    main()
