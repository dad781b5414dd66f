"""The engines' settings, and the extras on top of them: defaults, the two presets, flags. Imports nothing heavy.

SPDInv's released code edits with more than its inversion: negative-prompt embedding, proximal and inversion guidance, a
colour fix (reference in the README). Here each of these extras is a switch of its own, off unless asked for.
"""

import argparse
from typing import Any

from common.flags import number
from common.runs import InputError
from spdinv.flags import word_number

# Keyword arguments of the engines' functions, with the values that hold for every inversion of the paper's tables.
ENGINE_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "p2p": {"controller": "refine", "cross_replace_steps": 0.4, "self_replace_steps": 0.6},
    "masactrl": {"start_step": 4, "start_layer": None, "inject_uncond": "src", "inject_cond": "src",
                 "source_guidance_scale": None},
    "pnp": {"feature_steps": 0.8, "attention_steps": 0.5, "negative_prompt": "", "source_latents": None},
}  # fmt: skip
# Plug-and-Play's source where --source_latents is not given. PIE-Bench's runners, behind the published numbers, read
# DDIM's from a reconstruction and Direct Inversion's from its trajectory: that is all that tells the two apart.
SOURCE_LATENTS = {"ddim": "reconstruction"}  # all others: trajectory
# The same, for what belongs to one picture and its prompts.
PICTURE_OPTIONS = {
    "none": (),
    "p2p": ("blended_words", "substruct_words", "equalizer"),
    "masactrl": ("mask_words", "source_mask", "target_mask"),
    "pnp": (),
}
# Keyword arguments of extras.apply, but for color_fix.
EXTRAS: dict[str, Any] = {
    "negative_prompt_embedding": False,
    "proximal": False,
    "proximal_mode": "soft",
    "proximal_quantile": 0.7,
    "inversion_guidance": False,
    "proximal_recon_lr": 1.0,
    "proximal_recon_t": 400,
    "proximal_dilation": 1,
    "color_fix": False,
}
# What settings of an extra need: any of these to be on.
NEEDS = {
    "proximal_mode": ("proximal",),
    "proximal_quantile": ("proximal", "inversion_guidance"),
    "proximal_recon_lr": ("inversion_guidance",),
    "proximal_recon_t": ("inversion_guidance",),
    "proximal_dilation": ("inversion_guidance",),
}
# Per engine, what differs from the values above.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "inversion_only": {"none": {}, "p2p": {}, "masactrl": {}, "pnp": {}},
    "as_released": {
        "none": {},
        "p2p": {"cross_replace_steps": 0.8, "negative_prompt_embedding": True, "proximal": True,
                "proximal_quantile": 0.7, "inversion_guidance": True},
        "masactrl": {"source_guidance_scale": 1.0, "negative_prompt_embedding": True, "proximal": True,
                     "proximal_quantile": 0.6},
        "pnp": {"negative_prompt": "ugly, blurry, black, low res, unrealistic", "color_fix": True},
    },
}  # fmt: skip
OWNER = {name: engine for engine, settings in ENGINE_OPTIONS.items() for name in (*settings, *PICTURE_OPTIONS[engine])}

EVERY = (*OWNER, *EXTRAS)  # the flags that are None where they are not given


def resolve(args: argparse.Namespace, engine: str, tuned: dict[str, Any] | None = None) -> tuple[dict, dict]:
    """The engine's options and the extras that the flags describe: a flag goes before the preset, the preset before the
    values `tuned` for the model at hand, and these before the defaults.
    """
    flags = {name: value for name, value in vars(args).items() if value is not None}
    layers = EXTRAS, ENGINE_OPTIONS[engine], tuned or {}, PRESETS[args.preset][engine]
    merged = {name: value for layer in layers for name, value in layer.items()}
    if per_word := dict(flags.pop("cross_replace_steps", [])):
        per_word = {"default_": merged.get("cross_replace_steps"), **per_word}
        flags["cross_replace_steps"] = per_word if len(per_word) > 1 else per_word["default_"]
    merged |= flags
    return {name: merged[name] for name in ENGINE_OPTIONS[engine]}, {name: merged[name] for name in EXTRAS}


def with_picture(engine_options: dict[str, Any], args: argparse.Namespace, engine: str) -> dict[str, Any]:
    """The engine's options with those of the picture at hand; masks are read from their files."""
    own = {name: getattr(args, name) for name in PICTURE_OPTIONS[engine]}
    if engine == "p2p":
        own["equalizer"] = dict(own["equalizer"] or [])
    if engine == "masactrl":
        paths = own.pop("source_mask"), own.pop("target_mask")
        if all(paths):
            from common.masks import load_mask

            own["masks"] = tuple(load_mask(path) for path in paths)
    return {**engine_options, **own}


def proximal_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the inversion called proximal shares with the extras --proximal and --inversion_guidance."""
    flags = {name: getattr(args, name) for name in NEEDS}
    return {name.removeprefix("proximal_"): EXTRAS[name] if value is None else value for name, value in flags.items()}


def check(args: argparse.Namespace, engines: list[str], inversions: list[str]) -> None:
    """Raises InputError for flags that nothing to be run heeds, or that lack what they go with."""
    given = [name for name, value in vars(args).items() if value is not None]
    for name in given:
        if name in OWNER and OWNER[name] not in engines:
            raise InputError(f"--{name} steers --engine {OWNER[name]}: leave it out, or take that engine")
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


def describe(name: str) -> str:
    """'(default: 0.4; as_released: 0.8)'."""

    def show(value: Any) -> str:
        if isinstance(value, bool):
            return "on" if value else "off"
        return {"": "''", None: "none"}.get(value, str(value))

    defaults = {**EXTRAS, **ENGINE_OPTIONS.get(OWNER.get(name), {})}
    if name not in defaults:
        return ""
    plain = show(defaults[name])
    released = {engine: show(settings[name]) for engine, settings in PRESETS["as_released"].items() if name in settings}
    others = [engine for engine, value in released.items() if value != plain]
    if not others:
        return f" (default: {plain})"
    where = "" if name in OWNER else f" with {', '.join(others)}"
    return f" (default: {plain}; as_released: {released[others[0]]}{where})"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the presets, of every engine and of the extras; None where a flag is not given."""

    def add(group, name: str, help: str, **kwargs: Any) -> None:
        group.add_argument(f"--{name}", help=help + describe(name), default=argparse.SUPPRESS, **kwargs)

    def fraction(group, name: str, help: str) -> None:
        start = "fraction of the steps, from the noisy end, with the source's"
        add(group, name, f"{start} {help}", type=number(float, 0, 1))

    parser.add_argument("--preset", choices=tuple(PRESETS), default="inversion_only",
                        help="inversion_only: plain engine, no extras, so that the inversion alone is compared; "
                        "as_released: the extras of SPDInv's released code. Explicit flags override it")  # fmt: skip
    p2p = parser.add_argument_group("engine p2p (Prompt-to-Prompt)")
    add(p2p, "controller", "refine: tokens aligned (PIE-Bench and the released SPDInv); replace: word for word",
        choices=("refine", "replace"))  # fmt: skip
    add(p2p, "cross_replace_steps", "fraction of the steps, from the noisy end, with the source's cross-attention, and "
        "of words of the target prompt that have their own (PIE-Bench: 0.4)", nargs="+",
        type=word_number(0, 1, bare="default_"), metavar="FRACTION|WORD=FRACTION")  # fmt: skip
    fraction(p2p, "self_replace_steps", "self-attention (PIE-Bench: 0.6)")

    masactrl = parser.add_argument_group("engine masactrl (MasaCtrl)")
    add(masactrl, "start_step", "first step under control, counted from 0", type=number(int, 0))
    add(masactrl, "start_layer", "first self-attention layer under control, counted from 0 as they are called; none is "
        "10 of Stable Diffusion's 16, and as deep in other UNets", type=number(int, 0))  # fmt: skip
    for half in ("inject_uncond", "inject_cond"):
        add(masactrl, half, f"whose keys and values the target sees in the {half.split('_')[1]}itional half: the "
            "source's, both, its own", choices=("src", "joint", "none"))  # fmt: skip
    add(masactrl, "source_guidance_scale", "guidance scale of the source branch; none is --guidance_scale",
        type=number(float, 0))  # fmt: skip

    pnp = parser.add_argument_group("engine pnp (Plug-and-Play)")
    fraction(pnp, "feature_steps", "features")
    fraction(pnp, "attention_steps", "self-attention queries and keys")
    add(pnp, "negative_prompt", "unconditional text of the target")
    add(pnp, "source_latents", "where the source's latents come from: the inversion's trajectory, or a reconstruction "
        "from its noise; none: the first for "
        "all but ddim, as published", choices=("trajectory", "reconstruction"))  # fmt: skip

    extras = parser.add_argument_group("extras, for any engine and inversion")
    switch = {"action": argparse.BooleanOptionalAction}
    add(extras, "negative_prompt_embedding", "the source prompt as the unconditional text (masactrl: of the source "
        "branch only)", **switch)  # fmt: skip
    add(extras, "proximal", "proximal guidance: what is small of the guidance is removed", **switch)
    add(extras, "inversion_guidance", "where nothing is edited, late latents are drawn to the inversion's", **switch)
    add(extras, "color_fix", "the edited picture gets the source's colours (wavelet low frequencies)", **switch)

    shared = parser.add_argument_group("settings of --proximal, --inversion_guidance and the inversion called proximal")
    add(shared, "proximal_mode", "soft: what the released code does under the name l0; hard: what l0 means",
        choices=("soft", "hard"))  # fmt: skip
    add(shared, "proximal_quantile", "of the guidance's size, taken as threshold; a negative number -x means x itself",
        type=number(float, -1000, 1))  # fmt: skip
    add(shared, "proximal_recon_lr", "how far latents are drawn back; 1 is all the way", type=number(float, 0))
    add(shared, "proximal_recon_t", "timesteps below it are held; of a negative one -t, those above t",
        type=number(int, -1000, 1000))  # fmt: skip
    add(shared, "proximal_dilation", "places around an edited one that are free too", type=number(int, 0))


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
