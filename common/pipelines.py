"""From a name to a ready latent diffusion model, and the calls that every method makes on it.

A pipeline is a plain diffusers StableDiffusionPipeline (SD 1.x and 2.x) or StableDiffusionXLPipeline; what is added
here is safe loading, and encode_prompt / predict_noise / encode_image / decode_latents with one meaning for all three.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from common.ddim import Schedule, to_eps
from common.files import InputError
from common.flags import MARKER, chosen_device
from common.model_files import PICTUREBOOK, find_folder, load_whole, match_tokenizers

log = logging.getLogger(__name__)

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # of --mixed_precision


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
        items = [items] if isinstance(items, int) else items
        added = self.added and {name: value[items] for name, value in self.added.items()}
        return Conditioning(self.embeds[items], added)

    @staticmethod
    def cat(*conds: "Conditioning") -> "Conditioning":
        """One batch after the other, e.g. cat(uncond, cond)."""
        names = conds[0].added
        added = names and {name: torch.cat([cond.added[name] for cond in conds]) for name in names}
        return Conditioning(torch.cat([cond.embeds for cond in conds]), added)

    def with_embeds(self, embeds: torch.Tensor) -> "Conditioning":
        """The same conditioning with other hidden states [B, L, D]."""
        return Conditioning(embeds, self.added)


# ---------------------------------------------------------------------------------------------------------- loading


def load_pipeline(
    name: str | os.PathLike = PICTUREBOOK, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Load "picturebook", a local diffusers folder, or a hub id (local cache first, network only if it is not there).

    The models come frozen and in eval mode, in float32 unless `dtype` says otherwise, on the GPU if there is one; the
    scheduler is DDIM with "leading" timesteps, the safety checker is off. HF_HUB_OFFLINE keeps it off the network.
    Raises InputError, in one sentence, for anything that cannot be loaded whole.
    """
    device = chosen_device(device)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    folder = find_folder(str(name))
    pipe = load_whole(folder, dtype=dtype or torch.float32, safety_checker=None, requires_safety_checker=False,
                      feature_extractor=None, image_encoder=None)  # fmt: skip
    match_tokenizers(pipe)
    if "beta_start" not in pipe.scheduler.config:  # DDIM would take noise levels of its own
        raise InputError(f"{folder}: {type(pipe.scheduler).__name__} has no noise levels for DDIM (a model of flows, "
                         "or EDM's?).")  # fmt: skip
    spaced = {"timestep_spacing": "leading", "steps_offset": pipe.scheduler.config.get("steps_offset", 1)}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **spaced, clip_sample=False)
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise InputError(f"{folder} is no text-to-image model: its UNet takes more than latents (inpainting? depth?).")
    if (predicted := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"{folder}: the model predicts {predicted!r}; epsilon, v_prediction and sample are known.")
    check_latents(folder, pipe.vae.config)
    logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)  # encode_prompt itself names the lost words
    return pipe.to(device)


def check_latents(folder: Path, config: Mapping) -> None:
    """Raises InputError for a VAE whose latents would be scaled otherwise than the model's were (`scaled_latents`)."""
    scale, shift = config["scaling_factor"], config["shift_factor"] or 0
    numbers = isinstance(scale, int | float) and isinstance(shift, int | float) and math.isfinite(shift)
    if not numbers or not 0 < scale < math.inf or config.get("latents_mean") or config.get("latents_std"):
        raise InputError(f"{folder}: vae/config.json has a scaling_factor that is none, or means of the latents beside "
                         "it, which are not known here.")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- calls


def is_picturebook(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline was loaded from a picturebook folder (known by its marker file, not by its name)."""
    return (Path(pipe.name_or_path or "") / MARKER).is_file()


def native_resolution(pipe: DiffusionPipeline) -> int:
    """Side of the square pictures the model was trained on, in pixels. InputError where its config does not say it."""
    if not isinstance(side := pipe.unet.config.sample_size, int) or side < 1:
        raise InputError(f"{pipe.name_or_path}: unet/config.json says {side} for sample_size, the side of its latents")
    return side * pipe.vae_scale_factor


def chosen_resolution(pipe: DiffusionPipeline, resolution: int | None) -> int:
    """--resolution, or the model's own. Raises InputError for a side that the VAE, or diffusers (8 pixels), refuses."""
    unit = max(8, pipe.vae_scale_factor)
    if resolution and resolution % unit:
        raise InputError(f"--resolution {resolution} is no multiple of {unit} pixels, which this model needs")
    return resolution or native_resolution(pipe)


def encode_prompt(pipe: DiffusionPipeline, prompts: list[str], size: tuple[int, int] | None = None) -> Conditioning:
    """Text to conditioning, through the pipeline's own encode_prompt; "" is the null text of guidance.

    size: height and width in pixels that SDXL is told (default: its native resolution). SDXL's null text is all zeros
    where its config asks for that, as in diffusers. Differentiable. Words beyond the tokenizer's limit are dropped, and
    named in a log line. Raises InputError if prompts is not a list of strings.
    """
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"prompts must be a list of strings, got {prompts!r}.")
    for text in prompts:
        warn_of_lost_words(pipe.tokenizer, text)
    how = {"device": pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    encoded = pipe.encode_prompt(list(prompts), **how)
    if not isinstance(pipe, StableDiffusionXLPipeline):
        return Conditioning(encoded[0])
    embeds, pooled = encoded[0], encoded[2]
    if pipe.config.force_zeros_for_empty_prompt:
        keep = torch.tensor([text != "" for text in prompts], device=embeds.device)
        embeds, pooled = embeds * keep[:, None, None], pooled * keep[:, None]
    height, width = size or (native_resolution(pipe),) * 2
    time_ids = torch.tensor([[height, width, 0, 0, height, width]], device=embeds.device, dtype=embeds.dtype)
    return Conditioning(embeds, {"text_embeds": pooled, "time_ids": time_ids.repeat(len(prompts), 1)})


def warn_of_lost_words(tokenizer, text: str) -> None:
    """Log the words of a prompt that lie beyond the tokenizer's limit, which every encoder drops."""
    room = tokenizer.model_max_length - 2  # start and end tokens
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(spans) > room:
        first = text.rfind(" ", 0, spans[room][0] + 1) + 1
        log.warning("The prompt is too long for %d tokens and was cut; lost: %r", room, text[first:])


def predict_noise(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, t: int | torch.Tensor, cond: Conditioning
) -> torch.Tensor:
    """eps_theta(z_t, t, c) [B,4,h,w]: one UNet call, its output converted to noise by the schedule's prediction type. z
    [B,4,h,w] latents at timestep t (an int, or [B]); cond a batch of B. Differentiable in z and cond."""
    output = pipe.unet(
        z.to(pipe.unet.dtype), t, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added, return_dict=False
    )[0]
    return to_eps(schedule, output.to(z.dtype), z, t)


def encode_image(
    pipe: DiffusionPipeline, picture: torch.Tensor, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Picture [B,3,H,W] in [0,1] to scaled latents [B,4,h,w]: the posterior's mean, or a sample of it.
    Raises InputError as `posterior` does."""
    found = posterior(pipe, picture)
    return scaled_latents(pipe, found.sample(generator) if sample else found.mean)


def posterior(pipe: DiffusionPipeline, picture: torch.Tensor):
    """The VAE's posterior of a picture [B,3,H,W] in [0,1], as diffusers' DiagonalGaussianDistribution, unscaled. Raises
    InputError for another shape, sides that are no multiple of the VAE's factor, NaN or values outside [0,1]."""
    factor = pipe.vae_scale_factor
    if picture.ndim != 4 or picture.shape[1] != 3 or picture.shape[2] % factor or picture.shape[3] % factor:
        raise InputError(f"Pictures must be [B,3,H,W], H and W multiples of {factor}; got {tuple(picture.shape)}.")
    if not (picture.min() >= 0 and picture.max() <= 1):  # also false for NaN
        raise InputError("Pictures must hold values in [0,1]; this one has NaN or values outside.")
    with without_overflow(pipe.vae) as vae:
        return vae.encode((picture * 2 - 1).to(pipe.device, vae.dtype)).latent_dist


def scaled_latents(pipe: DiffusionPipeline, z: torch.Tensor) -> torch.Tensor:
    """The VAE's latents [B,4,h,w] as the UNet takes them."""
    config = pipe.vae.config
    return ((z - (config.shift_factor or 0)) * config.scaling_factor).to(pipe.unet.dtype)


def decode_latents(pipe: DiffusionPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents [B,4,h,w] to pictures [B,3,H,W] float32, clamped to [0,1]."""
    config = pipe.vae.config
    z = 1 / config.scaling_factor * latents + (config.shift_factor or 0)  # rounded as the released code rounds
    with without_overflow(pipe.vae) as vae:
        return (vae.decode(z.to(vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


@contextmanager
def without_overflow(vae: diffusers.AutoencoderKL) -> Iterator[diffusers.AutoencoderKL]:
    """The VAE, in float32 for as long as it is used if it, or autocast, is in float16 and its config says that it
    overflows there (SDXL's does)."""
    kind, half = vae.device.type, vae.dtype == torch.float16
    cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if not (half or cast) or not vae.config.force_upcast:
        yield vae
        return
    vae.to(torch.float32)
    try:
        with torch.autocast(kind, enabled=False):
            yield vae
    finally:
        if half:
            vae.to(torch.float16)  # the pipeline's own calls expect it so
