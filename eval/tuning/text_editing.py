"""Tune engines and inversions of text-driven editing on the picturebook's validation split, eight settings each.

    python -m eval.tuning.text_editing --items 6

An engine is tuned with DDIM inversion, an inversion under Prompt-to-Prompt as published. Prints the best of each, for
spdinv/options.py: PICTUREBOOK_PRESET, before the test split is run. An interrupted run goes on.
"""

import argparse
from pathlib import Path

from common.flags import as_flags, number
from common.runs import joined_config, script, write_config
from eval.tracks.track import given
from eval.tuning.tuner import Setting, grid, label, least, make_tuning_parser, measured, tune

SCORE = "lpips_truth (picturebook)"  # less is better: nearness to the true edit, inside and outside of the mask
GRIDS: dict[str, list[Setting]] = {  # flags of spdinv.eval; the published values are among them
    "ddim+p2p": grid(cross_replace_steps=(0.2, 0.4, 0.6, 0.8), self_replace_steps=(0.3, 0.6)),
    "ddim+masactrl": grid(start_layer=(None, 1, 3, 5), start_step=(4, 15)),
    "ddim+pnp": grid(feature_steps=(0.2, 0.4, 0.6, 0.8), attention_steps=(0.25, 0.5)),
    "null_text+p2p": grid(null_text_learning_rate=(1e-3, 3e-3, 1e-2, 3e-2), null_text_threshold=(1e-6, 1e-5)),
    "negative_prompt+p2p": grid(negative_prompt_interpolation=(0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)),
    "proximal+p2p": grid(proximal_quantile=(0.5, 0.6, 0.7, 0.8), proximal_guidance=("inversion", "reconstruction")),
    "aidi+p2p": grid(aidi_mode=("anderson", "empirical"), aidi_rounds=(2, 5, 7, 11)),
    "nmg+p2p": grid(nmg_gradient_scale=(1000.0, 2500.0, 5000.0, 10000.0), nmg_noise_map_scale=(5.0, 10.0)),
    "spd+p2p": grid(spd_learning_rate=(1e-4, 3e-4, 1e-3, 3e-3), spd_threshold=(5e-7, 5e-6)),
}  # direct has nothing to tune


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_tuning_parser(__doc__, GRIDS, "outputs/tune_text_editing")
    parser.add_argument("--items", type=number(int, 1), default=6, help="validation items, of every edit type in turn")
    return parser.parse_args(argv)


def method_of(name: str, setting: Setting):
    """The spdinv method of a name such as ddim+p2p with these flags; a flag of None is left out."""
    from spdinv import eval as spdinv_eval

    inversion, engine = name.split("+")
    flags = as_flags({"inversions": inversion, "engines": engine, **setting})
    return spdinv_eval.methods_of(spdinv_eval.parse(flags))[name]


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from common.encoders import load_encoders
    from spdinv import eval as spdinv_eval
    from spdinv.customised import load
    from spdinv.reproduction.items import Bench, read_items, run_item

    settings = spdinv_eval.parse(given(args, "output_dir", "device", split="validation", limit=args.items))
    folder, items = read_items(settings)
    pipe, resolution, _ = load(settings)
    bench = Bench(pipe, load_encoders(settings.metric_encoders, args.device), folder, resolution)
    args.weights = settings.weights
    write_config(args.output_dir, joined_config(args.output_dir, vars(args), ["weights"]))

    file, by_id = Path(args.output_dir) / "rows.jsonl", {item.id: item for item in items}

    def rows_of(name: str, setting: Setting) -> list[dict]:
        called = label(name, setting)
        return measured(file, called, by_id, lambda item: run_item(bench, item, method_of(name, setting), called)[0])

    found = tune({name: GRIDS[name] for name in args.methods}, rows_of, least(SCORE), args.follow)
    print(*(f"best: {label(name, setting)}" for name, (setting, _) in found.items()), sep="\n")


if __name__ == "__main__":
    main()
