"""Solvers of the fixed point (SPDInv) side by side: how near they come, what they cost. For make bench."""

import argparse
import statistics

from eval.bench.ratios import middle

# name -> (inversion of spdinv.inversions, its options); "spd_paper" is Alg. 1 with lines 4 and 5 as printed
SOLVERS = {
    "ddim": ("ddim", {}),
    "spd": ("spd", {}),
    "spd_paper": ("spd", {"solver": "sgd"}),
    "spd_descent": ("spd", {"solver": "descent"}),
    "spd_anderson": ("spd", {"solver": "anderson"}),
}


def run(pipe, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print; {name in bench.json: rows}."""
    rows = inversion_rows(pipe, args)
    print(f"Inverting {args.items} pictures under their own prompts, {args.num_inference_steps} steps")
    print(summary(rows), end="\n\n")
    return {"inversions": rows}


def inversion_rows(pipe, args: argparse.Namespace) -> list[dict]:
    """One row per solver and picture. A short inversion first, so that no solver pays for the first touch of memory.

    residual: how far the trajectory is from fixed points, the mean over steps of the loss of Eq. 4 as released.
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
    from spdinv.reproduction.experiments.convergence import residuals
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
        for solver, (name, options) in SOLVERS.items():
            if not any(row["solver"] == solver for row in rows):
                INVERSIONS[name](pipe, make_schedule(pipe.scheduler, 2), latents, cond, **options)
            with measure() as cost:
                inversion = INVERSIONS[name](pipe, schedule, latents, cond, **options)
            found = {key: INVERSIONS[name](pipe, schedule, z, cond, **options).noise for key, z in known.items()}
            back = ENGINES["none"](pipe, schedule, inversion, [item.source_prompt], 1.0)
            rows.append({
                "solver": solver,
                "item": item.id,
                "residual": statistics.fmean(left for (left,) in residuals(pipe, schedule, inversion, cond, [])),
                **{key: (z - noise).square().mean().item() for key, z in found.items()},
                "latent_mse": (back - latents).square().mean().item(),
                "psnr": psnr(decode_latents(pipe, latents), decode_latents(pipe, back)).item(),  # against the VAE's own
                "forward": inversion.cost["forward"],
                "backward": inversion.cost["backward"],
                "seconds": cost.seconds,
                "peak_memory_mb": cost.peak_memory_mb,
            })  # fmt: skip
    return rows


def summary(rows: list[dict]) -> str:
    """Means per solver; seconds as a ratio to the first solver's, picture by picture."""
    from common.tables import by, text_table

    columns = [name for name in rows[0] if name not in ("solver", "item")]
    lines = [["solver", *columns, "seconds / ddim's, median [least, most]"]]
    grouped = by(rows, "solver")
    first = [row["seconds"] for row in grouped["ddim"]]
    for solver, group in grouped.items():
        means = [f"{statistics.fmean(row[name] for row in group):.4g}" for name in columns]
        ratio = [row["seconds"] / other for row, other in zip(group, first, strict=True)]
        lines.append([solver, *means, middle(ratio)])
    return text_table(lines)
