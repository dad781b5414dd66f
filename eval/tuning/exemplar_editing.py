"""Tune every method of the exemplar track on the picturebook's validation split, twelve settings for each.

    python -m eval.tuning.exemplar_editing --items 12
    python -m eval.tuning.exemplar_editing --items 12 --dataset compositions

Writes eval/tuning/exemplar_editing.toml or compositions.toml, to be committed before the test split is run. An
interrupted run goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common.flags import number
from common.runs import append_row, atomic_path, make_parser, read_rows, script
from eval.tracks import exemplar_editing
from eval.tuning.tuner import Setting, grid, label, least
from pixels import options

SCORE = "lpips_truth (picturebook)"  # less is better: nearness to the true edit, inside and outside of the map
# From four of the preset's 50 steps up (with fewer, a map has hardly a grey left), closer where there is little noise.
STRENGTHS = (0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.26, 0.34, 0.44, 0.56, 0.7, 0.9)
GRIDS: dict[str, list[Setting]] = {
    "perturbed": grid(strength=STRENGTHS),
    "noise_scaling": grid(strength=STRENGTHS),
    "sdedit": grid(strength=STRENGTHS),
    "blended_latent": grid(strength=STRENGTHS),
    "differential_diffusion": grid(strength=(0.1, 0.2, 0.4, 0.8), guidance_scale=(2.0, 4.0, 7.5)),
    "pixels": grid(strength=STRENGTHS),
}  # paste and latent_paste have nothing to tune


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=options.DRAWN, default="picturebook", help="whose validation items")
    add("--items", type=number(int, 1), default=12, help="validation items")
    add("--methods", nargs="+", choices=GRIDS, default=list(GRIDS), help="methods to tune")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of all; the preset's by default")
    add("--output_dir", default="outputs/tune_exemplar", help="folder for rows, one within it per data set")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    return parser.parse_args(argv)


def write_settings(path: Path, dataset: str, found: dict[str, tuple[Setting, float]], items: int) -> None:
    """A data set's file of settings."""
    lines = [
        "# What each method of the exemplar track runs with on the picturebook, where it differs from pixels' preset.",
        f"# Written by `python -m eval.tuning.exemplar_editing --dataset {dataset} --items {items}` on the validation",
        "# split: as many settings tried for every method, the least LPIPS to the true edit taken.",
    ]
    for method, (setting, score) in found.items():
        values = [f"{name} = {value}" for name, value in setting.items()]
        lines += ["", f"[{method}]  # {1000 * score:.0f}e-3", *values]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from tqdm import tqdm

    from pixels import eval as pixels_eval
    from pixels.reproduction.pairs import find_pairs
    from pixels.reproduction.scoring import run_item

    output = Path(args.output_dir) / args.dataset
    flags = ["--output_dir", str(output)] + (["--device", args.device] if args.device else [])
    flags += ["--num_inference_steps", str(args.num_inference_steps)] if args.num_inference_steps else []
    settings = pixels_eval.parse(flags)
    bench = exemplar_editing.make_bench(settings, exemplar_editing.own_settings(on_picturebook=False))
    rows = output / "rows.jsonl"
    done = {(row["item"], row["method"]) for row in read_rows(rows)}
    pairs = find_pairs(args.dataset, "validation", limit=args.items)
    runs = [(method, s, p) for p in pairs for method in args.methods for s in GRIDS[method]]
    for method, setting, pair in tqdm(runs, "settings", disable=None):
        name = label(method, setting)
        if (pair.id, name) in done:
            continue
        row, _ = run_item(replace(bench, own={method: bench.own.get(method, {}) | setting}), pair, method)
        append_row(rows, row | {"method": name})
    found = least(read_rows(rows), {method: GRIDS[method] for method in args.methods}, SCORE)
    for method, (setting, score) in found.items():
        print(f"{label(method, setting)}: {SCORE} {score:.4f}")
    write_settings(exemplar_editing.SETTINGS[args.dataset], args.dataset, found, args.items)
    print(f"written to {exemplar_editing.SETTINGS[args.dataset]}")


if __name__ == "__main__":
    main()
