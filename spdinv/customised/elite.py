"""ELITE (arXiv 2302.13848): a picture of a subject becomes words that Stable Diffusion 1.4 understands, at once.

A mapper turns five layers of CLIP's vision tower into five word vectors, the subject and what surrounds it, for the
place of PLACEHOLDER in prompts (add_subject). The checkpoint, global_mapper.pt, also holds keys and values of every
cross-attention layer, trained with the mapper (use_key_values); the released SPDInv-ELITE loads and never uses them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image

from common.encoders import Clip
from common.images import to_tensor
from common.model_files import check_weights, move_weights
from common.runs import InputError
from spdinv.customised.loading import read
from spdinv.customised.words import add_word
from spdinv.options import PLACEHOLDER

CLIP_LAYERS = (4, 8, 12, 16)  # besides the last one, which comes first
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)  # of CLIP's training pictures
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)


@dataclass(frozen=True, eq=False)
class Elite:
    """weights: global_mapper.pt by name. vision: the vision tower of clip-vit-large-patch14."""

    weights: dict[str, torch.Tensor]
    vision: torch.nn.Module


def load_elite(path: str | Path, clip: Clip) -> Elite:
    """Read global_mapper.pt. Raises InputError if it is something else, or was trained on another CLIP."""
    weights = {name: value for name, value in read(Path(path)).items() if isinstance(value, torch.Tensor)}
    check_weights(Path(path), weights)
    vision = clip.model.vision_model
    for name in (f"{kind}_{i}.{layer}" for kind in ("mapping", "mapping_patch") for i in range(5) for layer in "01346"):
        if not {f"{name}.weight", f"{name}.bias"} <= weights.keys():
            raise InputError(f"{path} is no global_mapper.pt of ELITE: it lacks {name}")
    wanted, width = weights["mapping_0.0.weight"].shape[1], vision.config.hidden_size
    if wanted != width or vision.config.num_hidden_layers < max(CLIP_LAYERS):
        raise InputError(f"{path} reads vision features of width {wanted} up to layer {max(CLIP_LAYERS)}; {clip.label} "
                         f"has {vision.config.num_hidden_layers} of width {width}: take its own CLIP")  # fmt: skip
    return Elite({name: value.float().to(clip.model.device) for name, value in weights.items()}, vision)


def add_subject(pipe: DiffusionPipeline, elite: Elite, picture: Image.Image, words: slice = slice(0, 1)) -> None:
    """From now on PLACEHOLDER in a prompt stands for the subject of `picture`. words: which of the five; the first
    alone as released with SPDInv (token_index 0), all of them as ELITE draws by default; later tokens of the prompt
    then move to the right. A second call puts another subject in."""
    add_word(pipe, PLACEHOLDER, map_to_words(elite.weights, vision_features(elite.vision, picture))[0, words])


@torch.no_grad()
def vision_features(vision: torch.nn.Module, picture: Image.Image) -> list[torch.Tensor]:
    """Five layers of the vision tower, [1, 1 + patches, C] each, class token first: the last one, then CLIP_LAYERS. The
    picture is resized whole to the tower's square, bicubic as ELITE does."""
    side = (vision.config.image_size,) * 2
    pixels = (to_tensor(picture.resize(side, Image.Resampling.BICUBIC)) - MEAN) / STD
    seen = vision(pixels.to(next(vision.parameters()).device), output_hidden_states=True)
    return [seen.last_hidden_state, *(seen.hidden_states[layer] for layer in CLIP_LAYERS)]


def map_to_words(weights: dict[str, torch.Tensor], features: list[torch.Tensor]) -> torch.Tensor:
    """ELITE's global mapper: five features [B, 1 + patches, C] to five words [B, 5, D]; in each, the class token's
    image and the mean of the patches' images are added."""
    words = [mlp(weights, f"mapping_{i}", seen[:, 0]) + mlp(weights, f"mapping_patch_{i}", seen[:, 1:]).mean(1)
             for i, seen in enumerate(features)]  # fmt: skip
    return torch.stack(words, 1)


def mlp(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear, LayerNorm, LeakyReLU, twice, and Linear: parts 0, 1, (2), 3, 4, (5) and 6 of the published file."""
    for linear, norm in ((0, 1), (3, 4)):
        x = F.linear(x, weights[f"{name}.{linear}.weight"], weights[f"{name}.{linear}.bias"])
        x = F.layer_norm(x, x.shape[-1:], weights[f"{name}.{norm}.weight"], weights[f"{name}.{norm}.bias"])
        x = F.leaky_relu(x)
    return F.linear(x, weights[f"{name}.6.weight"], weights[f"{name}.6.bias"])


def use_key_values(pipe: DiffusionPipeline, elite: Elite, path: str | Path) -> None:
    """Let every cross-attention layer use ELITE's trained keys and values, for all words and in the inversion too, as
    ELITE itself draws. Raises InputError if the file (`path`, for the message) lacks those of a layer."""
    layers = [name for name, _ in pipe.unet.named_modules() if name.endswith(".attn2")]
    places = {f"{layer}.to_{x}.weight": f"{layer.replace('.', '_')}_to_{x}.weight" for layer in layers for x in "kv"}
    if missing := sorted(set(places.values()) - elite.weights.keys()):
        raise InputError(f"{path} was made for another UNet: it lacks {missing[0]}")
    move_weights(pipe.unet, {own: elite.weights[theirs] for own, theirs in places.items()}, Path(path))


@contextmanager
def trained_key_values(pipe: DiffusionPipeline, elite: Elite, path: str | Path) -> Iterator[None]:
    """use_key_values within this context only."""
    before = {name: value.clone() for name, value in pipe.unet.named_parameters() if ".attn2.to_" in name}
    use_key_values(pipe, elite, path)
    try:
        yield
    finally:
        move_weights(pipe.unet, before, Path(path))
