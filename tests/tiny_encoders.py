"""Small random CLIP, DINO and LPIPS networks in files with the published names, and a naive reading of what they do."""

import math
import warnings
from pathlib import Path

import lpips
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from tests.tiny import write_tokenizer


def pictures(count: int = 2, size: int = 40, seed: int = 0) -> torch.Tensor:
    """8-bit pictures with some structure: blurred noise."""
    noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise[..., ::4, ::4], size=(size, size), mode="bicubic").clamp(0, 1) * 255).round() / 255


def write_encoders(root: Path) -> Path:
    """root/clip, root/tokenizer and root/dino with the files and key names of the published ones, in half precision."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(write_tokenizer(root / "tokenizer", max_length=16))
    layers = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=16, eos_token_id=tokenizer.eos_token_id)
    layers["projection_dim"] = 8
    words["bos_token_id"] = tokenizer.bos_token_id
    looks = dict(image_size=32, patch_size=8)
    clip = CLIPModel(CLIPConfig(text_config=layers | words, vision_config=layers | looks, projection_dim=8))
    clip.text_projection.weight.data.neg_()  # with this seed, cosines are then well above 0
    dino = ViTModel(ViTConfig(**layers, **looks), add_pooling_layer=False)
    torch.manual_seed(0)
    for parameter in dino.parameters():  # its own truncated normal is another one in each version of torch
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    for name, model in {"clip": clip, "dino": dino}.items():
        model.half().save_pretrained(root / name)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(root / "clip")
    write_tokenizer(root / "clip", max_length=16)
    # Files of OpenAI's time also carry this buffer.
    weights = load_file(root / "clip" / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(weights, root / "clip" / "model.safetensors", metadata={"format": "pt"})
    return root


def random_lpips(net: str) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def write_trunk(net: str, path) -> torch.nn.Sequential:
    """Random convolutions in a file with torchvision's key names; the classifier, which is never run, is left out."""
    constructor = {"alex": "alexnet", "squeeze": "squeezenet1_1", "vgg": "vgg16"}[net]
    with torch.device("meta"):
        trunk = getattr(torchvision.models, constructor)(weights=None).features
    trunk = trunk.to_empty(device="cpu")
    for i, parameter in enumerate(trunk.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
        parameter.data = noise * (2 / parameter[0].numel()) ** 0.5
    torch.save({f"features.{key}": value for key, value in trunk.state_dict().items()}, path)
    return trunk


def naive_structure_distance(folder, a, b, pixel_range, antialias):
    """float64, the last block's keys computed from the file's own weights, one cosine at a time."""
    model = ViTModel.from_pretrained(folder / "dino", dtype=torch.float64, add_pooling_layer=False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.eps = 1e-6
    weights = {key: value.double() for key, value in load_file(folder / "dino" / "model.safetensors").items()}
    block = "encoder.layer.1."
    similarities = []
    for picture in (a, b):
        pixels = torchvision.transforms.functional.resize(picture.double() * pixel_range, 32, antialias=antialias)
        pixels = torchvision.transforms.functional.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        hidden = model(pixels, output_hidden_states=True).hidden_states[-2]
        scale, shift = (weights[f"{block}layernorm_before.{part}"] for part in ("weight", "bias"))
        hidden = F.layer_norm(hidden, (16,), scale, shift, 1e-6)
        key = block + "attention.attention.key."
        keys = (hidden @ weights[key + "weight"].T + weights[key + "bias"])[0].detach().numpy()
        norms = [math.sqrt((k**2).sum()) for k in keys]
        cosines = [[(p * q).sum() / max(m * n, 1e-8) for q, n in zip(keys, norms, strict=True)]
                   for p, m in zip(keys, norms, strict=True)]  # fmt: skip
        similarities.append(np.array(cosines))
    assert similarities[0].shape == (17, 17)
    return ((similarities[0] - similarities[1]) ** 2).mean()
