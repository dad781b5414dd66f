"""The flags that the scripts share, and what they mean to the method. Nothing heavy is imported here."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.flags import check_writable, is_picturebook_folder, local_folder, number, show_config
from common.runs import InputError
from pixels.thresholds import THRESHOLDS

DRAWN = ("picturebook", "compositions")  # data sets that need no folder
SCHEDULER_NAMES = ("own", "ddim", "euler", "ddpm", "pndm")
RELEASED_NEGATIVE = "blurry, shadow polaroid photo, scary angry pose"


@dataclass(frozen=True)
class Sampling:
    """What a backbone is told. strength or, if given, denoising_start: t_ds^max. negative_prompt None: the null text.
    guidance_scale: up to 1 the prompt alone is run. refiner_start: of SDXL's two stages; image_embedding: Kandinsky's.
    """

    prompt: str = ""
    negative_prompt: str | None = None
    guidance_scale: float = 5.0
    num_inference_steps: int = 50
    strength: float | None = 1.0
    denoising_start: float | None = None
    refiner_start: float = 0.8
    image_embedding: str = "prior"


# What each kind of model runs with unless flags say otherwise. sd, refiner and kandinsky: the released demos, which
# made the paper's pictures as far as one can tell. sdxl: the released pipeline's own defaults (no demo runs the base
# alone). picturebook: tuned on its validation split.
PRESETS: dict[str, dict[str, Any]] = {
    "sd": {"num_inference_steps": 3, "strength": 1.0, "guidance_scale": 0.0, "negative_prompt": ""},
    "sdxl": {"num_inference_steps": 50, "strength": 0.3, "guidance_scale": 5.0},
    "refiner": {"num_inference_steps": 100, "denoising_start": 0.6, "guidance_scale": 17.5,
                "negative_prompt": RELEASED_NEGATIVE},
    "kandinsky": {"num_inference_steps": 100, "strength": 0.05, "guidance_scale": 4.0, "negative_prompt": ""},
    "picturebook": {"num_inference_steps": 50, "strength": 0.2, "guidance_scale": 1.0},
}  # fmt: skip
PIPELINE_KINDS = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "refiner",
    "KandinskyV22Pipeline": "kandinsky",
    "KandinskyV22Img2ImgPipeline": "kandinsky",
}
KNOWN_IDS = {  # so that --print_config can answer without a download
    "stabilityai/stable-diffusion-2-1-base": "sd",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-xl-refiner-1.0": "refiner",
    "kandinsky-community/kandinsky-2-2-decoder": "kandinsky",
}
# The two readings of the algorithm; flags of their own override either.
ALGORITHMS = {
    "released": {"schedule": "released", "noise": "fixed", "posterior": "sample"},
    "paper": {"schedule": "paper", "noise": "fresh", "posterior": "mean"},
}


def add_model_flags(parser: argparse.ArgumentParser, output_dir: str) -> None:
    add = parser.add_argument
    add("--pretrained_model_name_or_path", default="picturebook",
        help="picturebook, a local folder in diffusers layout, or a hub id: SD 1.x or 2.x, SDXL base, SDXL refiner "
        "(released: stabilityai/stable-diffusion-xl-refiner-1.0), Kandinsky 2.2 decoder")  # fmt: skip
    add("--refiner_model_name_or_path", help="SDXL's refiner, after the base, in the same loop")
    add("--prior_model_name_or_path", default="kandinsky-community/kandinsky-2-2-prior", help="for Kandinsky 2.2 only")
    add("--scheduler", choices=SCHEDULER_NAMES, default="own", help="own: the one in the model's folder, as released")
    add("--output_dir", default=output_dir, help="folder for results")
    add("--height", type=number(int, 8), help="of the frame in pixels; the model's own by default (released: 1024)")
    add("--width", type=number(int, 8), help="of the frame in pixels; the model's own by default (released: 1024)")
    add("--device", help="cpu, cuda, cuda:1, ...; a GPU if there is one by default")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="number format (released: fp16)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of every random number, drawn on the CPU")
    add("--print_config", action="store_true", help="print what all flags resolve to, and stop")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--threshold", choices=THRESHOLDS, default="linear", help="how fast greys are let go (paper: linear)")
    add("--num_inference_steps", type=number(int, 1, 1000),
        help="of the whole schedule (released: 100 on SDXL's refiner and Kandinsky, 3 on SD 2)")  # fmt: skip
    add("--strength", type=number(float, 0, 1),
        help="t_ds^max: the last such part of the steps is run (released: 1 on SD 2, 0.05 on Kandinsky)")  # fmt: skip
    add("--denoising_start", type=number(float, 0, 1), help="t_ds^max in another way: start at timestep "
        "(1 - this) * 1000 and ignore --strength (released: 0.6 on SDXL's refiner)")  # fmt: skip
    add("--guidance_scale", type=number(float, 0), help="classifier-free guidance, off up to 1 (released: 17.5 on "
        "SDXL's refiner, 0 on SD 2, 4 on Kandinsky)")  # fmt: skip
    add("--prompt", default="", help="what the edit may also follow (paper: empty but in Fig. 5)")
    add("--negative_prompt", help=f"counts at a guidance above 1 alone (released on SDXL's refiner: "
        f"{RELEASED_NEGATIVE!r})")  # fmt: skip
    add("--algorithm", choices=ALGORITHMS, default="released", help="released: N network calls, thresholds i / N, one "
        "noise per picture, a sample of the VAE's posterior; paper: thresholds 0 to 1, new noise at every step, its "
        "mean")  # fmt: skip
    add("--schedule", choices=("released", "paper"), help="thresholds alone as in one of the two")
    add("--noise", choices=("fixed", "fresh", "shared"), help="per picture; new at every step; one for all pictures")
    add("--posterior", choices=("sample", "mean"), help="of the VAE")
    add("--composite", choices=("none", "latent", "pixel"), default="none", help="put white regions of the source back "
        "at the end (paper and released code: none)")  # fmt: skip
    add("--black_point", type=number(float, 0, 1), default=0, help="greys up to this count as black (released: 0)")
    add("--refiner_start", type=number(float, 0, 1), default=0.8, help="where the refiner takes over from the base")
    add("--image_embedding", choices=("prior", "exemplar"), default="prior", help="Kandinsky is told by: the prior's "
        "drawing from the prompt (released), or CLIP's embedding of the exemplar")  # fmt: skip


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    args = parser.parse_args(argv)
    if args.strength is not None and args.denoising_start is not None:
        raise InputError("--strength and --denoising_start are two ways to say the same; give one of them")
    if args.strength == 0:
        raise InputError("--strength 0 leaves no step to run; the least useful one is 1 / --num_inference_steps")
    if args.black_point == 1:
        raise InputError("--black_point 1 makes every map black; give less than 1")
    if not args.print_config:
        check_writable(Path(args.output_dir))
    return args


def kind_of(name: str) -> str | None:
    """The preset that suits a model, before it is loaded; None for an unknown hub id."""
    if is_picturebook_folder(name):
        return "picturebook"
    try:
        index = json.loads((local_folder(name) / "model_index.json").read_text(encoding="utf-8"))
        return PIPELINE_KINDS.get(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return KNOWN_IDS.get(name)


def sampling_of(args: argparse.Namespace, kind: str | None) -> Sampling:
    """What the backbone is told: flags, and the preset of this kind of model for those not given."""
    given = {name: getattr(args, name) for name in Sampling.__dataclass_fields__}
    preset = PRESETS.get(kind, {})
    if given["strength"] is not None or given["denoising_start"] is not None:
        preset = preset | {"strength": None, "denoising_start": None}
    return Sampling(**{name: preset.get(name) if value is None else value for name, value in given.items()})


def surgery_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of surgery.Surgery."""
    chosen = {name: getattr(args, name) for name in ("schedule", "noise", "posterior")}
    chosen = {name: value or ALGORITHMS[args.algorithm][name] for name, value in chosen.items()}
    return chosen | {"threshold": args.threshold, "composite": args.composite, "black_point": args.black_point}


def config_shown(args: argparse.Namespace) -> bool:
    """Whether --print_config asks for no more than what the flags come to, as far as that is known before the model is
    loaded, which is printed then."""
    kind = kind_of(args.pretrained_model_name_or_path)
    return show_config(args, kind=kind, sampling=asdict(sampling_of(args, kind)), surgery=surgery_of(args))


def check_kind(args: argparse.Namespace, kind: str) -> None:
    """InputError for a flag that this kind of model has no use for."""
    kandinsky = kind == "kandinsky"
    if args.posterior and kandinsky:
        raise InputError("--posterior is of a VAE that has one; Kandinsky's gives the latents themselves: leave it out")
    if args.image_embedding != "prior" and not kandinsky:
        raise InputError(f"--image_embedding is Kandinsky's, and this model is of the kind {kind}: leave it out")
    if args.refiner_start != 0.8 and not args.refiner_model_name_or_path:
        raise InputError("--refiner_start says where a refiner takes over: give --refiner_model_name_or_path too")


def load(args: argparse.Namespace):
    """(Model, what it is told, frame (height, width)) of the flags. One line says which preset applies, and what the
    flags have made of it."""
    from common.pipelines import PRECISIONS
    from pixels.backbones import load_model

    name, dtype = args.pretrained_model_name_or_path, PRECISIONS[args.mixed_precision]
    model = load_model(name, args.scheduler, args.refiner_model_name_or_path, args.prior_model_name_or_path,
                       args.device, dtype)  # fmt: skip
    check_kind(args, model.kind)
    kind = "picturebook" if is_picturebook_folder(name) else model.kind
    sampling, size = sampling_of(args, kind), frame_size(args, model.native_resolution, model.unit)
    values = [f"{name} {value!r}" for name, value in asdict(sampling).items() if value is not None]
    print(f"{kind} preset, with flags: {', '.join(values)}", file=sys.stderr)
    return model, sampling, size


def frame_size(args: argparse.Namespace, native: int, unit: int) -> tuple[int, int]:
    """--height and --width, by default the model's own. InputError for a side that is no multiple of `unit`."""
    size = (args.height or native, args.width or native)
    for name, side in zip(("height", "width"), size, strict=True):
        if side % unit:
            raise InputError(f"--{name} {side} is no multiple of {unit} pixels, which this model needs")
    return size
