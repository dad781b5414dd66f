"""Run the exemplar methods that bring weights of their own over a folder of pairs, for rows in PIXELS' Table 1.

    python -m eval.tracks.pretrained_exemplar --dataset pairs --output_dir out
    python -m pixels.eval --table 1a --dataset pairs --output_dir out …     prints them in the table

Maps are binarised; several exemplars are edited in one after the other, as in the paper. MimicBrush is not among them:
its weights need a two-network architecture that no library has, so that its published numbers stand alone.
"""

import argparse
from pathlib import Path

from common.flags import chosen_device, number
from common.runs import InputError, make_parser, script
from common.shards import Shard

METHODS = ("paint_by_example", "ip_adapter", "versatile_diffusion")  # of eval.baselines.exemplar_pipelines


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", help="a folder: pairs.json (python -m pixels.eval --pairs) or source_1.*, exemplar_1.*, map_1.*")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="each is run")
    add("--map_white", choices=("keep", "edit"), default="keep", help="what white means in the folder's maps")
    add("--limit", type=number(int, 1), help="take only so many pairs")
    add("--metric_encoders", default="paper", help="as of pixels.eval")
    add("--output_dir", default="outputs/pixels_eval", help="the folder of the pixels.eval run that they join")
    add("--seed", type=number(int, 0, 2**31), default=0, help="of every edit")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="number format of the networks")
    args = parser.parse_args(argv)
    if not args.dataset or not Path(args.dataset).is_dir():
        raise InputError(f"--dataset {args.dataset} is no folder; python -m pixels.eval --pairs writes one")
    args.shard = Shard()
    return args


def as_method(edit, pipe):
    """An edit(pipe, source, exemplar, mask, generator) -> picture of eval.baselines with the interface of
    pixels.reproduction.baselines: tensors, several exemplars one after the other, maps binarised."""
    from common.images import to_tensor
    from pixels.edit_map import binarize
    from pixels.frames import to_picture
    from pixels.reproduction.baselines import reduced

    def run(backbone, source, exemplars, edit_maps, surgery, generator):
        picture = to_picture(source)
        for exemplar, mu in zip(exemplars, reduced(edit_maps, source.shape[-2:], surgery), strict=True):
            mask = binarize(mu).expand(-1, 3, -1, -1)
            picture = edit(pipe, picture, to_picture(exemplar), to_picture(mask).convert("L"), generator)
        return to_tensor(picture)

    return run


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from common.pipelines import PRECISIONS
    from eval.baselines.exemplar_pipelines import PIPELINES, SIDE
    from pixels import options
    from pixels.eval import run_all
    from pixels.reproduction.pairs import read_pairs
    from pixels.reproduction.scoring import Bench, load_eyes
    from pixels.surgery import Surgery

    pairs = read_pairs(args.dataset, args.map_white, args.limit)
    eyes, device = load_eyes(args.metric_encoders, args.device), chosen_device(args.device)
    wanted, output = args.methods, Path(args.output_dir)
    for name in wanted:  # one set of weights at a time
        pipe = PIPELINES[name].load(device=device, dtype=PRECISIONS[args.mixed_precision])
        args.methods, function = [name], as_method(PIPELINES[name].edit, pipe)
        bench = Bench(args, None, (SIDE, SIDE), options.Sampling(), Surgery(), eyes, output, {name: function})
        run_all(bench, pairs, f"rows-{name}.jsonl")
    print(f"{len(pairs)} pairs of {', '.join(wanted)} in {output}; python -m pixels.eval --table 1a shows them")


if __name__ == "__main__":
    main()
