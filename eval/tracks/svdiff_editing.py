"""SVDiff's single-image editing on the items of the text-driven editing track; the page then shows its rows beside.

    python -m eval.compare --items 12                 first: the track's own methods
    python -m eval.tracks.svdiff_editing --items 12   a training per item; then eval.compare again, which shows the rows

Every item: shifts are trained on the source picture and its prompt (no token, no prior), the picture is inverted under
the target prompt with the tuned weights, and drawn again (SVDiff, Sec. 3.4). An interrupted run goes on where it
stopped.
"""

import argparse
import shutil
from pathlib import Path

from common.files import InputError, append_row, done_items, read_json
from common.flags import as_flags, number
from common.runs import digest_of, joined_config, make_parser, script, write_config
from eval.tracks import text_editing
from spdinv import eval as spdinv_eval

TRAININGS = "svdiff_trainings"
METHODS = {"svdiff+inversion": True, "svdiff": False}  # whether DDIM inversion is used


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--items", type=number(int, 1), default=12, help="how many items of the track")
    add("--pretrained_model_name_or_path", default="picturebook", help="as of eval.compare")
    add("--dataset", default="picturebook", help="as of eval.compare")
    add("--num_inference_steps", type=number(int, 1, 1000), help="as of eval.compare")
    add("--metric_encoders", help="as of eval.compare")
    add("--max_train_steps", type=number(int, 1), help="of every training; svdiff.train's by default")
    add("--output_dir", default="outputs/compare", help="that of eval.compare")
    add("--seed", type=number(int, 0, 2**31), default=0, help="as of eval.compare")
    add("--device", choices=("cpu", "cuda"), help="a GPU if there is one by default")
    args = parser.parse_args(argv)
    if not (Path(args.output_dir) / text_editing.NAME / "config.json").is_file():
        raise InputError(f"{args.output_dir} holds no text-driven editing yet: run python -m eval.compare first")
    return args


def train(item, folder: Path, args: argparse.Namespace) -> None:
    """Shifts of one picture, unless they are there."""
    from svdiff import train as svdiff_train

    if (folder / "metrics.json").is_file():
        return
    names = "pretrained_model_name_or_path", "seed", "max_train_steps", "device"
    given = {name: getattr(args, name) for name in names} | {
        "image_path": item.image_path, "instance_prompt": item.source_prompt, "output_dir": folder,
        "num_validation_images": 1, "resume_from_checkpoint": "latest" if list(folder.glob("checkpoint-*")) else None,
    }  # fmt: skip
    svdiff_train.main(as_flags(given))


def edit(pipe, item, folder: Path, how, inversion: bool, seed: int) -> tuple[dict, float]:
    """{"source", "reconstruction", "edited"} as PIL pictures, and the seconds of the edit alone."""
    from common.images import load_image, to_pil
    from common.runs import measure
    from svdiff import editing, merging

    source = editing.fitted(pipe, load_image(item.image_path))
    with merging.applied(pipe, merging.load(pipe, folder)):
        reconstruction = editing.edit(pipe, source, item.source_prompt, how, inversion, 0.0, [seed])
        with measure() as cost:
            edited = editing.edit(pipe, source, item.target_prompt, how, inversion, 0.0, [seed])
    return {"source": to_pil(source, "nearest"), "reconstruction": to_pil(reconstruction),
            "edited": to_pil(edited)}, cost.seconds  # fmt: skip


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from tqdm import tqdm

    from common.data import edit_digest
    from common.encoders import load_encoders
    from common.images import save_png
    from common.pipelines import load_pipeline
    from spdinv.reproduction.items import read_items, scores
    from svdiff.editing import Sampling

    output = Path(args.output_dir) / text_editing.NAME
    settings = spdinv_eval.parse(text_editing.command(args, *text_editing.RUN))
    how = Sampling(num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale)
    told = {"parameter_space": "svdiff", "max_train_steps": args.max_train_steps, **vars(how)}
    methods = {name: {**told, "ddim_inversion": inverted} for name, inverted in METHODS.items()}
    folder, items = read_items(settings)
    pictures = {item.id: edit_digest(item, folder) for item in items}
    config = joined_config(output, vars(settings), spdinv_eval.SAME, methods=methods, pictures=pictures)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device)
    encoders = load_encoders(settings.metric_encoders, args.device)
    write_config(output, config)
    for item in tqdm(items, "items", disable=None):
        missing = [name for name in METHODS if item.id not in done_items(output / "rows.jsonl", name)]
        if not missing:
            continue
        tuned = output / TRAININGS / digest_of(told) / item.id
        train(item, tuned, args)
        training_seconds = read_json(tuned / "metrics.json")["seconds"]
        for name in missing:
            pictures, seconds = edit(pipe, item, tuned, how, METHODS[name], args.seed)
            for shown, file in (("reconstruction", f"{name}_reconstruction"), ("edited", name)):
                save_png(output / "pictures" / item.id / f"{file}.png", pictures[shown])
            append_row(output / "rows.jsonl", {
                "paper": "svdiff", "method": name, "item": item.id, "edit_type": item.edit_type, "seed": args.seed,
                "metrics": scores(item, pictures, encoders, folder), "seconds": training_seconds + seconds,
                "peak_memory_mb": float("nan"),
            })  # fmt: skip
        shutil.rmtree(tuned)  # a training per item fills a disk; its numbers are in the row
    print(f"rows are in {output / 'rows.jsonl'}; python -m eval.compare --items {args.items} shows them")


if __name__ == "__main__":
    main()
