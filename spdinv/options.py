"""The flags that the scripts share, and the method that they describe. Nothing heavy is imported here."""

import argparse
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.flags import check_writable, is_picturebook_folder, number, say_preset, say_unheeded
from common.runs import InputError
from spdinv.engines import ENGINES
from spdinv.flags import Setting, word_number
from spdinv.inversions import INVERSIONS
from spdinv.presets import EXTRAS, NEEDS, PRESETS, PROXIMAL_SETTINGS, SOURCE_LATENTS, SWITCH_SETTINGS

# What takes the place of the paper's settings on the picturebook, by flag: on its validation split nothing beat them.
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
            raise InputError(f"inversion {self.inversion} serves the sampling steps one by one: leave out "
                             f"--inversion_steps, or take one of {plain}")  # fmt: skip
        if way_back == "own" and (self.extras.get("proximal") or self.extras.get("inversion_guidance")):
            raise InputError(f"inversion {self.inversion} samples in its own way: leave out --proximal and "
                             "--inversion_guidance (and a preset that has them)")  # fmt: skip
        if (self.inversion, self.engine) == ("nmg", "pnp"):
            raise InputError("inversion nmg steers a source branch, and engine pnp samples none: take inversion ddim")

    @property
    def name(self) -> str:
        return f"{self.inversion}+{self.engine}"


GROUPS: dict[str, tuple[Setting, ...]] = {
    **{f"inversion {one.name}" + f" ({one.source})" * bool(one.source): one.settings for one in INVERSIONS.values()},
    **{f"engine {one.name} ({one.title})": one.settings for one in ENGINES.values()},
    "extras, for any engine and inversion": SWITCH_SETTINGS,
    "settings of --proximal, --inversion_guidance and the inversion called proximal": PROXIMAL_SETTINGS,
}
DEFAULTS = {one.flag: one.default for entry in INVERSIONS.values() for one in entry.settings if one.flag not in EXTRAS}
OWNERS = {flag: [f"--{switch}" for switch in switches] for flag, switches in NEEDS.items()}  # flag -> what heeds it
for _kind, _entries in (("inversion", INVERSIONS), ("engine", ENGINES)):
    for _entry in _entries.values():
        for _flag in (*(one.flag for one in _entry.settings), *getattr(_entry, "picture", ())):
            OWNERS.setdefault(_flag, []).append(f"{_kind} {_entry.name}")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the method; those of GROUPS stay out of the arguments where they are not given (see parse)."""
    add = parser.add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="T, DDIM steps (paper, Sec. 4.1)")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="while editing, not inverting (paper, Sec. 4.1)")
    add("--inversion_steps", type=number(int, 1, 1000), help="steps of the inversion, if more than of the sampling, "
        "which must be among them (Plug-and-Play: 999)")  # fmt: skip
    add("--preset", choices=tuple(PRESETS), default="inversion_only", help="as_released: the extras of SPDInv's code; "
        "npi: its unconditional text alone; source_guidance_1: the source at guidance 1; flags override")  # fmt: skip
    added: set[str] = set()
    for title, settings in GROUPS.items():
        group, shared = parser.add_argument_group(title), EXTRAS.keys() if title.startswith("inversion") else ()
        for one in settings:
            if one.flag not in added and one.flag not in shared:
                group.add_argument(f"--{one.flag}", help=f"{one.help} {described(one)}", default=argparse.SUPPRESS,
                                   **one.options)  # fmt: skip
                added.add(one.flag)


def titled(entries: dict) -> str:
    """What --help says of the names of INVERSIONS or ENGINES: "ddim, null_text (NTI), …"."""
    return ", ".join(name + f" ({one.title})" * (one.title.lower() != name) for name, one in entries.items())


def described(one: Setting) -> str:
    """(default: 0.4; as_released: 0.8 under p2p)"""
    released = {name: own.get(one.name, one.default) for name, own in PRESETS["as_released"].items()}
    others = [f"{value!r} under {name}" for name, value in released.items() if value != one.default]
    return f"(default: {one.default!r}{'; as_released: ' if others else ''}{', '.join(others)})"


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of what belongs to one picture and its prompts."""
    add = parser.add_argument_group("words and masks of the picture (engines p2p and masactrl)").add_argument
    pair = {"nargs": 2, "metavar": ("SRC", "TGT")}
    add("--blended_words", **pair, help="p2p: edit only where these words of the prompts attend (LocalBlend)")
    add("--substruct_words", **pair, help="p2p: but not where these words attend")
    add("--equalizer", nargs="+", type=word_number(0), metavar="WORD=FACTOR",
        help="p2p: reweight the attention of words of the target prompt (PIE-Bench: 2 on the blended one)")  # fmt: skip
    add("--mask_words", **pair, help="masactrl: keep foreground and background apart, by the attention of these words")
    add("--source_mask", metavar="FILE", help="masactrl: the source's foreground, white, instead of --mask_words")
    add("--target_mask", metavar="FILE", help="masactrl: the foreground that the target is to have")


def add_model_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, a local folder in diffusers layout"
        ", or a hub id (the paper: CompVis/stable-diffusion-v1-4)")  # fmt: skip
    add("--output_dir", default=output_dir, help="folder for results")
    add("--resolution", type=number(int, 16), help="side of the square picture in pixels; the model's own by default")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no",
        help="number format of the networks; latents stay float32 (the released P2P code: no)")  # fmt: skip
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of torch; ddim, spd and p2p draw no random number")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")
    custom = parser.add_argument_group("customised models (paper, Sec. 3.3)")
    add = custom.add_argument
    add("--adapter", nargs="+", metavar="PATH",
        help="LoRA, Custom Diffusion or Textual Inversion: files, or folders of trainings, all together")  # fmt: skip
    add("--elite", metavar="PATH", help=f"ELITE's global_mapper.pt: {PLACEHOLDER} in a prompt is a picture's subject")
    add("--reference_image_path", help="the subject's picture; the edited one by default (as released)")
    add("--elite_token_index", choices=(*"01234", "full"), default="0", help="which of ELITE's words (released: 0)")
    add("--elite_key_values", action=argparse.BooleanOptionalAction, default=False,
        help="use ELITE's trained keys and values too; the released SPDInv loads and bypasses them")  # fmt: skip
    add("--elite_clip", default="openai/clip-vit-large-patch14", help="CLIP whose vision tower ELITE's mapper reads")


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The flags, and which of GROUPS and of the picture were given, for `check`. Of those that were not, inversions'
    have their defaults or, on the picturebook, its preset's, and engines' and extras' are None: a preset may set them.
    Raises InputError for an output folder that cannot be written, before anything is paid for.
    """
    args = parser.parse_args(argv)
    given = {flag for flag in (*OWNERS, *EXTRAS) if getattr(args, flag, None) is not None}
    tuned = tuned_for(args)
    say_preset(tuned)
    for flag in (*OWNERS, *EXTRAS):
        if flag not in args:
            setattr(args, flag, {**DEFAULTS, **tuned}[flag] if flag in DEFAULTS else None)
    check_customised(args)
    say_unheeded(parser, args, dict.fromkeys(("elite_token_index", "elite_key_values", "elite_clip"), ("elite", True)))
    if not args.print_config:
        check_writable(Path(args.output_dir))
    return args, given


def tuned_for(args: argparse.Namespace) -> dict[str, Any]:
    return PICTUREBOOK_PRESET if is_picturebook_folder(args.pretrained_model_name_or_path) else {}


def check(args: argparse.Namespace, given: set[str], engines: list[str], inversions: list[str]) -> None:
    """Raises InputError for flags that nothing to be run heeds, or that lack what they go with."""
    for flag in ("equalizer", "cross_replace_steps"):
        words = [word for word, _ in getattr(args, flag, None) or []]
        if twice := [word for word in words if words.count(word) > 1]:
            raise InputError(f"--{flag} names {twice[0]!r} twice, with a number each: give one of them")
    run = {f"engine {name}" for name in engines} | {f"inversion {name}" for name in inversions}
    for preset in vars(args).get("presets") or [args.preset]:
        run |= {f"--{name}" for engine in set(engines) for name, on in resolve(args, engine, preset)[1].items() if on}
    for flag, owners in OWNERS.items():
        if flag in given and not run & set(owners):
            raise InputError(f"--{flag} is a setting of {' and of '.join(owners)}: leave it out, or take one of these")
    if args.color_fix and set(engines) == {"none"}:
        raise InputError("--color_fix corrects the edited picture, and --engine none makes none: leave it out")
    if "substruct_words" in given and "blended_words" not in given:
        raise InputError("--substruct_words are spared within --blended_words: give these too")
    if len(given & {"source_mask", "target_mask"}) == 1:
        raise InputError("--source_mask and --target_mask go together: give both, or neither")
    if {"mask_words", "source_mask"} <= given:
        raise InputError("--mask_words makes the masks that --source_mask and --target_mask give: take one way")


def check_customised(args: argparse.Namespace) -> None:
    """Raises InputError, before anything is loaded, where the flags for customised models do not fit together."""
    for flag, paths in (("adapter", args.adapter or []), ("elite", [args.elite]),
                        ("reference_image_path", [args.reference_image_path])):  # fmt: skip
        if missing := [path for path in paths if path is not None and not os.path.exists(os.path.expanduser(path))]:
            raise InputError(f"--{flag} {missing[0]} does not exist; give a file that does")
    if args.reference_image_path and not args.elite:
        raise InputError("--reference_image_path shows the subject to ELITE: give --elite too, or leave it out")
    target = getattr(args, "target_prompt", None)
    if args.elite and target is not None and PLACEHOLDER not in target:
        raise InputError(f"with --elite the subject is called {PLACEHOLDER}: use that word in --target_prompt")


def resolve(args: argparse.Namespace, engine: str, preset: str) -> tuple[dict, dict]:
    """The engine's options and the extras that the flags describe: a flag goes before the preset, the preset before the
    values tuned for the model at hand, and these before the defaults."""
    flags = {name: value for name, value in vars(args).items() if value is not None}
    defaults = {one.name: one.default for one in ENGINES[engine].settings}
    merged = EXTRAS | defaults | tuned_for(args) | PRESETS[preset].get(engine, {})
    if per_word := dict(flags.pop("cross_replace_steps", [])):
        per_word = {"default_": merged.get("cross_replace_steps"), **per_word}
        flags["cross_replace_steps"] = per_word if len(per_word) > 1 else per_word["default_"]
    merged |= flags
    return {name: merged[name] for name in defaults}, {name: merged[name] for name in EXTRAS}


def method_of(args: argparse.Namespace, inversion: str, engine: str) -> Method:
    """The method that the flags describe; the words of a picture (to blend, to reweight) come on top."""
    engine_options, extras = resolve(args, engine, args.preset)
    if engine == "pnp" and engine_options["source_latents"] is None:
        engine_options["source_latents"] = SOURCE_LATENTS.get(inversion, "trajectory")
    entry, given = INVERSIONS[inversion], vars(args)
    settings = {one.name: one.default if given[one.flag] is None else given[one.flag] for one in entry.settings}
    if entry.fitted:  # to the guidance of the source branch
        own = engine_options.get("source_guidance_scale")
        settings["guidance_scale"] = args.guidance_scale if own is None else own
    return Method(inversion, engine, args.num_inference_steps, args.guidance_scale, settings, engine_options,
                  extras, args.inversion_steps, given.get("null_source_prompt", False))  # fmt: skip


def with_picture(method: Method, args: argparse.Namespace, image) -> Method:
    """The method with what the flags say of the picture at hand, the PIL `image`; masks are read from their files, of
    its size, and cut to its central square. Raises InputError for another size."""
    own = {name: getattr(args, name) for name in ENGINES[method.engine].picture}
    if method.engine == "p2p":
        own["equalizer"] = dict(own["equalizer"] or [])
    if method.engine == "masactrl":
        paths = own.pop("source_mask"), own.pop("target_mask")
        if all(paths):
            from common.masks import load_mask

            own["masks"] = tuple(central_square(load_mask(path, picture=image)) for path in paths)
    return replace(method, engine_options={**method.engine_options, **own})


def central_square(mask):
    """The part of a mask [H,W], tensor or array, that common.images.center_crop_resize leaves of its picture."""
    side = min(mask.shape)
    top, left = ((length - side) // 2 for length in mask.shape)
    return mask[top : top + side, left : left + side]
