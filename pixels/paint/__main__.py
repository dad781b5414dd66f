"""Write a page on which an edit map is painted: `python -m pixels.paint photo.jpg [exemplar.jpg]`, then open it.

The page is one file and asks for nothing from anywhere. It paints greys on the photograph (mouse, touch, keyboard),
shows when each of them is let go, counted as pixels.surgery counts, and saves map.png and the command that edits with
it. --kind inpaint and --kind pie_bench paint a hole or a mask instead: white where something may change.
"""

import argparse
import json
from pathlib import Path

from common.runs import InputError, atomic_path, make_parser, script
from pixels import options

KINDS = ("edit_map", "inpaint", "pie_bench")
HERE = Path(__file__).parent
MOST_CELLS_SIDE, LEAST_SIDE = 24, 448  # pixels of the map per latent cell at most; of its shorter side, if they allow
MOST_PIXELS = 1600  # of the pictures in the page, longer side


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("image_path", help="the photograph that is to be edited")
    add("exemplar_path", nargs="?", help="the picture to take from")
    add("--kind", choices=KINDS, default="edit_map", help="edit_map: greys for pixels.infer; inpaint: a hole for "
        "image_inpaint.infer; pie_bench: a mask, as run-lengths too")  # fmt: skip
    add("--page", default="outputs/paint.html", help="the page that is written")
    options.add_method_flags(parser)
    options.add_model_flags(parser, output_dir="outputs/pixels")
    args = options.parse(parser, argv)
    if Path(args.page).suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--page {args.page} has to end in .html")
    return args


def plan(args: argparse.Namespace) -> dict:
    """What the method will do with a map, as far as the page has to know: "grid" (rows, columns) of latent cells,
    "taus", per threshold function the thresholds of all steps, "threshold", the one chosen, and "black_point"."""
    from pixels.backbones.backbone import select_timesteps
    from pixels.edit_map import THRESHOLDS, thresholds
    from pixels.paint.models import frame_of, scheduler_of

    kind = options.kind_of(args.pretrained_model_name_or_path)
    if kind is None:
        raise InputError(f"{args.pretrained_model_name_or_path} is not known here; give a folder, or one of "
                         + ", ".join(options.KNOWN_IDS))  # fmt: skip
    sampling, surgery = options.sampling_of(args, kind), options.surgery_of(args)
    native, factor = frame_of(args.pretrained_model_name_or_path, kind)
    size = options.frame_size(args, native, factor)
    scheduler = scheduler_of(args.pretrained_model_name_or_path, kind, args.scheduler)
    count = len(select_timesteps(scheduler, "cpu", sampling))
    taus = {name: thresholds(name, count, surgery["schedule"]).tolist() for name in THRESHOLDS}
    return {
        "grid": [side // factor for side in size], "taus": taus, "threshold": args.threshold,
        "black_point": surgery["black_point"],
    }  # fmt: skip


def map_size(picture: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a map for a picture of (height, width): whole pixels per latent cell, so that the step to the
    latent grid is exact, in the picture's proportions but for two per cent."""
    wanted = picture[1] / picture[0]
    sides = range(1, MOST_CELLS_SIDE + 1)
    sizes = [(grid[0] * down, grid[1] * across) for down in sides for across in sides]
    off = {size: abs(size[1] / size[0] / wanted - 1) for size in sizes}
    alike = [size for size in sizes if off[size] <= max(0.015, min(off.values()))]
    large = [size for size in alike if min(size) >= LEAST_SIDE]
    area = lambda size: (size[0] * size[1], off[size])  # noqa: E731
    return min(large, key=area) if large else max(alike, key=area)


def embedded(path: str) -> tuple[str, tuple[int, int]]:
    """A picture as a data URL, at most MOST_PIXELS long, and its (height, width)."""
    import base64
    import io

    from common.images import load_image

    picture = load_image(path)
    size = (picture.height, picture.width)
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if picture.width * picture.height < 300_000 else "JPEG", quality=92)
    kind = "png" if buffer.getvalue()[:4] == b"\x89PNG" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", size


def command(args: argparse.Namespace) -> list[str]:
    """The words of the command that edits with the map, but for the map: flags that are no defaults are repeated."""
    if args.kind == "pie_bench":
        return []
    if args.kind == "inpaint":
        given = ["python", "-m", "image_inpaint.infer", "--image_path", args.image_path, "--reference_path",
                 args.exemplar_path or "REFERENCE.jpg"]  # fmt: skip
    else:
        given = ["python", "-m", "pixels.infer", "--image_path", args.image_path, "--exemplar_path",
                 args.exemplar_path or "EXEMPLAR.jpg"]  # fmt: skip
    flags = argparse.ArgumentParser()
    if args.kind == "edit_map":
        options.add_method_flags(flags)
    options.add_model_flags(flags, output_dir="outputs/pixels")
    for action in flags._actions:
        value = getattr(args, action.dest, None)
        if action.dest in ("help", "threshold", "print_config") or value == action.default:
            continue
        given += [action.option_strings[0], *([] if value is True else [str(value)])]
    return given


def page(args: argparse.Namespace) -> str:
    """The page as HTML."""
    photo, picture = embedded(args.image_path)
    data = {"kind": args.kind, "photo": photo, "picture": picture, "command": command(args),
            "exemplar": embedded(args.exemplar_path) if args.exemplar_path else None}  # fmt: skip
    if args.kind == "edit_map":
        data |= plan(args)
        data["map"] = map_size(picture, data["grid"])
    else:  # a mask lies on the photograph pixel by pixel
        data |= {"map": picture, "grid": picture, "taus": {"mask": [0.5]}, "threshold": "mask", "black_point": 0.0}
    html, css, paint, hands = (
        (HERE / name).read_text(encoding="utf-8") for name in ("page.html", "paint.css", "paint.js", "hands.js")
    )
    parts = {"kind": args.kind, "css": css, "js": paint + hands, "data": json.dumps(data).replace("<", "\\u003c")}
    for name, text in parts.items():
        html = html.replace("{" + name + "}", text)
    return html


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.print_config:
        print(json.dumps({**vars(args), **options.resolved(args)}, indent=2))
        return
    text = page(args)
    with atomic_path(args.page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"open {Path(args.page).resolve().as_uri()} in a browser; it saves what you paint and says what to run")


if __name__ == "__main__":
    main()
