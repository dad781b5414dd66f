"""What is trained and how it is saved, for each parameter space that the paper compares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from common.lora import LORA_FILE, write_lora
from common.runs import atomic_path
from svdiff import files
from svdiff.basis import Bases
from svdiff.spectral import SpectralLayer, SpectralNorm, attach, dead_share, shifts_of
from svdiff.subsets import chosen

LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]  # of all attention, as diffusers' DreamBooth-LoRA


@dataclass(frozen=True, eq=False)
class Trainable:
    """groups: for the optimiser, {"params", "lr"}. weights: the trained tensors by name, for checkpoints. base: the
    hash of every part that is trained. save: writes the result into a folder and returns the files. dead: for shifts,
    {"dead_<part>": share of the singular values that are at zero, where no gradient reaches them any more}."""

    groups: list[dict]
    weights: dict[str, nn.Parameter]
    base: dict[str, str]
    save: Callable[[Path], list[Path]]
    dead: Callable[[], dict[str, float]] = dict

    @property
    def count(self) -> int:
        return sum(weight.numel() for weight in self.weights.values())


def parts_of(pipe, text_encoder: bool) -> list[str]:
    """The parts of a pipeline that are tuned: its UNet, and its text encoder(s) where wanted."""
    return [part for part in files.PARTS if getattr(pipe, part, None) is not None and (part == "unet" or text_encoder)]


def spectral_shifts(pipe, args, bases: Bases) -> Trainable:
    """Layers of the chosen subset (and all of the text encoder) in activation space, with zero shifts."""
    attached, base = {}, {}
    for part in parts_of(pipe, args.train_text_encoder):
        model = getattr(pipe, part)
        base[part] = bases.base(part)
        paths = chosen(model, args.parameter_subset if part == "unet" else "UNet")
        attached[part] = attach(model, paths, bases.find(part, paths))
    layers = {f"{part}.{path}": layer for part, of_part in attached.items() for path, layer in of_part.items()}
    rates = {SpectralLayer: args.learning_rate, SpectralNorm: args.learning_rate_1d}
    groups = [{"params": [layer.delta for layer in layers.values() if isinstance(layer, kind)], "lr": rate}
              for kind, rate in rates.items()]  # fmt: skip

    def save(folder: Path) -> list[Path]:
        for part, of_part in attached.items():
            about = {"model": args.pretrained_model_name_or_path}
            about |= {"subset": args.parameter_subset} if part == "unet" else {}
            files.write_shifts(folder / files.file_name(part), shifts_of(of_part), base[part], part, **about)
        return [folder / files.file_name(part) for part in attached]

    def dead() -> dict[str, float]:
        return {f"dead_{part}": dead_share(of_part.values()) for part, of_part in attached.items()}

    weights = {name: layer.delta for name, layer in layers.items()}
    return Trainable([group for group in groups if group["params"]], weights, base, save, dead)


def full_weights(pipe, args, bases: Bases, subset: str = "") -> Trainable:
    """Every parameter (DreamBooth), float32; with a `subset` of Table 1 its layers' weights alone."""
    models = {part: getattr(pipe, part) for part in parts_of(pipe, args.train_text_encoder)}
    base = {part: bases.base(part) for part in models}
    weights = {f"{part}.{name}": parameter for part, model in models.items()
               for name, parameter in model.requires_grad_(True).named_parameters()}  # fmt: skip
    if subset:
        kept = {f"unet.{path}.weight" for path in chosen(pipe.unet, subset)}
        for name in weights.keys() - kept:
            weights.pop(name).requires_grad_(False)

    def save(folder: Path) -> list[Path]:
        for part, model in models.items():
            with atomic_path(folder / part) as temporary:
                model.save_pretrained(temporary)
        return [file for part in models for file in (folder / part).glob("*.safetensors")]

    return Trainable([{"params": list(weights.values()), "lr": args.learning_rate}], weights, base, save)


def lora(pipe, args, bases: Bases) -> Trainable:
    """peft's LoRA on the attention of the UNet, alpha = rank."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    base = {"unet": bases.base("unet")}
    torch.manual_seed(args.seed)  # A starts at random
    config = LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian", target_modules=LORA_LAYERS)
    pipe.unet.add_adapter(config)
    weights = {f"unet.{name}": p for name, p in pipe.unet.named_parameters() if p.requires_grad}

    def save(folder: Path) -> list[Path]:
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
        return [write_lora(folder, "unet", state, {"format": "pt"})]

    return Trainable([{"params": list(weights.values()), "lr": args.learning_rate}], weights, base, save)


# What a training may leave, besides config.json.
RESULTS = [LORA_FILE, *files.PARTS, *map(files.file_name, files.PARTS)]
SPACES: dict[str, Callable[..., Trainable]] = {"svdiff": spectral_shifts, "full": full_weights, "lora": lora,
                                               "key_value": partial(full_weights, subset="UNet-CA-KV")}  # fmt: skip
