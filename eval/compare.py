"""Every method side by side on the same pictures, and one page that shows it all.

python -m eval.compare                      runs what is missing, writes outputs/compare/index.html
python -m eval.compare --tracks text_editing --methods ddim+p2p edict+p2p spd+p2p      these inversions and engines
python -m eval.compare --table spdinv:1     prints a whole published table with the measured rows in it
python -m eval.compare --pictures mine.jsonl --methods ddim+p2p spd+p2p svdiff      runs these on pictures of your own
"""

import argparse
import importlib
from pathlib import Path

from common.flags import number, say_unheeded
from common.runs import InputError, make_parser, script

# name -> module with run(args) -> Track and METHODS; imported when it is run
TRACKS = {
    "text_editing": "eval.tracks.text_editing",
    "exemplar_editing": "eval.tracks.exemplar_editing",
    "personalization": "eval.tracks.personalization.track",
    "subject_inpainting": "eval.tracks.subject_inpainting",
}
TABLES = {  # paper whose tables are printed -> track with its rows
    "spdinv": "text_editing",
    "pixels": "exemplar_editing",
    "image_inpaint": "subject_inpainting",
    "lipschitz_personalize": "personalization",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tracks", nargs="+", choices=TRACKS, default=list(TRACKS), help="what to run and show")
    add("--methods", nargs="+", metavar="METHOD", default=["ddim+p2p", "spd+p2p"], help="of text-driven editing: an "
        "inversion and an engine; on --pictures of any track: svdiff, pixels, sdedit, untuned, …")  # fmt: skip
    add("--items", type=number(int, 1), default=12, help="items to run; committed rows of the same model, data and "
        "steps, of more items, are shown beside")  # fmt: skip
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder or a hub id")
    add("--dataset", default="picturebook", help="picturebook, a PIE-Bench folder, or compositions (exemplar "
        "editing alone)")  # fmt: skip
    add("--num_inference_steps", type=number(int, 1, 1000), help="DDIM steps of every track; the papers' by default")
    add("--metric_encoders", help="picturebook, pie, or a folder; by default those that suit the model")
    add("--output_dir", default="outputs/compare", help="folder for rows, pictures and index.html")
    add("--seed", type=number(int, 0, 2**31), default=0, help="seed of every track")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--table", metavar="PAPER:TABLE", help="print this published table with what was measured here, and stop")
    own = parser.add_argument_group("pictures of your own")
    own.add_argument("--pictures", metavar="LIST", help="a .jsonl, .csv or .toml of pictures and prompts, or a folder "
        "of pictures with prompts.jsonl; eval/tracks/own_pictures/picture_list.py says what it holds")  # fmt: skip
    own.add_argument("--seeds", nargs="+", type=number(int, 0, 2**31), default=[0], help="of methods that draw noise")
    args = parser.parse_args(argv)
    if args.table and args.table.partition(":")[0] not in TABLES:
        raise InputError(f"--table {args.table}: there is no such paper; give spdinv:1, pixels:1a or the like")
    only_with = dict.fromkeys(("tracks", "items", "dataset", "seed"), ("pictures", [None]))
    say_unheeded(parser, args, {"seeds": ("pictures", True), **only_with})
    return args


def print_table(name: str, output: Path) -> None:
    """A published table joined with the rows at hand: those in `output`, and otherwise the committed ones."""
    from common.runs import read_json, read_rows
    from common.tables import by_method, published_table
    from eval import freshness

    paper, _, number = name.partition(":")
    track, tables = TABLES[paper], importlib.import_module(f"{paper}.reproduction.tables")
    try:
        published_table(paper, number)
    except KeyError:
        raise InputError(f"--table {name}: {paper}/reproduction/published.toml has no table {number!r}") from None
    if rows := read_rows(output / track / "rows.jsonl"):
        config = read_json(output / track / "config.json")
    else:
        rows, config = freshness.fresh_rows(track), {"dataset": "picturebook", "metric_encoders": "picturebook"}
    measured_on = f"measured: {Path(config['dataset']).name}, {config['metric_encoders']} encoders"
    print(tables.beside_published(number, {measured_on: by_method(rows)}))
    if not rows:
        print("\nNothing was measured yet: python -m eval.compare runs it.")


def run_tracks(args: argparse.Namespace) -> list:
    """Run what is missing of every track, saying which and how many are left; with --pictures of their track alone."""
    if args.pictures:
        return [importlib.import_module("eval.tracks.own_pictures.track").run(args)]
    tracks = []
    for place, name in enumerate(args.tracks, start=1):
        print(f"track {place} of {len(args.tracks)}: {name.replace('_', ' ')}", flush=True)
        if track := importlib.import_module(TRACKS[name]).run(args):
            tracks.append(track)
        else:
            print(f"  nothing of it in {args.dataset}")
    if not tracks:
        raise InputError(f"--dataset {args.dataset} holds nothing for {' and '.join(args.tracks)}; take picturebook")
    return tracks


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output = Path(args.output_dir)
    if args.table:
        print_table(args.table, output)
        return
    from eval.report.report import write_page

    print(f"open {write_page(output / 'index.html', run_tracks(args))}")


if __name__ == "__main__":
    main()
