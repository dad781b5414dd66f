"""Tune subject inpainting on the picturebook's validation split, four settings for every method and five for LoRA.

    python -m eval.tuning.subject_inpainting                 settings of both guidances, LoRA and whole-model tuning

The setting of the highest likeness (0: the same thing without its marking, 1: the true picture) goes into
image_inpaint/options.py by hand. All scores of every setting are printed, and kept in a folder of its own.
"""

import argparse
from pathlib import Path

from common.flags import number
from common.runs import read_rows, script
from eval.tracks.track import given
from eval.tuning.tuner import Setting, grid, label, make_tuning_parser, tune

GUIDANCE = 5  # Paint-by-Example's, at which trainings are compared: they were chosen before the guidance was
GRIDS: dict[str, list[Setting]] = {  # flags of image_inpaint.eval, and of its training
    "sd_caption": grid(text_guidance_scale=(7.5, 3, 5, 12)),
    "untuned": grid(guidance_scale=(5, 1.5, 3, 7.5)),
    "lora": [{"learning_rate": rate, "max_train_steps": steps}
             for rate, steps in ((2e-3, 200), (1e-3, 200), (4e-3, 200), (2e-3, 400), (2e-3, 300))],
    "full": [{"learning_rate": rate, "max_train_steps": steps}
             for rate, steps in ((2e-4, 200), (1e-4, 200), (4e-4, 200), (2e-4, 400))],
}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_tuning_parser(__doc__, GRIDS, "outputs/tune_inpainting")
    add = parser.add_argument
    add("--items", type=number(int, 1), default=18, help="pictures per setting: 18 are three subjects in six scenes")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, or a folder with its marker")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of every training and picture")
    return parser.parse_args(argv)


def flags_of(setting: Setting) -> list[str]:
    """Of image_inpaint.eval: guidance is its own, all else goes to the training."""
    if any(name.endswith("guidance_scale") for name in setting):
        return [f"--{name}={value}" for name, value in setting.items()]
    training = " ".join(f"--{name} {value}" for name, value in setting.items())
    return [f"--guidance_scale={GUIDANCE}", f"--training_flags={training}"]


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from eval.report.measures import find
    from image_inpaint import eval as inpaint_eval

    def rows_of(method: str, setting: Setting) -> list[dict]:
        place = Path(args.output_dir) / label(method, setting)
        shared = given(args, "pretrained_model_name_or_path", "items", "seed", "device", split="validation",
                       methods=method, output_dir=place)  # fmt: skip
        inpaint_eval.main([*shared, *flags_of(setting)])
        return read_rows(place / "rows.jsonl")

    def score(row: dict) -> float:
        return row["metrics"][find([row], "likeness")]

    found = tune({method: GRIDS[method] for method in args.methods}, rows_of, score, args.follow)
    print(*(f"best: {label(method, setting)}" for method, (setting, _) in found.items()), sep="\n")


if __name__ == "__main__":
    main()
