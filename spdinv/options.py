"""The flags that the scripts share, and what they mean to the method. Nothing heavy is imported here."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.runs import InputError

# What takes the place of the paper's defaults on the picturebook; to be tuned on its validation split only.
PICTUREBOOK_PRESET: dict[str, Any] = {}

INVERSION_NAMES = ("ddim", "spd")  # keys of inversions.INVERSIONS and engines.ENGINES, which are heavy to import
ENGINE_NAMES = ("none", "p2p")


@dataclass(frozen=True)
class Method:
    """An inversion, an engine and their settings; the defaults are those of the paper (Sec. 4.1 and 4.4).

    inversion: a key of inversions.INVERSIONS; inversion_options: keyword arguments of its `invert`.
    engine: a key of engines.ENGINES; engine_options: keyword arguments of its function.
    """

    inversion: str = "spd"
    engine: str = "p2p"
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    inversion_options: dict[str, Any] = field(default_factory=dict)
    engine_options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.inversion}+{self.engine}"


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    """An argparse type: a number of `kind` from low to high."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:  # also false for NaN
            raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'}"
                                             f" from {low} to {high}")  # fmt: skip
        return value

    return parse


def word_factor(text: str) -> tuple[str, float]:
    """An argparse type: WORD=FACTOR."""
    word, _, factor = text.rpartition("=")
    if not word:
        raise argparse.ArgumentTypeError(f"{text!r} is not WORD=FACTOR, such as blue=2")
    return word, number(float, 0)(factor)


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


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), default=50, help="T, DDIM steps (paper, Sec. 4.1)")
    add(
        "--guidance_scale",
        type=number(float, 0),
        default=7.5,
        help="of classifier-free guidance while editing, not while inverting (paper, Sec. 4.1)",
    )
    spd = parser.add_argument_group("inversion spd (paper, Alg. 1)")
    spd.add_argument(
        "--solver", choices=("adamw", "sgd"), default="adamw", help="adamw: the released code; sgd: the paper's formula"
    )
    spd.add_argument("--spd_rounds", type=number(int, 0), default=25, help="K (paper, Sec. 4.4); 0 is DDIM inversion")
    spd.add_argument("--spd_learning_rate", type=number(float, 0), default=1e-3, help="eta (paper, Sec. 4.4)")
    spd.add_argument(
        "--spd_threshold", type=number(float, 0), default=5e-6, help="delta (paper, Sec. 4.4); 0 never stops early"
    )
    p2p = parser.add_argument_group("engine p2p (Prompt-to-Prompt)")
    p2p.add_argument(
        "--controller",
        choices=("refine", "replace"),
        default="refine",
        help="refine: tokens aligned (PIE-Bench and the released SPDInv); replace: word for word",
    )
    p2p.add_argument(
        "--cross_replace_steps",
        type=number(float, 0, 1),
        default=0.4,
        help="fraction of the steps with the source's cross-attention (PIE-Bench; released SPDInv: 0.8)",
    )
    p2p.add_argument("--self_replace_steps", type=number(float, 0, 1), default=0.6,
                     help="fraction of the steps with the source's self-attention (PIE-Bench)")  # fmt: skip


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse, with the picturebook's preset in place of the defaults where the model is a picturebook."""
    args = parser.parse_args(argv)
    if is_picturebook_folder(args.pretrained_model_name_or_path) and PICTUREBOOK_PRESET:
        parser.set_defaults(**PICTUREBOOK_PRESET)
        args = parser.parse_args(argv)
        print(f"picturebook preset: {json.dumps(PICTUREBOOK_PRESET)} (flags override it)", file=sys.stderr)
    return args


def is_picturebook_folder(name: str) -> bool:
    """Whether the model is a picturebook, known by its marker file, before anything is loaded."""
    return name == "picturebook" or (Path(name).expanduser() / "picturebook.json").is_file()


def method_of(args: argparse.Namespace, inversion: str, engine: str) -> Method:
    """The method that the flags describe; the words of a picture (to blend, to reweight) come on top."""
    spd = {
        "rounds": args.spd_rounds,
        "learning_rate": args.spd_learning_rate,
        "threshold": args.spd_threshold,
        "solver": args.solver,
    }
    p2p = {
        "controller": args.controller,
        "cross_replace_steps": args.cross_replace_steps,
        "self_replace_steps": args.self_replace_steps,
    }
    inversion_options, engine_options = {"spd": spd}.get(inversion, {}), {"p2p": p2p}.get(engine, {})
    return Method(inversion, engine, args.num_inference_steps, args.guidance_scale, inversion_options, engine_options)


def with_words(method: Method, blended_words: tuple[str, str] | None, equalizer: dict[str, float] | None) -> Method:
    """The method with a picture's words for LocalBlend and reweighting (engine p2p only)."""
    words = {"blended_words": blended_words, "equalizer": equalizer}
    return replace(method, engine_options={**method.engine_options, **words}) if method.engine == "p2p" else method


def load(args: argparse.Namespace):
    """The pipeline that the model flags name, and the side of its pictures."""
    import torch

    from common.pipelines import load_pipeline, native_resolution

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[args.mixed_precision]
    torch.manual_seed(args.seed)
    pipe = load_pipeline(args.pretrained_model_name_or_path, args.device, dtype)
    resolution = args.resolution or native_resolution(pipe)
    if resolution % pipe.vae_scale_factor:
        raise InputError(f"--resolution {resolution} is no multiple of this model's {pipe.vae_scale_factor} pixels")
    return pipe, resolution
