"""The flags that the scripts share, and what they mean to the method. Nothing heavy is imported here."""

import argparse
import json
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.flags import check_writable, is_picturebook_folder, number
from common.runs import InputError
from spdinv import presets

# What takes the place of the paper's defaults on the picturebook: on its validation split nothing beat the published
# settings of the engines (README.md).
PICTUREBOOK_PRESET: dict[str, Any] = {}

# keys of inversions.INVERSIONS and engines.ENGINES, which are heavy to import
INVERSION_NAMES = ("ddim", "null_text", "negative_prompt", "proximal", "aidi", "nmg", "direct", "spd", "fixed_point",
                   "edict")  # fmt: skip
ENGINE_NAMES = ("none", "p2p", "masactrl", "pnp")
TRAJECTORY_ONLY = ("ddim", "spd", "aidi", "fixed_point")  # inversions that leave nothing else to the sampler
OWN_STEP = ("nmg", "edict")  # inversions whose sampling step is not a guided step with something on top
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
        if self.inversion_steps and self.inversion not in TRAJECTORY_ONLY:
            raise InputError(
                f"inversion {self.inversion} serves the sampling steps one by one: leave out --inversion_steps, or "
                f"take one of {', '.join(TRAJECTORY_ONLY)}"
            )
        if self.inversion in OWN_STEP and (self.extras.get("proximal") or self.extras.get("inversion_guidance")):
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
    """A group for each inversion that has settings; defaults are the published ones (README.md says where from)."""
    add = parser.add_argument_group("inversion spd (paper, Alg. 1)").add_argument
    add("--solver", choices=("adamw", "sgd", "descent", "anderson"), default="adamw",
        help="adamw: the released code; sgd: the paper's formula; descent: fewer evaluations, step lengths of its own; "
        "anderson: no gradient")  # fmt: skip
    add("--spd_rounds", type=number(int, 0), default=25, help="K (paper, Sec. 4.4); 0 is DDIM inversion")
    add("--spd_learning_rate", type=number(float, 0), default=1e-3, help="eta (paper, Sec. 4.4)")
    add("--spd_threshold", type=number(float, 0), default=5e-6, help="delta (paper, Sec. 4.4); 0 never stops early")
    add = parser.add_argument_group("inversion null_text (released code)").add_argument
    add("--null_text_inner_steps", type=number(int, 0), default=10, help="Adam steps per sampling step, at most")
    add("--null_text_learning_rate", type=number(float, 0), default=1e-2, help="at sampling step 0; falls from there")
    add("--null_text_threshold", type=number(float, 0), default=1e-5,
        help="loss to stop at, at sampling step 0; grows by 2e-5 per step; 0 never stops early")  # fmt: skip
    add = parser.add_argument_group("inversion negative_prompt, proximal (released code)").add_argument
    add("--negative_prompt_interpolation", type=number(float, 0, 1), default=0.0,
        help="unconditional text: 0 the source prompt, 1 the null text")  # fmt: skip
    add = parser.add_argument_group("inversion proximal (ProxEdit, the recipe in its released README)").add_argument
    add("--proximal_guidance", choices=("inversion", "reconstruction", "none"), default="inversion",
        help="how unedited places are held to the picture: by the inversion's latents, by z_0, or not")  # fmt: skip
    add = parser.add_argument_group("inversion aidi (unofficial port; there is no official code)").add_argument
    add("--aidi_mode", choices=("anderson", "empirical"), default="anderson", help="AIDI_A or AIDI_E")
    add("--aidi_rounds", type=number(int, 0), default=5, help="after the first evaluation; 0 is DDIM inversion")
    add("--aidi_threshold", type=number(float, 0), default=0.0, help="mean square to stop at; 0 never stops early")
    add = parser.add_argument_group("inversion nmg (released code)").add_argument
    add("--nmg_gradient_scale", type=number(float, 0), default=5000.0, help="s_g, at 64x64 latents and kept elsewhere")
    add("--nmg_noise_map_scale", type=number(float, 0), default=10.0, help="guidance by the noise map")
    add("--nmg_reference", choices=("current", "previous"), default="current",
        help="level compared with the steered latent: as released, or the one it has (the paper)")  # fmt: skip
    add = parser.add_argument_group("inversion fixed_point (FPI, released demo)").add_argument
    add("--fixed_point_rounds", type=number(int, 0), default=19, help="after the first evaluation; 0 is DDIM inversion")
    add("--fixed_point_guidance_scale", type=number(float, 0), default=2.0,
        help="while inverting; reconstructs with the same --guidance_scale")  # fmt: skip
    add("--fixed_point_threshold", type=number(float, 0), default=0.0, help="as --aidi_threshold")
    add = parser.add_argument_group("inversion edict").add_argument
    add("--edict_mixing", type=number(float, 0.5, 1), default=0.93, help="p")
    add("--edict_guidance_scale", type=number(float, 0), default=3.0,
        help="while inverting; reconstructs exactly with the same --guidance_scale")  # fmt: skip


def inversion_options(args: argparse.Namespace, source_guidance_scale: float) -> dict[str, dict[str, Any]]:
    """By inversion: the keyword arguments of its `invert` that the flags stand for.

    source_guidance_scale: of the source branch on the way back; what null_text and direct find belongs to it.
    """
    own = {
        "spd": ("rounds", "learning_rate", "threshold"),
        "null_text": ("inner_steps", "learning_rate", "threshold"),
        "negative_prompt": ("interpolation",),
        "proximal": ("guidance",),
        "aidi": ("mode", "rounds", "threshold"),
        "nmg": ("gradient_scale", "noise_map_scale", "reference"),
        "fixed_point": ("rounds", "guidance_scale", "threshold"),
        "edict": ("mixing", "guidance_scale"),
    }
    options = {name: {key: getattr(args, f"{name}_{key}") for key in keys} for name, keys in own.items()}
    options["spd"]["solver"] = args.solver
    options["proximal"] |= presets.proximal_settings(args)  # the extras of the same name share their flags
    options["proximal"]["interpolation"] = args.negative_prompt_interpolation
    options["null_text"]["guidance_scale"] = source_guidance_scale
    options["direct"] = {"guidance_scale": source_guidance_scale}
    return options


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
    if inversions := chosen(args, "inversion"):
        check_inversion_flags(parser, argv, args, inversions)
    if engines := chosen(args, "engine"):
        presets.check(args, engines, inversions)
    check_customised(args)
    if not args.print_config:
        check_writable(Path(args.output_dir))
    return args


def chosen(args: argparse.Namespace, kind: str) -> list[str]:
    """The inversions or engines that the script is to run: those of --inversions, or that of --inversion."""
    return vars(args).get(f"{kind}s") or [name for name in [vars(args).get(kind)] if name]


def check_inversion_flags(
    parser: argparse.ArgumentParser, argv: list[str] | None, args: argparse.Namespace, inversions: list[str]
) -> None:
    """Raises InputError for a flag that was given and belongs to none of the inversions to be run: a group's title says
    to which it belongs, "inversion NAME (…)" or "inversions NAME and NAME"."""
    missing = object()
    probe = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), missing)))  # defaults stay out
    for group in parser._action_groups:
        kind, *owners = re.split(" and |, | ", (group.title or "").partition(" (")[0])
        if kind not in ("inversion", "inversions") or set(owners) & set(inversions):
            continue
        for action in group._group_actions:
            if getattr(probe, action.dest) is not missing:
                raise InputError(f"--{action.dest} is a setting of inversion {' and '.join(owners)}: leave it out, "
                                 "or take that inversion")  # fmt: skip


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
    settings = inversion_options(args, source_guidance_scale).get(inversion, {})
    return Method(inversion, engine, args.num_inference_steps, args.guidance_scale, settings, engine_options,
                  extras, args.inversion_steps, getattr(args, "null_source_prompt", False))  # fmt: skip


def with_words(
    method: Method, blended_words: tuple[str | None, ...] | None, equalizer: dict[str, float] | None
) -> Method:
    """The method with a picture's words for LocalBlend and reweighting (engine p2p only)."""
    words = {"blended_words": blended_words, "equalizer": equalizer}
    return replace(method, engine_options={**method.engine_options, **words}) if method.engine == "p2p" else method


def load(args: argparse.Namespace):
    """The pipeline that the model flags name, and the side of its pictures."""
    import torch

    from common.pipelines import chosen_resolution, load_pipeline

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed_precision]
    torch.manual_seed(args.seed)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device, dtype)
    resolution = chosen_resolution(pipe, args.resolution)
    if args.adapter or args.elite:
        from spdinv.customised import customise

        customise(pipe, args)
    return pipe, resolution
