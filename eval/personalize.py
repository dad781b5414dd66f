"""The personalization arena: train every method on every subject, sample DreamBench's prompts, score, and write a page.

    python -m eval.personalize                                       on the picturebook's test subjects
    python -m eval.personalize --shard 1/4 & … --shard 4/4           four processes; the last one writes the page
    python -m eval.personalize --print_config                        every method at the paper's scale
    python -m eval.personalize --dataset dreambooth/dataset --metric_encoders paper \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5
    python -m eval.personalize --subjects_dir mine --methods dreambooth dreambooth+penalty --curves \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5    own: mine/rex_dog/*.jpg

An interrupted run goes on where it stopped: start it again with the same flags.
"""

import json

from common.runs import script
from common.shards import all_done
from eval.tracks.personalization import variants
from eval.tracks.personalization.options import parse


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.print_config:
        _, _, whole = variants.plan(args)
        arena = {name: value for name, value in vars(args).items() if name != "print_config"}
        print(json.dumps({"arena": arena, "methods": whole}, indent=2))
        return
    from eval.tracks.personalization.arena import REAL, prepare, run_subject

    arena, subjects = prepare(args)
    runs = [(subject, seed) for seed in args.seeds for subject in subjects]
    for subject, seed in args.shard.of(runs):
        run_subject(arena, subject, seed)
    names = [REAL, *(variant.name for variant in arena.variants)]
    wanted = [(name, subject.name, seed) for subject, seed in runs for name in names]
    if not all_done(arena.rows, wanted, args.shard):
        return
    from eval.report.report import write_page
    from eval.tracks.personalization.track import track_of

    track = track_of(arena.output, subjects, arena.dataset, args)
    print(f"open {write_page(arena.output / 'index.html', [track])}")


if __name__ == "__main__":
    main()
