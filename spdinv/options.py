"""The flags that the scripts share, and what they mean to the method. Nothing heavy is imported here."""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.flags import check_writable, is_picturebook_folder, number
from common.runs import InputError
from spdinv import presets
from spdinv.inversions import INVERSIONS

# What takes the place of the paper's defaults on the picturebook: on its validation split nothing beat the published
# settings of the engines (README.md).
PICTUREBOOK_PRESET: dict[str, Any] = {}

PLACEHOLDER = "*"  # stands for ELITE's subject in prompts


@dataclass(frozen=True)
class Method:
    """An inversion, an engine and their settings; the defaults are those of the paper (Sec. 4.1 and 4.4).

    inversion: a key of inversions.INVERSIONS; inversion_options: keyword arguments of its `invert`.
    engine: a key of engines.ENGINES; engine_options: keyword arguments of its function.
    extras: what is done on top (extras.apply, and color_fix). inversion_steps: of the inversion, where they are more
    than the sampler's (see editing.thin). null_source_prompt: an item's source prompt is not told (items.run_item).
    Raises InputError for what does not go together.
    """

    inversion: str = "spd"
    engine: str = "p2p"
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    inversion_options: dict[str, Any] = field(default_factory=dict)
    engine_options: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    inversion_steps: int | None = None
    null_source_prompt: bool = False

    def __post_init__(self):
        way_back = INVERSIONS[self.inversion].way_back
        if self.inversion_steps and way_back != "plain":
            plain = ", ".join(name for name, entry in INVERSIONS.items() if entry.way_back == "plain")
            raise InputError(
                f"inversion {self.inversion} serves the sampling steps one by one: leave out --inversion_steps, or "
                f"take one of {plain}"
            )
        if way_back == "own" and (self.extras.get("proximal") or self.extras.get("inversion_guidance")):
            raise InputError(
                f"inversion {self.inversion} samples in its own way: leave out --proximal and --inversion_guidance "
                "(and a preset that has them)"
            )
        if (self.inversion, self.engine) == ("nmg", "pnp"):
            raise InputError(
                "inversion nmg steers a source branch, and engine pnp samples none: take inversion ddim there"
            )

    @property
    def name(self) -> str:
        return f"{self.inversion}+{self.engine}"


def add_model_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    add = parser.add_argument
    add(
        "--pretrained_model_name_or_path",
        default="picturebook",
        help="picturebook, a local folder in diffusers layout, or a hub id (the paper: CompVis/stable-diffusion-v1-4)",
    )
    add("--output_dir", default=output_dir, help="folder for results")
    add("--resolution", type=number(int, 16), help="side of the square picture in pixels; the model's own by default")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add(
        "--mixed_precision",
        choices=("no", "fp16", "bf16"),
        default="no",
        help="number format of the networks; latents stay float32 (the released P2P code: no)",
    )
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of torch; ddim, spd and p2p draw no random number")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")  # fmt: skip
    custom = parser.add_argument_group("customised models (paper, Sec. 3.3)")
    add = custom.add_argument
    add("--adapter", nargs="+", metavar="PATH",
        help="LoRA, Custom Diffusion or Textual Inversion: files, or folders of trainings, all together")  # fmt: skip
    add("--elite", metavar="PATH", help=f"ELITE's global_mapper.pt: {PLACEHOLDER} in a prompt is then the subject of a "
        "picture")  # fmt: skip
    add("--reference_image_path", help="the subject's picture; the edited one by default (as released)")
    add(
        "--elite_token_index", choices=(*"01234", "full"), default="0", help="which of ELITE's five words (released: 0)"
    )
    add("--elite_key_values", action=argparse.BooleanOptionalAction, default=False,
        help="use ELITE's trained keys and values too; the released SPDInv loads and bypasses them")  # fmt: skip
    add("--elite_clip", default="openai/clip-vit-large-patch14", help="CLIP whose vision tower ELITE's mapper reads")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="T, DDIM steps (paper, Sec. 4.1)")
    add(
        "--guidance_scale",
        type=number(float, 0),
        default=7.5,
        help="of classifier-free guidance while editing, not while inverting (paper, Sec. 4.1)",
    )
    add(
        "--inversion_steps",
        type=number(int, 1, 1000),
        help="steps of the inversion, if more than of the sampling, which must be among them (Plug-and-Play: 999)",
    )
    add_inversion_flags(parser)
    presets.add_flags(parser)


def add_inversion_flags(parser: argparse.ArgumentParser) -> None:
    """A group for each inversion that has settings of its own; a flag that is not given stays out (see parse)."""
    added = set(presets.EVERY)
    for entry in INVERSIONS.values():
        group = parser.add_argument_group(f"inversion {entry.name} ({entry.source})")
        for one in entry.settings:
            if one.flag not in added:
                group.add_argument(f"--{one.flag}", help=f"{one.help} (default: {one.default})",
                                   default=argparse.SUPPRESS, **one.options)  # fmt: skip
                added.add(one.flag)


DEFAULTS = {one.flag: one.default for entry in INVERSIONS.values() for one in entry.settings}


def inversion_options(args: argparse.Namespace, inversion: str, source_guidance_scale: float) -> dict[str, Any]:
    """The keyword arguments of the inversion's `invert` that the flags stand for.

    source_guidance_scale: of the source branch on the way back; what null_text and direct find belongs to it.
    """
    entry, given = INVERSIONS[inversion], vars(args)
    options = {one.name: one.default if given.get(one.flag) is None else given[one.flag] for one in entry.settings}
    return options | ({"guidance_scale": source_guidance_scale} if entry.fitted else {})


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse, with the picturebook's preset in place of the defaults where the model is a picturebook.

    Raises InputError for flags of inversions and engines that are not run, and for an output folder that cannot be
    written, before anything is paid for.
    """
    args = parser.parse_args(argv)
    if is_picturebook_folder(args.pretrained_model_name_or_path) and PICTUREBOOK_PRESET:
        # the flags of engines and extras wait for presets.resolve: a preset goes before these values
        parser.set_defaults(**{name: value for name, value in PICTUREBOOK_PRESET.items() if name not in presets.EVERY})
        args = parser.parse_args(argv)
        print(f"picturebook preset: {json.dumps(PICTUREBOOK_PRESET)} (flags override it)", file=sys.stderr)
    presets.fill(args)
    for name, value in DEFAULTS.items():
        if name not in args:
            setattr(args, name, value)
    if inversions := chosen(args, "inversion"):
        check_inversion_flags(parser, argv, inversions)
    if engines := chosen(args, "engine"):
        presets.check(args, engines, inversions)
    check_customised(args)
    if not args.print_config:
        check_writable(Path(args.output_dir))
    return args


def chosen(args: argparse.Namespace, kind: str) -> list[str]:
    """The inversions or engines that the script is to run: those of --inversions, or that of --inversion."""
    return vars(args).get(f"{kind}s") or [name for name in [vars(args).get(kind)] if name]


def check_inversion_flags(parser: argparse.ArgumentParser, argv: list[str] | None, inversions: list[str]) -> None:
    """Raises InputError for a flag that was given and belongs to none of the inversions to be run."""
    owners: dict[str, list[str]] = {}
    for entry in INVERSIONS.values():
        for one in entry.settings:
            owners.setdefault(one.flag, []).append(entry.name)
    for flag in vars(parser.parse_args(argv)).keys() & owners.keys() - set(presets.EVERY):
        if not set(owners[flag]) & set(inversions):
            raise InputError(f"--{flag} is a setting of inversion {' and '.join(owners[flag])}: leave it out, or take "
                             "that inversion")  # fmt: skip


def check_customised(args: argparse.Namespace) -> None:
    """Raises InputError, before anything is loaded, where the flags for customised models do not fit together."""
    for flag, paths in (("adapter", args.adapter or []), ("elite", [args.elite]),
                        ("reference_image_path", [args.reference_image_path])):  # fmt: skip
        if missing := [path for path in paths if path is not None and not Path(path).expanduser().exists()]:
            raise InputError(f"--{flag} {missing[0]} does not exist; give a file that does")
    if args.reference_image_path and not args.elite:
        raise InputError("--reference_image_path shows the subject to ELITE: give --elite too, or leave it out")
    target = getattr(args, "target_prompt", None)
    if args.elite and target is not None and PLACEHOLDER not in target.split(" "):
        raise InputError(f"with --elite the subject is called {PLACEHOLDER}: use that word in --target_prompt")


def method_of(args: argparse.Namespace, inversion: str, engine: str) -> Method:
    """The method that the flags describe; the words of a picture (to blend, to reweight) come on top."""
    tuned = PICTUREBOOK_PRESET if is_picturebook_folder(args.pretrained_model_name_or_path) else {}
    engine_options, extras = presets.resolve(args, engine, tuned)
    if engine == "pnp" and engine_options["source_latents"] is None:
        engine_options["source_latents"] = presets.SOURCE_LATENTS.get(inversion, "trajectory")
    source_guidance_scale = engine_options.get("source_guidance_scale")
    if source_guidance_scale is None:
        source_guidance_scale = args.guidance_scale
    settings = inversion_options(args, inversion, source_guidance_scale)
    return Method(inversion, engine, args.num_inference_steps, args.guidance_scale, settings, engine_options,
                  extras, args.inversion_steps, getattr(args, "null_source_prompt", False))  # fmt: skip


def with_words(
    method: Method, blended_words: tuple[str | None, ...] | None, equalizer: dict[str, float] | None
) -> Method:
    """The method with a picture's words for LocalBlend and reweighting (engine p2p only)."""
    words = {"blended_words": blended_words, "equalizer": equalizer}
    return replace(method, engine_options={**method.engine_options, **words}) if method.engine == "p2p" else method
