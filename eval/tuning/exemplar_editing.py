"""Tune every method of the exemplar track on the picturebook's validation split, twelve settings for each.

    python -m eval.tuning.exemplar_editing --items 12
    python -m eval.tuning.exemplar_editing --items 12 --dataset compositions

Writes eval/tuning/exemplar_editing.toml or compositions.toml, to be committed before the test split is run. An
interrupted run goes on.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from common.flags import number
from common.runs import joined_config, script, write_config
from eval.tracks import exemplar_editing
from eval.tracks.track import given
from eval.tuning.tuner import Setting, grid, label, least, make_tuning_parser, measured, tune, write_tuned
from pixels import options

SCORE = "lpips_truth (picturebook)"  # less is better: nearness to the true edit, inside and outside of the map
# From four of the preset's 50 steps up (with fewer, a map has hardly a grey left), closer where there is little noise.
STRENGTHS = (0.08, 0.1, 0.12, 0.14, 0.17, 0.2, 0.26, 0.34, 0.44, 0.56, 0.7, 0.9)
TUNED = ("perturbed", "noise_scaling", "sdedit", "blended_latent", "differential_diffusion", "pixels")
GRIDS: dict[str, list[Setting]] = dict.fromkeys(TUNED, grid(strength=STRENGTHS))
GRIDS["differential_diffusion"] = grid(strength=(0.1, 0.2, 0.4, 0.8), guidance_scale=(2.0, 4.0, 7.5))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_tuning_parser(__doc__, GRIDS, "outputs/tune_exemplar")
    add = parser.add_argument
    add("--dataset", choices=options.DRAWN, default="picturebook", help="whose validation items")
    add("--items", type=number(int, 1), default=12, help="validation items")
    add("--num_inference_steps", type=number(int, 1, 1000), help="of all; the preset's by default")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from pixels import eval as pixels_eval
    from pixels.reproduction.pairs import find_pairs
    from pixels.reproduction.scoring import run_item

    output = Path(args.output_dir) / args.dataset
    settings = pixels_eval.parse(given(args, "device", "num_inference_steps", output_dir=output))
    bench = exemplar_editing.make_bench(settings, exemplar_editing.own_settings(on_picturebook=False))
    told = {"weights": settings.weights, "sampling": asdict(bench.sampling)}
    write_config(output, joined_config(output, vars(args) | told, told))
    pairs = {pair.id: pair for pair in find_pairs(args.dataset, "validation", limit=args.items)}

    def rows_of(method: str, setting: Setting) -> list[dict]:
        own = replace(bench, own={method: bench.own.get(method, {}) | setting})
        run = lambda pair: run_item(own, pair, method)[0]  # noqa: E731
        return measured(output / "rows.jsonl", label(method, setting), pairs, run)

    found = tune({method: GRIDS[method] for method in args.methods}, rows_of, least(SCORE), args.follow)
    head = [
        "What each method of the exemplar track runs with on the picturebook, where it differs from pixels' preset.",
        f"Written by `python -m eval.tuning.exemplar_editing --dataset {args.dataset} --items {args.items}` on the",
        "validation split: as many settings tried for every method, the least LPIPS to the true edit taken.",
    ]
    write_tuned(exemplar_editing.SETTINGS[args.dataset], head, found)


if __name__ == "__main__":
    main()
