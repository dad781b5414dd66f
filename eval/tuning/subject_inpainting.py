"""Settings of subject inpainting on the picturebook's validation split, four for every method and five for LoRA.

    python -m eval.tuning.subject_inpainting                 settings of both guidances, LoRA and whole-model tuning

Prints the scores of every setting. The one of the highest likeness (0: the same thing without its marking, 1: the true
picture) goes into image_inpaint/options.py by hand.
"""

import argparse
from pathlib import Path

from common.flags import number
from common.runs import make_parser, script, write_json

# method -> (flags of image_inpaint.eval, flags of its training) of each trial. Trainings are compared at guidance 5,
# Paint-by-Example's: they were chosen before the guidance was. A trial's place in its list names its folder, so that
# new ones go to the end.
TRIALS = {
    "sd_caption": [([f"--text_guidance_scale={scale}"], "") for scale in (7.5, 3, 5, 12)],
    "untuned": [([f"--guidance_scale={scale}"], "") for scale in (5, 1.5, 3, 7.5)],
    "lora": [(["--guidance_scale=5"], f"--learning_rate {rate} --max_train_steps {steps}")
             for rate, steps in ((2e-3, 200), (1e-3, 200), (4e-3, 200), (2e-3, 400), (2e-3, 300))],
    "full": [(["--guidance_scale=5"], f"--learning_rate {rate} --max_train_steps {steps}")
             for rate, steps in ((2e-4, 200), (1e-4, 200), (4e-4, 200), (2e-4, 400))],
}  # fmt: skip
SHOWN = ("likeness", "psnr_thing", "lpips_thing", "DINO/region", "CLIP-I/region", "thing_seen", "filled_excess",
         "seconds")  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--methods", nargs="+", choices=TRIALS, default=list(TRIALS), help="what to tune")
    add("--items", type=number(int, 1), default=18, help="pictures per trial: 18 are three subjects in six scenes")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, or a folder with its marker")
    add("--output_dir", default="outputs/tune_inpainting", help="one folder per trial, and tuning.json")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of every training and picture")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from common.runs import read_rows
    from common.tables import cell, find, intervals, text_table
    from image_inpaint import eval as inpaint_eval

    output, lines, found = Path(args.output_dir), [["method", "setting", *SHOWN]], []
    for method in args.methods:
        for trial, (flags, training) in enumerate(TRIALS[method]):
            place = output / f"{method}-{trial}"
            inpaint_eval.main([
                "--pretrained_model_name_or_path", args.pretrained_model_name_or_path, "--split", "validation",
                "--methods", method, "--items", str(args.items), "--seed", str(args.seed), "--output_dir", str(place),
                f"--training_flags={training}", *flags,
            ])  # fmt: skip
            summary = intervals(read_rows(place / "rows.jsonl"))
            values = {name: find(summary, *name.split("/")) for name in SHOWN}
            lines.append([method, " ".join([*flags, training]).strip(), *(cell(values[name]) for name in SHOWN)])
            found.append({"method": method, "flags": flags, "training_flags": training, "scores": values})
            write_json(output / "tuning.json", found)
    print(text_table(lines))


if __name__ == "__main__":
    main()
