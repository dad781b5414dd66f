"""From a name to diffusers' PaintByExamplePipeline, from there to a folder and back; a subject's weights on top.

The pipeline class serves as the holder of the five parts (unet, vae, image_encoder, scheduler, feature_extractor), so
that common.pipelines and diffusers itself can work with it. Its own sampling is not used.
"""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated import paint_by_example as module
from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from common.encoders import load_clip
from common.files import refused_as
from common.flags import MARKER, chosen_device
from common.lora import LORA_FILE
from common.model_files import find_folder, inspect_folder, load_model, move_weights, quietly, read_weights
from common.pipelines import PRECISIONS, is_picturebook, load_pipeline
from common.runs import InputError, atomic_path
from image_inpaint.conditioning import CHANNELS, new_encoder, trained_part, widen
from image_inpaint.lora import load_lora

CLASSES = {cls.__name__: cls for cls in (PaintByExamplePipeline, StableDiffusionPipeline)}
CLIP = "openai/clip-vit-large-patch14"  # whose tower Paint-by-Example reads references with
FULL = {"unet": "diffusion_pytorch_model.safetensors", "image_encoder": "model.safetensors"}  # of whole-model tuning
# The published index names a library "paint_by_example", and diffusers has moved that module.
diffusers.pipelines.paint_by_example = module


def load(
    name: str = "picturebook", device: str | None = None, dtype: torch.dtype = torch.float32
) -> PaintByExamplePipeline:
    """An image-guided inpainting model: picturebook, a folder that train.py --stage pretrain wrote, or a folder or hub
    id in the published layout (Fantasy-Studio/Paint-by-Example). Frozen, in eval mode.

    Raises InputError, in one sentence, for anything that cannot be loaded whole.
    """
    folder = find_folder(name, accepted=CLASSES)
    kind, _ = inspect_folder(folder, CLASSES, ("unet", "vae"))
    prefix = "inpaint_" if kind is StableDiffusionPipeline else ""  # the picturebook holds both
    if prefix and not (folder / MARKER).is_file():
        raise InputError(f"{folder} is a text-to-image model: make an inpainting model of it with image_inpaint.train "
                         "--stage pretrain, or take Fantasy-Studio/Paint-by-Example")  # fmt: skip
    if prefix and not (folder / "inpaint_unet").is_dir():
        raise InputError(f"{folder} holds no inpainting model yet: python -m common.picturebook.build inpaint")
    with refused_as(f"Cannot load the model in {folder}"), quietly():
        unet = load_model(UNet2DConditionModel, folder / f"{prefix}unet", dtype)
        encoder = load_model(PaintByExampleImageEncoder, folder / f"{prefix}image_encoder", dtype)
        vae = load_model(AutoencoderKL, folder / "vae", dtype)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False, timestep_spacing="leading",
                                                  steps_offset=1)  # fmt: skip
        means = next((place for place in (folder / "feature_extractor", folder / "clip") if place.is_dir()), None)
        processor = CLIPImageProcessor.from_pretrained(means, local_files_only=True) if means else CLIPImageProcessor()
    if unet.config.in_channels != CHANNELS:
        raise InputError(f"{folder}: its UNet takes {unet.config.in_channels} channels, and {CHANNELS} are needed")
    return assemble(unet, vae, encoder, scheduler, processor, folder, device)


def load_tuned(
    name: str, weights: str | Path | None = None, device: str | None = None, mixed_precision: str = "no"
) -> tuple[PaintByExamplePipeline, str]:
    """A model (`load`) with a training's weights on it, if any, in a number format; and "untuned", "lora" or "full"."""
    pipe = load(name, device)
    kind = load_weights(pipe, weights) if weights else "untuned"
    with quietly():
        return pipe.to(dtype=PRECISIONS[mixed_precision]), kind


def assemble(unet, vae, encoder, scheduler, processor, folder: Path, device: str | None) -> PaintByExamplePipeline:
    """The five parts in one pipeline, moved to the device."""
    with quietly():
        pipe = PaintByExamplePipeline(vae, encoder, unet, scheduler, None, processor, requires_safety_checker=False)
    pipe.register_to_config(_name_or_path=str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(chosen_device(device))


def from_text_to_image(
    name: str, clip: str | None = None, device: str | None = None, sd_prior: bool = True
) -> PaintByExamplePipeline:
    """The start of pre-training: a text-to-image model with five more input channels and an untrained mapper. clip:
    whose vision tower reads the references; the picturebook's own there, else ViT-L/14. sd_prior False: random weights
    in the UNet (Sec. 5.4)."""
    pipe = load_pipeline(name, device)
    if not isinstance(pipe, StableDiffusionPipeline):
        raise InputError(f"{name} is no Stable Diffusion 1.x or 2.x: its inpainting model cannot be built")
    folder = Path(pipe.name_or_path)
    eye = load_clip(clip or ("picturebook" if (folder / MARKER).is_file() else CLIP), device)
    unet = widen(pipe.unet, sd_prior).eval().requires_grad_(False)
    encoder = new_encoder(eye.model.vision_model, unet.config.cross_attention_dim).to(unet.device, unet.dtype)
    processor = CLIPImageProcessor.from_dict(eye.processor.to_dict())
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return assemble(unet, pipe.vae, encoder.requires_grad_(False), scheduler, processor, folder, device)


def save(pipe: PaintByExamplePipeline, folder: str | Path) -> None:
    """A whole model in the published layout, atomically; diffusers loads it where paint_by_example has been put back,
    and so does `load`. A picturebook's folder keeps its marker, so that its preset applies to it too."""
    with atomic_path(folder) as temporary:
        pipe.save_pretrained(temporary)
        if is_picturebook(pipe):
            (temporary / MARKER).write_text(json.dumps({"name": "picturebook"}) + "\n")


# ------------------------------------------------------------------------------------------------ a subject's weights


def save_full(pipe: PaintByExamplePipeline, folder: str | Path) -> list[Path]:
    """Whole-model tuning: unet/ as save_pretrained writes it, image_encoder/ with what was trained of it. Returns the
    files of weights."""
    folder = Path(folder)
    with atomic_path(folder / "unet") as temporary:
        pipe.unet.save_pretrained(temporary)
    with atomic_path(folder / "image_encoder") as temporary:
        temporary.mkdir(parents=True)
        weights = {name: p.detach().cpu().contiguous() for name, p in trained_part(pipe.image_encoder).items()}
        save_file(weights, temporary / FULL["image_encoder"], metadata={"format": "pt"})
    return [folder / part / name for part, name in FULL.items()]


def load_weights(pipe: PaintByExamplePipeline, path: str | Path) -> str:
    """A training's --output_dir (or its LoRA file) onto the pipeline; returns "lora" or "full". Raises InputError if
    there is nothing there, or it was trained on another model."""
    path = Path(path)
    file = path / LORA_FILE if path.is_dir() else path
    if file.is_file():
        load_lora(pipe.unet, file)
        return "lora"
    if not (path / "unet").is_dir():
        raise InputError(f"{path} holds neither {LORA_FILE} nor unet/; python -m image_inpaint.train makes them")
    for part, own in (("unet", pipe.unet.state_dict()), ("image_encoder", trained_part(pipe.image_encoder))):
        file = path / part / FULL[part]
        weights, _ = read_weights(file)
        if alone := own.keys() ^ weights.keys():
            raise InputError(f"{file} was made for another model: only one of the two has {min(alone)}")
        move_weights(getattr(pipe, part), weights, file)
    return "full"
