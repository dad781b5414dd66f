"""TDE-Bench, rebuilt: a PIE-Bench folder of pictures from COCO 2017, with the paper's edit types (Sec. 4.1, suppl. C).

    python -m spdinv.reproduction.tde_bench --coco_dir COCO --output_dir outputs/tde_bench

The authors took 100 random pictures of the validation split; neither list nor prompts nor masks were released. Here a
source prompt is one of COCO's own captions, the target prompt changes it by a rule of tde_rules, the mask comes from
COCO's outlines. The same folder, seed and count give the same bench, byte for byte.
"""

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import Any

from common.flags import number
from common.runs import InputError, atomic_path, make_parser, read_json, script
from common.tables import by
from spdinv.options import central_square
from spdinv.reproduction.tde_rules import RULES, Change, find_things, plain_words

SHARES = {"1": 80, "2": 80, "3": 80, "4": 40, "5": 40, "6": 40, "7": 40, "8": 80, "9": 80}  # PIE-Bench's, less random
LEAST, MOST = 0.02, 0.7  # share of the picture that the changed thing may cover
LONGEST = 30  # words of a caption


def read_coco(folder: Path, split: str) -> dict[str, Any]:
    """{"images", "categories", "outlines": by picture, "captions": by picture}; InputError unless it is COCO's."""
    files = [folder / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "captions")]
    instances, captions = (read_json(file) for file in files)
    try:
        found = {kind: {one["id"]: one for one in instances[kind]} for kind in ("images", "categories")}
        found["outlines"] = by(instances["annotations"], "image_id")
        captions = by(sorted(captions["annotations"], key=lambda one: one["id"]), "image_id")
        found["captions"] = {image: [one["caption"] for one in same] for image, same in captions.items()}
    except (KeyError, TypeError) as problem:
        raise InputError(f"{files[0]} and {files[1].name} are not COCO's annotations: {problem!r} is wrong") from None
    missing = [image["file_name"] for image in found["images"].values()
               if not (folder / split / image["file_name"]).is_file()]  # fmt: skip
    if missing:
        raise InputError(f"{folder / split} lacks {len(missing)} pictures, such as {missing[0]}; unpack {split}.zip")
    return found


def outline_mask(outlines: list[dict], size: tuple[int, int]):
    """The union of COCO outlines, polygons or uncompressed run lengths (column by column), as a bool array [H,W]."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = size
    mask = np.zeros(size, dtype=bool)
    for outline in outlines:
        shape = outline["segmentation"]
        if isinstance(shape, dict):
            if isinstance(shape["counts"], str):
                raise InputError("an outline is a compressed run length; COCO's own files have plain numbers")
            values = np.arange(len(shape["counts"])) % 2 == 1
            mask |= np.repeat(values, shape["counts"]).reshape(width, height).T
            continue
        sheet = Image.new("L", (width, height))
        for polygon in shape:
            ImageDraw.Draw(sheet).polygon(polygon, fill=1)
        mask |= np.asarray(sheet, dtype=bool)
    return mask


def cropped(mask, resolution: int):
    """A mask [H,W] cut and resized as common.images.center_crop_resize does with its picture."""
    import numpy as np
    from PIL import Image

    square = Image.fromarray(central_square(mask))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.NEAREST))


def quotas(count: int) -> dict[str, int]:
    """How many items of each edit type: PIE-Bench's shares, the rest going to the largest remainders."""
    exact = {kind: count * share / sum(SHARES.values()) for kind, share in SHARES.items()}
    given = {kind: int(value) for kind, value in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: (given[kind] - exact[kind], kind))
    for kind in by_remainder[: count - sum(given.values())]:
        given[kind] += 1
    return given


def build(coco: dict[str, Any], pictures: Path, folder: Path, count: int, seed: int, resolution: int) -> Counter:
    """Write the bench into `folder`; how many items there are of each edit type."""
    from common.data import EDIT_TYPES, EditItem, encode_mask, write_pie_bench
    from common.images import center_crop_resize, load_image, save_png
    from common.picturebook.edits import with_brackets

    kinds = by(coco["categories"].values(), "supercategory")
    names = {kind: [category["name"] for category in same] for kind, same in kinds.items()}
    names["person"] = []  # there is no other category of that kind
    wanted, made, items = quotas(count), Counter(), []
    order = sorted(coco["images"])
    random.Random(f"tde {seed}").shuffle(order)
    for image_id in order:
        open_kinds = [kind for kind in wanted if made[kind] < wanted[kind]]
        if not open_kinds:
            break
        image, outlines = coco["images"][image_id], by(coco["outlines"].get(image_id, []), "category_id")
        size = (image["height"], image["width"])
        masks = {key: cropped(outline_mask(outlines[key], size), resolution) for key in sorted(outlines)}
        usable = [coco["categories"][key] for key, mask in masks.items() if LEAST <= mask.mean() <= MOST]
        if not usable:
            continue
        captions = [words for words in map(plain_words, coco["captions"].get(image_id, [])) if len(words) <= LONGEST]
        for kind in sorted(open_kinds, key=lambda kind: (made[kind] / wanted[kind], kind)):  # the neediest first
            rng = random.Random(f"tde {seed} {image_id} {kind}")
            found = ((words, RULES[kind](words, find_things(words, usable), names, rng)) for words in captions)
            words, change = next(((words, change) for words, change in found if change), ([], None))
            if not change:
                continue
            mask, key = region(change, masks, resolution), f"{kind}{image_id:011d}"
            source, target = with_brackets(" ".join(words), " ".join(change.target))
            place = f"{kind}_{EDIT_TYPES[kind].replace(' ', '_')}/{key}.png"
            picture = center_crop_resize(load_image(pictures / image["file_name"]), resolution)
            save_png(folder / "annotation_images" / place, picture)
            items.append(EditItem(
                key, folder / "annotation_images" / place, source, target, change.instruction, kind,
                change.blended_words, tuple(encode_mask(mask)), mask.shape, extras={"coco_file": image["file_name"]},
            ))  # fmt: skip
            made[kind] += 1
            break
    if not items:
        raise InputError("no picture of this folder can be edited: captions have to name things that are outlined")
    write_pie_bench(folder, sorted(items, key=lambda item: item.id))
    return made


def region(change: Change, masks: dict[int, Any], resolution: int):
    """Where the edit may change the picture, a bool array [resolution, resolution]."""
    import numpy as np

    if change.region == "all":
        return np.ones((resolution, resolution), dtype=bool)
    if change.region == "rest":
        return ~np.logical_or.reduce(list(masks.values()))
    mask = masks[change.thing.category["id"]]
    if change.region == "box":
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        mask = np.zeros_like(mask)
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return mask


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--coco_dir", required=True, help="folder with annotations/ and the pictures' folder, as COCO 2017 unpacks")
    add("--split", default="val2017", help="pictures and annotations to take (paper: the validation split)")
    add("--count", type=number(int, 1), default=100, help="items (paper, Sec. 4.1)")
    add("--resolution", type=number(int, 16), default=512, help="side of the square pictures in pixels")
    add("--seed", type=number(int, 0), default=0, help="of the choice of pictures and words")
    add("--output_dir", default="outputs/tde_bench", help="a new folder, in PIE-Bench's layout")
    args = parser.parse_args(argv)
    if not Path(args.coco_dir).is_dir():
        raise InputError(f"--coco_dir {args.coco_dir} is no folder; give the one that holds annotations/")
    output = Path(args.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output_dir {output} exists and is not empty; name a new folder")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    coco = read_coco(Path(args.coco_dir), args.split)
    with atomic_path(args.output_dir) as folder:
        pictures = Path(args.coco_dir) / args.split
        made = build(coco, pictures, folder, args.count, args.seed, args.resolution)
    from common.data import EDIT_TYPES

    kinds = ", ".join(f"{made[kind]} {EDIT_TYPES[kind]}" for kind in sorted(made))
    print(f"{sum(made.values())} of {args.count} items in {args.output_dir}: {kinds}")
    print(f"python -m spdinv.eval --table s2 --dataset {args.output_dir} runs the table on them")


if __name__ == "__main__":
    main()
