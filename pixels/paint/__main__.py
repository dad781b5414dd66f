"""Write a page on which an edit map is painted: `python -m pixels.paint photo.jpg [exemplar.jpg]`, then open it.

The page is one file and asks for nothing from anywhere. It paints greys on the photograph (mouse, touch, keyboard),
shows when each of them is let go, counted as pixels.surgery counts, and saves map.png and the command that edits with
it. --kind inpaint and --kind pie_bench paint a hole or a mask instead: white where something may change.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common.flags import local_folder
from common.runs import InputError, atomic_path, make_parser, script
from pixels import options

MOST_CELLS_SIDE, LEAST_SIDE = 24, 448  # pixels of the map per latent cell at most; of its shorter side, if they allow
MOST_PIXELS = 1600  # of the pictures in the page, longer side
# Of the published models, for hub ids that are not on this disk: side, pixels per latent, scheduler.
PUBLISHED = {"sd": (512, 8, "PNDMScheduler"), "sdxl": (1024, 8, "EulerDiscreteScheduler"),
             "refiner": (1024, 8, "EulerDiscreteScheduler"), "kandinsky": (512, 8, "DDPMScheduler")}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("image_path", help="the photograph that is to be edited")
    add("exemplar_path", nargs="?", help="the picture to take from")
    add("--kind", choices=("edit_map", "inpaint", "pie_bench"), default="edit_map", help="edit_map: greys for "
        "pixels.infer; inpaint: a hole for image_inpaint.infer; pie_bench: a mask, as run-lengths too")  # fmt: skip
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

    kind = options.kind_of(args.pretrained_model_name_or_path)
    if kind is None:
        raise InputError(f"{args.pretrained_model_name_or_path} is not known here; give a folder, or one of "
                         + ", ".join(options.KNOWN_IDS))  # fmt: skip
    sampling, surgery = options.sampling_of(args, kind), options.surgery_of(args)
    native, factor, scheduler = described(args.pretrained_model_name_or_path, kind, args.scheduler)
    grid = [side // factor for side in options.frame_size(args, native, factor)]
    count = len(select_timesteps(scheduler, "cpu", sampling))
    taus = {name: thresholds(name, count, surgery["schedule"]).tolist() for name in THRESHOLDS}
    return {"grid": grid, "taus": taus, "threshold": args.threshold, "black_point": args.black_point}


def described(name: str, kind: str, scheduler: str) -> tuple[int, int, Any]:
    """Of a model that is not loaded: (native side in pixels, pixels per latent cell, the --scheduler that edits run,
    with the spacing of the released runs where the model is not on this disk)."""
    import diffusers

    from pixels.backbones.loading import make_scheduler, own_scheduler

    folder = local_folder(name)
    if not (folder / "model_index.json").is_file():
        side, factor, own = PUBLISHED[kind]
        told = {"timestep_spacing": "leading", "steps_offset": 1}
        told |= {"skip_prk_steps": True} if own == "PNDMScheduler" else {}
        return side, factor, make_scheduler(scheduler, getattr(diffusers, own)(**told))
    try:
        vae = "movq" if kind == "kandinsky" else "vae"
        unet, vae = (json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", vae))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"] * factor
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} does not say in unet/config.json and vae/config.json the size of latents") from None
    return side, factor, make_scheduler(scheduler, own_scheduler(folder, kind))


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

    picture, buffer = load_image(path), io.BytesIO()
    size = (picture.height, picture.width)
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    kind = "png" if picture.width * picture.height < 300_000 else "jpeg"
    picture.save(buffer, kind, quality=92)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", size


def command(args: argparse.Namespace) -> list[str]:
    """The words of the command that edits with the map, but for the map: flags that are no defaults are repeated."""
    if args.kind == "pie_bench":
        return []
    module, shown = ("pixels", "exemplar") if args.kind == "edit_map" else ("image_inpaint", "reference")
    given = ["python", "-m", f"{module}.infer", "--image_path", args.image_path, f"--{shown}_path",
             args.exemplar_path or f"{shown.upper()}.jpg"]  # fmt: skip
    flags = argparse.ArgumentParser()
    if args.kind == "edit_map":
        options.add_method_flags(flags)
    options.add_model_flags(flags, output_dir="outputs/pixels")
    for action in flags._actions:  # those that are no switches
        value = getattr(args, action.dest, None)
        if action.dest not in ("help", "threshold", "print_config") and value != action.default:
            given += [action.option_strings[0], str(value)]
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
    names = ("page.html", "paint.css", "paint.js", "hands.js")
    html, css, paint, hands = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    parts = {"kind": args.kind, "css": css, "js": paint + hands, "data": json.dumps(data).replace("<", "\\u003c")}
    for name, text in parts.items():
        html = html.replace("{" + name + "}", text)
    return html


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if options.config_shown(args):
        return
    text = page(args)
    with atomic_path(args.page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"open {Path(args.page).resolve().as_uri()} in a browser; it saves what you paint and says what to run")


if __name__ == "__main__":
    main()
