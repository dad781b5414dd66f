"""From a name to diffusers' PaintByExamplePipeline, from there to a folder and back; a subject's weights on top.

The pipeline class serves as the holder of the five parts (unet, vae, image_encoder, scheduler, feature_extractor), so
that common.pipelines and diffusers itself can work with it. Its own sampling is not used.
"""

import json
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated import paint_by_example as module
from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.model_files import check_weights, find_folder, inspect_folder, load_model, one_line
from common.pipelines import is_picturebook, load_pipeline
from common.runs import InputError, atomic_path
from image_inpaint.conditioning import CHANNELS, new_encoder, trained_part, widen
from image_inpaint.lora import LORA_FILE, load_lora

CLASSES = {cls.__name__: cls for cls in (PaintByExamplePipeline, StableDiffusionPipeline)}
CLIP = "openai/clip-vit-large-patch14"  # whose tower Paint-by-Example reads references with
MARKER = "picturebook.json"


def load(
    name: str = "picturebook", device: str | None = None, dtype: torch.dtype = torch.float32
) -> PaintByExamplePipeline:
    """An image-guided inpainting model: picturebook, a folder that train.py --stage pretrain wrote, or a folder or hub
    id in the published layout (Fantasy-Studio/Paint-by-Example). Frozen, in eval mode.

    Raises InputError, in one sentence, for anything that cannot be loaded whole.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # The published index names a library "paint_by_example", and diffusers has moved that module.
    diffusers.pipelines.paint_by_example = module
    folder = find_folder(name, bool(constants.HF_HUB_OFFLINE), CLASSES)
    kind, _ = inspect_folder(folder, CLASSES, ("unet", "vae"))
    if kind is PaintByExamplePipeline:
        places = {"unet": folder / "unet", "image_encoder": folder / "image_encoder"}
    elif (folder / MARKER).is_file():  # the picturebook, which holds a text-to-image model too
        if not (folder / "inpaint_unet").is_dir():
            raise InputError(f"{folder} holds no inpainting model yet: python -m common.picturebook.build inpaint")
        places = {"unet": folder / "inpaint_unet", "image_encoder": folder / "inpaint_image_encoder"}
    else:
        raise InputError(
            f"{folder} is a text-to-image model: make an inpainting model of it with image_inpaint.train --stage "
            "pretrain, or take Fantasy-Studio/Paint-by-Example"
        )
    try:
        unet = load_model(UNet2DConditionModel, places["unet"], dtype)
        encoder = load_encoder(places["image_encoder"], dtype)
        vae = load_model(diffusers.AutoencoderKL, folder / "vae", dtype)
        scheduler = read_scheduler(folder / "scheduler")
        processor = read_processor(folder)
    except InputError:
        raise
    except Exception as error:  # whatever the libraries make of a file that is not what its name says
        raise InputError(f"Cannot load the model in {folder}: {one_line(error)}") from error
    if unet.config.in_channels != CHANNELS:
        raise InputError(f"{folder}: its UNet takes {unet.config.in_channels} channels, and {CHANNELS} are needed")
    return assemble(unet, vae, encoder, scheduler, processor, folder, device)


def assemble(unet, vae, encoder, scheduler, processor, folder: Path, device: str | None) -> PaintByExamplePipeline:
    """The five parts in one pipeline, moved to the device."""
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()  # it says that the pipeline is deprecated
    try:
        pipe = PaintByExamplePipeline(vae, encoder, unet, scheduler, None, processor, requires_safety_checker=False)
    finally:
        diffusers.utils.logging.set_verbosity(before)
    pipe.register_to_config(_name_or_path=str(folder))
    pipe.set_progress_bar_config(disable=True)
    try:
        return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError):
        raise InputError(f"There is no device {device!r} here; leave it out, or take cpu.") from None


def in_precision(pipe: PaintByExamplePipeline, name: str) -> PaintByExamplePipeline:
    """--mixed_precision of sampling: all networks in that number format (nothing to do for "no")."""
    return pipe if name == "no" else pipe.to(dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[name])


def load_encoder(folder: Path, dtype: torch.dtype) -> PaintByExampleImageEncoder:
    """The published encoder (`model.vision_model.…`, `mapper.…`), refused if a weight is missing."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # it says that a picture tower is part of a CLIP
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = PaintByExampleImageEncoder.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    finally:
        transformers.utils.logging.set_verbosity(before)
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{folder} lacks {len(missing)} of the model's weights, {missing[0]} among them.")
    return model.eval().requires_grad_(False)


def read_scheduler(folder: Path) -> DDIMScheduler:
    """The model's noise levels; sampling makes the scheduler that it wants from it (sampling.make_scheduler)."""
    return DDIMScheduler.from_pretrained(folder, clip_sample=False, timestep_spacing="leading", steps_offset=1)


def read_processor(folder: Path):
    """CLIP's mean and deviation: feature_extractor/, or the picturebook's own under clip/."""
    from transformers import CLIPImageProcessorPil

    places = [folder / part for part in ("feature_extractor", "clip") if (folder / part).is_dir()]
    if not places:
        return CLIPImageProcessorPil()  # OpenAI's constants
    return CLIPImageProcessorPil.from_pretrained(places[0], local_files_only=True)


def from_text_to_image(
    name: str, clip: str | None = None, device: str | None = None, sd_prior: bool = True
) -> PaintByExamplePipeline:
    """The start of pre-training: a text-to-image model with five more input channels and an untrained mapper.

    clip: a CLIP whose vision tower reads the references; the picturebook's own there, else ViT-L/14. sd_prior False:
    random weights in the UNet (Sec. 5.4).
    """
    from transformers import CLIPImageProcessorPil

    from common.encoders import load_clip

    pipe = load_pipeline(name, device)
    if not isinstance(pipe, StableDiffusionPipeline):
        raise InputError(f"{name} is no Stable Diffusion 1.x or 2.x: its inpainting model cannot be built")
    folder = Path(pipe.name_or_path)
    clip = clip or ("picturebook" if (folder / MARKER).is_file() else CLIP)
    eye = load_clip(clip, device)
    unet = widen(pipe.unet, sd_prior).eval().requires_grad_(False)
    encoder = new_encoder(eye.model.vision_model, unet.config.cross_attention_dim).to(unet.device, unet.dtype)
    side = eye.model.config.vision_config.image_size
    processor = CLIPImageProcessorPil(
        image_mean=eye.processor.image_mean, image_std=eye.processor.image_std, size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
    )  # fmt: skip
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return assemble(unet, pipe.vae, encoder.requires_grad_(False), scheduler, processor, folder, device)


def save(pipe: PaintByExamplePipeline, folder: str | Path) -> None:
    """A whole model in the published layout, atomically; diffusers loads it where paint_by_example has been put back,
    and so does `load`. A picturebook's folder keeps its marker, so that its preset applies to it too."""
    index = {
        "_class_name": "PaintByExamplePipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        for part in ("unet", "vae", "image_encoder", "scheduler", "feature_extractor"):
            getattr(pipe, part).save_pretrained(temporary / part)
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        if is_picturebook(pipe):
            (temporary / MARKER).write_text(json.dumps({"name": "picturebook"}) + "\n")


# ------------------------------------------------------------------------------------------------ a subject's weights


def save_full(pipe: PaintByExamplePipeline, folder: str | Path) -> list[Path]:
    """Whole-model tuning: unet/ as save_pretrained writes it, image_encoder/ with what was trained of it. Returns the
    files of weights."""
    from safetensors.torch import save_file

    folder = Path(folder)
    with atomic_path(folder / "unet") as temporary:
        pipe.unet.save_pretrained(temporary)
    weights = {name: p.detach().cpu().contiguous() for name, p in trained_part(pipe.image_encoder).items()}
    with atomic_path(folder / "image_encoder") as temporary:
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    return [*(folder / "unet").glob("*.safetensors"), folder / "image_encoder" / "model.safetensors"]


def load_weights(pipe: PaintByExamplePipeline, path: str | Path) -> str:
    """A training's --output_dir (or its LoRA file) onto the pipeline; returns "lora" or "full".

    Raises InputError if there is nothing there, or it was trained on another model.
    """
    path = Path(path)
    file = path / LORA_FILE if path.is_dir() else path
    if file.is_file():
        load_lora(pipe.unet, file)
        return "lora"
    if not (path / "unet").is_dir():
        raise InputError(
            f"{path} holds neither {LORA_FILE} nor unet/; python -m image_inpaint.train --output_dir {path} makes them"
        )
    unet = load_model(UNet2DConditionModel, path / "unet", pipe.unet.dtype)
    fit(pipe.unet, unet.state_dict(), path / "unet")
    if (path / "image_encoder").is_dir():
        try:
            weights = load_file(path / "image_encoder" / "model.safetensors")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path / 'image_encoder'} is damaged ({one_line(error)}); train again") from None
        check_weights(path / "image_encoder", weights)
        own = trained_part(pipe.image_encoder)
        if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
            raise InputError(f"{path / 'image_encoder'} was trained on another model: names or shapes differ")
        pipe.image_encoder.load_state_dict(weights, strict=False)
    return "full"


def fit(model: nn.Module, weights: dict[str, torch.Tensor], where: Path) -> None:
    """load_state_dict, refused in one sentence where names or shapes differ."""
    own = model.state_dict()
    check_weights(where, weights)
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise InputError(f"{where} was trained on another model: names or shapes of its weights differ")
    model.load_state_dict(weights)
