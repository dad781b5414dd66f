"""The extras that SPDInv's released code puts on top of its inversion, each a switch of its own, and the presets: which
settings of engines and extras go together. Imports nothing heavy.
"""

import argparse
from typing import Any

from common.flags import number
from common.runs import InputError
from spdinv.engines import ENGINES
from spdinv.flags import Setting, setting, word_number

_SWITCH = {"action": argparse.BooleanOptionalAction}
# Keyword arguments of extras.apply, and color_fix.
SWITCH_SETTINGS = (
    setting("", "negative_prompt_embedding", False, "the source prompt as the unconditional text (masactrl: of the "
            "source branch only)", **_SWITCH),
    setting("", "proximal", False, "proximal guidance: what is small of the guidance is removed", **_SWITCH),
    setting("", "inversion_guidance", False, "where nothing is edited, late latents are drawn to the inversion's",
            **_SWITCH),
    setting("", "color_fix", False, "the edited picture gets the source's colours (wavelet low frequencies)",
            **_SWITCH),
)  # fmt: skip
PROXIMAL_SETTINGS = (
    setting("", "proximal_mode", "soft", "soft: what the released code does under the name l0; hard: what l0 means",
            choices=("soft", "hard")),
    setting("", "proximal_quantile", 0.7, "of the guidance's size, taken as threshold; a negative number -x means x "
            "itself", number(float, -1000, 1)),
    setting("", "proximal_recon_lr", 1.0, "how far latents are drawn back; 1 is all the way", number(float, 0)),
    setting("", "proximal_recon_t", 400, "timesteps below it are held; of a negative one -t, those above t",
            number(int, -1000, 1000)),
    setting("", "proximal_dilation", 1, "places around an edited one that are free too", number(int, 0, 64)),
)  # fmt: skip
EXTRAS: dict[str, Any] = {one.name: one.default for one in SWITCH_SETTINGS + PROXIMAL_SETTINGS}
# What settings of an extra need: any of these to be on.
NEEDS = {
    "proximal_mode": ("proximal",),
    "proximal_quantile": ("proximal", "inversion_guidance"),
    "proximal_recon_lr": ("inversion_guidance",),
    "proximal_recon_t": ("inversion_guidance",),
    "proximal_dilation": ("inversion_guidance",),
}
# Per engine, what differs from the defaults.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "inversion_only": {},
    "npi": {engine: {"negative_prompt_embedding": True} for engine in ("p2p", "masactrl", "pnp")},
    "as_released": {
        "p2p": {"cross_replace_steps": 0.8, "negative_prompt_embedding": True, "proximal": True,
                "proximal_quantile": 0.7, "inversion_guidance": True},
        "masactrl": {"source_guidance_scale": 1.0, "negative_prompt_embedding": True, "proximal": True,
                     "proximal_quantile": 0.6},
        "pnp": {"negative_prompt": "ugly, blurry, black, low res, unrealistic", "color_fix": True},
    },
    "source_guidance_1": {engine: {"source_guidance_scale": 1.0} for engine in ("p2p", "masactrl")},
}  # fmt: skip
# Plug-and-Play's source where --source_latents is not given. PIE-Bench's runners, behind the published numbers, read
# DDIM's from a reconstruction and Direct Inversion's from its trajectory: that is all that tells the two apart.
SOURCE_LATENTS = {"ddim": "reconstruction"}  # all others: trajectory

OWNERS: dict[str, list[str]] = {}  # flag -> engines
for _engine in ENGINES.values():
    for _name in (*(one.flag for one in _engine.settings), *_engine.picture):
        OWNERS.setdefault(_name, []).append(_engine.name)
EVERY = (*OWNERS, *EXTRAS)  # the flags that are None where they are not given


def resolve(args: argparse.Namespace, engine: str, tuned: dict[str, Any] | None = None) -> tuple[dict, dict]:
    """The engine's options and the extras that the flags describe: a flag goes before the preset, the preset before the
    values `tuned` for the model at hand, and these before the defaults.
    """
    flags = {name: value for name, value in vars(args).items() if value is not None}
    defaults = {one.name: one.default for one in ENGINES[engine].settings}
    merged = EXTRAS | defaults | (tuned or {}) | PRESETS[args.preset].get(engine, {})
    if per_word := dict(flags.pop("cross_replace_steps", [])):
        per_word = {"default_": merged.get("cross_replace_steps"), **per_word}
        flags["cross_replace_steps"] = per_word if len(per_word) > 1 else per_word["default_"]
    merged |= flags
    return {name: merged[name] for name in defaults}, {name: merged[name] for name in EXTRAS}


def with_picture(engine_options: dict[str, Any], args: argparse.Namespace, engine: str, image) -> dict[str, Any]:
    """The engine's options with those of the picture at hand, the PIL `image`; masks are read from their files, of its
    size, and cut to its central square. Raises InputError for another size."""
    own = {name: getattr(args, name) for name in ENGINES[engine].picture}
    if engine == "p2p":
        own["equalizer"] = dict(own["equalizer"] or [])
    if engine == "masactrl":
        paths = own.pop("source_mask"), own.pop("target_mask")
        if all(paths):
            from common.masks import load_mask

            masks = [load_mask(path, picture=image) for path in paths]
            side = min(masks[0].shape)
            top, left = ((length - side) // 2 for length in masks[0].shape)
            own["masks"] = tuple(mask[top : top + side, left : left + side] for mask in masks)
    return {**engine_options, **own}


def check(args: argparse.Namespace, engines: list[str], inversions: list[str]) -> None:
    """Raises InputError for flags that nothing to be run heeds, or that lack what they go with."""
    given = [name for name, value in vars(args).items() if value is not None]
    for name in given:
        if name in OWNERS and not set(OWNERS[name]) & set(engines):
            raise InputError(f"--{name} steers --engine {' and '.join(OWNERS[name])}: leave it out, or take that "
                             "engine")  # fmt: skip
    names = vars(args).get("presets") or [args.preset]
    runs = [argparse.Namespace(**{**vars(args), "preset": name}) for name in names]
    switched_on = {name for run in runs for engine in engines for name, on in resolve(run, engine)[1].items() if on}
    for name in given:
        if name in NEEDS and "proximal" not in inversions and not switched_on.intersection(NEEDS[name]):
            needs = " or --".join(NEEDS[name])
            raise InputError(f"--{name} is a setting of --{needs}: switch that on, or leave it out")
    if args.color_fix and engines == ["none"]:
        raise InputError("--color_fix corrects the edited picture, and --engine none makes none: leave it out")
    together = vars(args).get
    if together("substruct_words") and not together("blended_words"):
        raise InputError("--substruct_words are spared within --blended_words: give these too")
    if bool(together("source_mask")) != bool(together("target_mask")):
        raise InputError("--source_mask and --target_mask go together: give both, or neither")
    if together("mask_words") and together("source_mask"):
        raise InputError("--mask_words makes the masks that --source_mask and --target_mask give: take one way")


# ----------------------------------------------------------------------------------------------------------- flags


def describe(one: Setting) -> str:
    """'(default: 0.4; as_released: 0.8)'."""

    def show(value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        return {"": "''", None: "none"}.get(value, str(value))

    plain = show(one.default)
    released = {engine: show(own[one.name]) for engine, own in PRESETS["as_released"].items() if one.name in own}
    others = [engine for engine, value in released.items() if value != plain]
    if not others:
        return f" (default: {plain})"
    where = "" if len(OWNERS.get(one.name, ())) == 1 else f" with {', '.join(others)}"
    return f" (default: {plain}; as_released: {released[others[0]]}{where})"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the presets, of every engine and of the extras; None where a flag is not given."""
    parser.add_argument("--preset", choices=tuple(PRESETS), default="inversion_only",
                        help="inversion_only: plain engine, no extras, so that the inversion alone is compared; "
                        "as_released: the extras of SPDInv's released code; npi: the source prompt as unconditional "
                        "text, nothing else; source_guidance_1: the source branch at guidance 1, nothing else. "
                        "Explicit flags override it")  # fmt: skip
    groups = {f"engine {engine.name} ({engine.title})": engine.settings for engine in ENGINES.values()}
    groups["extras, for any engine and inversion"] = SWITCH_SETTINGS
    groups["settings of --proximal, --inversion_guidance and the inversion called proximal"] = PROXIMAL_SETTINGS
    added: set[str] = set()
    for title, settings in groups.items():
        group = parser.add_argument_group(title)
        for one in settings:
            if one.flag not in added:
                group.add_argument(f"--{one.flag}", help=one.help + describe(one), default=argparse.SUPPRESS,
                                   **one.options)  # fmt: skip
                added.add(one.flag)


def add_picture_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of what belongs to one picture and its prompts."""
    group = parser.add_argument_group("words and masks of the picture (engines p2p and masactrl)")
    add = group.add_argument
    pair = {"nargs": 2, "metavar": ("SRC", "TGT")}
    add("--blended_words", **pair, help="p2p: edit only where these words of the prompts attend (LocalBlend)")
    add("--substruct_words", **pair, help="p2p: but not where these words attend")
    add("--equalizer", nargs="+", type=word_number(0), metavar="WORD=FACTOR",
        help="p2p: reweight the attention of words of the target prompt (PIE-Bench: 2 on the blended one)")  # fmt: skip
    add("--mask_words", **pair, help="masactrl: keep foreground and background apart, by the attention of these words")
    add("--source_mask", metavar="FILE", help="masactrl: the source's foreground, white, instead of --mask_words")
    add("--target_mask", metavar="FILE", help="masactrl: the foreground that the target is to have")


def fill(args: argparse.Namespace) -> None:
    """Flags that were not given become None."""
    for name in EVERY:
        if name not in args:
            setattr(args, name, None)
