"""Trained weights <-> the folder `models`, in the layout of a Stable Diffusion pipeline, float16 safetensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.deprecated.paint_by_example import PaintByExamplePipeline
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer, ViTModel

from common.picturebook.classifier import AttributeClassifier
from common.picturebook.stages.unet import new_scheduler
from common.picturebook.tokenizer import build_tokenizer

MODELS = Path(__file__).parent / "models"
MARKER = "picturebook.json"  # scripts know the picturebook by this file, whatever name was typed


def half(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {key: value.half().contiguous() if value.is_floating_point() else value for key, value in state.items()}


def write(folder: Path, weights: dict[str, torch.Tensor], config: dict, name: str = "model.safetensors") -> None:
    """The file of weights stands whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.part"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(folder / name)
    config = {key: value for key, value in config.items() if key != "_name_or_path"}  # a path of this computer
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def ship_tokenizer_and_scheduler(models: Path = MODELS) -> CLIPTokenizer:
    """The parts of the pipeline that are not trained, its index and the marker file."""
    tokenizer = build_tokenizer(models / "tokenizer")
    new_scheduler().save_pretrained(models / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (models / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (models / MARKER).write_text(json.dumps({"name": "picturebook", "resolution": 64}, indent=2) + "\n")
    return tokenizer


def ship_vae(vae: AutoencoderKL, scaling_factor: float, models: Path = MODELS) -> None:
    vae.register_to_config(scaling_factor=round(scaling_factor, 4), force_upcast=False)
    config = json.loads(vae.to_json_string())
    write(models / "vae", half(vae), config, "diffusion_pytorch_model.safetensors")


def ship_unet(unet: UNet2DConditionModel, models: Path = MODELS) -> None:
    write(models / "unet", half(unet), json.loads(unet.to_json_string()), "diffusion_pytorch_model.safetensors")


def ship_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, models: Path = MODELS) -> None:
    """The whole CLIP to clip/, and its text tower to text_encoder/ under the names of published SD files
    (`text_model.…`, which transformers of every version loads)."""
    weights = half(clip)
    write(models / "clip", weights, clip.config.to_dict() | {"architectures": ["CLIPModel"], "dtype": "float16"})
    size = clip.config.vision_config.image_size
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True, "size": {"shortest_edge": size}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": size, "width": size},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": True,
    }  # fmt: skip
    (models / "clip" / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    for file in (models / "tokenizer").iterdir():
        shutil.copy(file, models / "clip" / file.name)
    text = {key: value for key, value in weights.items() if key.startswith("text_model.")}
    config = clip.config.text_config.to_dict() | {"architectures": ["CLIPTextModel"], "dtype": "float16"}
    write(models / "text_encoder", text, config)


def ship_dino(dino: ViTModel, models: Path = MODELS) -> None:
    write(models / "dino", half(dino), dino.config.to_dict() | {"architectures": ["ViTModel"], "dtype": "float16"})


def ship_classifier(classifier: AttributeClassifier, models: Path = MODELS) -> None:
    channels = [stage.body[0].out_channels for stage in classifier.stages]
    write(models / "classifier", half(classifier), {"channels": channels})


def ship_inpainter(inpainter: nn.ModuleDict, models: Path = MODELS) -> None:
    """A UNet of nine input channels to inpaint_unet/, picture tower and mapper to inpaint_image_encoder/, under the
    names of Paint-by-Example's published files (`model.vision_model.…`)."""
    unet, encoder = inpainter["unet"], inpainter["encoder"]
    name = "diffusion_pytorch_model.safetensors"
    write(models / "inpaint_unet", half(unet), json.loads(unet.to_json_string()), name)
    weights = {
        key.replace("model.", "model.vision_model.", 1) if key.startswith("model.") else key: value
        for key, value in half(encoder).items()
    }
    config = encoder.config.to_dict() | {"architectures": ["PaintByExampleImageEncoder"], "dtype": "float16"}
    write(models / "inpaint_image_encoder", weights, config)


def shipped_inpainter(models: Path = MODELS) -> nn.ModuleDict:
    """What stage inpaint trains, {"unet", "encoder"}, float32."""
    unet = UNet2DConditionModel.from_pretrained(models / "inpaint_unet", torch_dtype=torch.float32)
    encoder = PaintByExampleImageEncoder.from_pretrained(models / "inpaint_image_encoder", dtype=torch.float32)
    return nn.ModuleDict({"unet": unet, "encoder": encoder}).eval().requires_grad_(False)


def shipped_inpainting(models: Path = MODELS) -> PaintByExamplePipeline:
    """Image-guided inpainting with the shipped weights in diffusers' own pipeline, float32."""
    inpainter = shipped_inpainter(models)
    pipe = PaintByExamplePipeline(
        vae=shipped_vae(models),
        image_encoder=inpainter["encoder"],
        unet=inpainter["unet"],
        scheduler=DDIMScheduler.from_pretrained(models / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shipped_pipeline(models: Path = MODELS) -> StableDiffusionPipeline:
    """The shipped text-to-image pipeline, float32."""
    pipe = StableDiffusionPipeline.from_pretrained(models, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shipped_text_encoder(models: Path = MODELS) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(models / "text_encoder", dtype=torch.float32).eval().requires_grad_(False)


def shipped_vae(models: Path = MODELS) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(models / "vae", dtype=torch.float32).eval().requires_grad_(False)


def shipped_unet(models: Path = MODELS) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(models / "unet", dtype=torch.float32)


def shipped_clip(models: Path = MODELS) -> CLIPModel:
    return CLIPModel.from_pretrained(models / "clip", dtype=torch.float32).eval().requires_grad_(False)


def shipped_dino(models: Path = MODELS) -> ViTModel:
    model = ViTModel.from_pretrained(models / "dino", dtype=torch.float32, add_pooling_layer=False)
    return model.eval().requires_grad_(False)
