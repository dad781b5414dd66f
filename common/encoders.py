"""The networks that look at pictures for the metrics: CLIP, DINO, LPIPS, Inception, and the picturebook's own.

Every loader takes a name: "picturebook" (the miniature that the project carries), a local folder or file, or the name
of published weights, which are looked for in the local cache first and then, unless HF_HUB_OFFLINE is set, fetched.
Pictures are float32 [B, 3, H, W] in [0, 1] everywhere; what a network wants instead is done here, in one place.
"""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.files import one_line
from common.flags import PICTUREBOOK, PICTUREBOOK_FOLDER, chosen_device
from common.model_files import check_weights
from common.runs import InputError

# The encoders of published tables, under the names by which the loaders know them: PIE-Bench, and DreamBooth's two
# with LPIPS on AlexNet and the FID's Inception.
PIE_ENCODERS = {"clip": "openai/clip-vit-large-patch14", "dino": "facebook/dino-vitb8", "lpips": "squeeze"}
DREAMBOOTH_ENCODERS = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dino-vits16", "lpips": "alex",
                       "features": "inception"}  # fmt: skip

TRUNK_FILES = {"alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth",
               "vgg": "vgg16-397923af.pth"}  # fmt: skip
TRUNK_URL = "https://download.pytorch.org/models/"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Clip:
    """CLIP's two towers; `label` names the weights in every score."""

    label: str
    model: nn.Module  # transformers.CLIPModel
    processor: Callable  # transformers.CLIPImageProcessorPil: the classic resize, which the torchvision one only nears
    tokenizer: Callable

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> unit vectors [B, D]. CLIP's own resize works on 8-bit pictures."""
        images = list(to_uint8(pictures).permute(0, 2, 3, 1).cpu().numpy())
        pixels = self.processor(images=images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixels.to(self.model.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1).to(pictures.device)

    @torch.no_grad()
    def embed_text(self, prompts: list[str]) -> Tensor:
        """Prompts -> unit vectors [B, D], on the CPU. Prompts over the tokenizer's limit are cut."""
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        pooled = self.model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1).cpu()


@dataclass(frozen=True)
class Dino:
    """A DINO vision transformer (transformers.ViTModel)."""

    label: str
    model: nn.Module

    def _run(self, pictures: Tensor, pixel_range: float, antialias: bool) -> Tensor:
        size = self.model.config.image_size
        pixels = pictures * pixel_range
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=antialias, align_corners=False)
        pixels = (pixels - IMAGENET_MEAN.to(pixels)) / IMAGENET_STD.to(pixels)
        return self.model(pixels.to(self.model.device)).last_hidden_state

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> class tokens [B, D] of the last layer (not the pooler: DINO has none)."""
        return self._run(pictures, pixel_range=1.0, antialias=True)[:, 0].to(pictures.device)

    @torch.no_grad()
    def keys(self, pictures: Tensor, pixel_range: float = 1.0, antialias: bool = True) -> Tensor:
        """Keys [B, 1 + patches, D] of the last block, heads side by side, class token first. `pixel_range` multiplies
        the pictures before ImageNet's mean and deviation are applied: 1 is right, 255 is what the published PIE-Bench
        scorer does, which also resizes without antialiasing."""
        # The projection is called attention.k_proj or, before transformers renamed it, attention.key.
        names = ("attention.k_proj", "attention.key")
        key_layers = [module for name, module in self.model.named_modules() if name.endswith(names)]
        caught = []
        hook = key_layers[-1].register_forward_hook(lambda module, inputs, output: caught.append(output))
        self._run(pictures, pixel_range, antialias)
        hook.remove()
        return caught[0].to(pictures.device)


@dataclass(frozen=True)
class Lpips:
    """A perceptual distance (Zhang et al., CVPR 2018): feature maps, and a head that weighs their channels."""

    label: str
    features: Callable[[Tensor], list[Tensor]]  # pictures [B, 3, H, W] in [0, 1] -> maps [B, C, h, w]
    head: Callable[[int, Tensor], Tensor]  # number of the layer, squared differences [B, C, h, w] -> [B, 1, h, w]

    @torch.no_grad()
    def layer_maps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Two batches [B, 3, H, W] in [0, 1] -> one distance map [B, 1, h, w] per layer (their Eq. 1, unaveraged)."""
        pairs = zip(self.features(a), self.features(b), strict=True)
        squared = [(unit_channels(x) - unit_channels(y)) ** 2 for x, y in pairs]
        return [self.head(layer, difference).to(a.device) for layer, difference in enumerate(squared)]


@dataclass(frozen=True)
class Embedder:
    """Any further network for the Frechet distance: `embed` maps pictures [B, 3, H, W] in [0, 1] to [B, D]."""

    label: str
    embed: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoders:
    """The networks that judge a table's pictures; None is what it does without. features: of the Frechet distance; of
    the picturebook its classifier's last but one layer. classifier: what reads what a picturebook's picture shows."""

    clip: Clip
    dino: Dino | None
    lpips: Lpips | None
    features: Embedder | None = None
    classifier: nn.Module | None = None


def load_encoders(
    name: str | Path = PICTUREBOOK, device: str | None = None, published: dict[str, str] = PIE_ENCODERS
) -> Encoders:
    """name: "picturebook"; "pie" or "paper", the `published` ones; or a local folder that holds copies of those, such
    as clip-vit-large-patch14/, dino-vitb8/ and squeezenet1_1-b8a52dc0.pth."""
    if name == PICTUREBOOK:
        classifier, place = _classifier(device), chosen_device(device)
        embed = torch.no_grad()(lambda x: classifier.embedding(x.to(place)).to(x.device))
        parts = [load(name, device) for load in (load_clip, load_dino, load_lpips)]
        return Encoders(*parts, Embedder(PICTUREBOOK, embed), classifier)
    folder = None if name in ("pie", "paper") else Path(name)
    clip, dino, lpips = (published.get(part) for part in ("clip", "dino", "lpips"))
    return Encoders(
        load_clip(folder / label(clip) if folder else clip, device),
        load_dino(folder / label(dino) if folder else dino, device) if dino else None,
        load_lpips(lpips, device, folder and folder / TRUNK_FILES[lpips]) if lpips else None,
        load_inception(folder, device) if "features" in published else None,
    )


def load_clip(name: str | Path = PIE_ENCODERS["clip"], device: str | None = None) -> Clip:
    """name: "picturebook", a folder, or a hub id. Raises InputError when the weights are not there or are those of
    another model."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = PICTUREBOOK_FOLDER / "clip" if name == PICTUREBOOK else name
    # As in any Stable Diffusion folder, the picturebook's tokenizer lies beside the models.
    words = PICTUREBOOK_FOLDER / "tokenizer" if name == PICTUREBOOK else name
    model, tokenizer = _pretrained_model(CLIPModel, folder, device), _pretrained(CLIPTokenizer, words)
    if len(tokenizer) != model.config.text_config.vocab_size:  # without files, transformers makes an empty tokenizer
        known, wanted = len(tokenizer), model.config.text_config.vocab_size
        raise InputError(f"the tokenizer at '{words}' has {known} tokens and the CLIP at '{folder}' wants {wanted}")
    return Clip(label(name), model, _pretrained(CLIPImageProcessorPil, folder), tokenizer)


def load_dino(name: str | Path = "facebook/dino-vits16", device: str | None = None) -> Dino:
    """name, errors: as load_clip's."""
    from transformers import ViTModel

    folder = PICTUREBOOK_FOLDER / "dino" if name == PICTUREBOOK else name
    model = _pretrained_model(ViTModel, folder, device, add_pooling_layer=False)
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-6  # DINO's own; the copies on the hub say 1e-12
    return Dino(label(name), model)


def load_lpips(net: str = "squeeze", device: str | None = None, trunk_file: str | Path | None = None) -> Lpips:
    """net: "picturebook", or "alex", "squeeze", "vgg" of the lpips package, version 0.1. The package carries the heads;
    the trunk is torchvision's, in `trunk_file` or in TORCH_HOME/hub/checkpoints, or InputError is raised."""
    place = chosen_device(device)
    if net == PICTUREBOOK:
        features = _classifier(device).features
        return Lpips(net, lambda x: features(x.to(place)), lambda layer, x: x.sum(1, keepdim=True))
    if net not in TRUNK_FILES:
        raise InputError(f"there is no LPIPS network '{net}'; it is one of {', '.join([PICTUREBOOK, *TRUNK_FILES])}")
    import lpips

    path = _weight_file(trunk_file, TRUNK_FILES[net], TRUNK_URL)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # random trunk first: leave the seed alone
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).requires_grad_(False)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises half a dozen kinds for a file that is cut off or something else
        weights = {}
    # lpips cuts the trunk in slices but keeps torchvision's layer numbers: slice2.3.weight is features.3.weight.
    names = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
    if not set(names.values()) <= weights.keys():
        raise InputError(f"{path} is damaged or is not torchvision's {TRUNK_FILES[net]}: download it again")
    check_weights(path, {source: weights[source] for source in names.values()})
    network.net.load_state_dict({name: weights[source] for name, source in names.items()})
    return wrap_lpips(network.to(place), net)


def wrap_lpips(network: nn.Module, name: str) -> Lpips:
    """An lpips.LPIPS module as an `Lpips`. It wants [-1, 1] and then shifts and scales by itself."""
    device = network.scaling_layer.shift.device
    features = lambda x: network.net(network.scaling_layer(x.to(device) * 2 - 1))  # noqa: E731
    return Lpips(name, features, lambda layer, x: network.lins[layer](x))


def load_inception(folder: str | Path | None = None, device: str | None = None) -> Embedder:
    """The Inception of the FID, as clean-fid runs it: bicubic resize of every channel to 299 in floating point. folder:
    where INCEPTION_FILE lies, by default TORCH_HOME/hub/checkpoints; InputError when it does not."""
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    path = _weight_file(folder and Path(folder) / INCEPTION_FILE, INCEPTION_FILE, INCEPTION_URL)
    place, resize = chosen_device(device), build_resizer("clean")
    network = InceptionV3W(str(path.parent), download=False).to(place)

    @torch.no_grad()
    def embed(pictures: Tensor) -> Tensor:
        images = to_uint8(pictures).permute(0, 2, 3, 1).cpu().numpy()
        pixels = torch.stack([torch.from_numpy(resize(image)).permute(2, 0, 1) for image in images])
        return network(pixels.to(place)).to(pictures.device)

    return Embedder("inception", embed)


def label(name: str | Path) -> str:
    """What a score calls these weights: the last part of a hub id or path, so that a copy keeps its name."""
    return Path(name).name


def to_uint8(pictures: Tensor) -> Tensor:
    """[0, 1] -> 8 bits by rounding: exact for pictures that came from 8 bits."""
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)


def unit_channels(features: Tensor) -> Tensor:
    """Each pixel's channel vector at unit length; the 1e-10 is LPIPS's own."""
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def _classifier(device: str | None) -> nn.Module:
    from common.picturebook.classifier import load_classifier

    return load_classifier(chosen_device(device))


def _pretrained(cls: type, name: str | Path, **options):
    """cls.from_pretrained from a folder or the local cache, then from the hub unless that is forbidden."""
    from huggingface_hub import is_offline_mode

    local_first = [True] if Path(name).is_dir() or is_offline_mode() else [True, False]
    for local in local_first:
        try:
            return cls.from_pretrained(str(name), local_files_only=local, **options)
        except Exception as reason:  # a dozen kinds, for a file that is cut short, of another shape or something else
            problem = one_line(reason)
    raise InputError(
        f"no {cls.__name__} at '{name}': give the folder that holds it, or a hub id that is in the local cache "
        f"(`hf download {name}` puts it there) or can be fetched (HF_HUB_OFFLINE unset). It said: {problem}"
    )


def _pretrained_model(cls: type, name: str | Path, device: str | None, **options) -> nn.Module:
    model, report = _pretrained(cls, name, dtype=torch.float32, output_loading_info=True, **options)
    if report["missing_keys"]:  # transformers would fill them with random numbers and only warn
        raise InputError(f"'{name}' holds no complete {cls.__name__}: it lacks {sorted(report['missing_keys'])[0]}")
    check_weights(Path(name), dict(model.named_parameters()))
    return model.to(chosen_device(device)).eval().requires_grad_(False)


def _weight_file(given: str | Path | None, name: str, url: str) -> Path:
    """The given file, or `name` in TORCH_HOME/hub/checkpoints, fetched there once if the network may be used."""
    from huggingface_hub import is_offline_mode

    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file() and not given and not is_offline_mode():
        with contextlib.suppress(OSError):  # URLError is one
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url + name, str(path))  # atomic, unlike clean-fid's own
    if not path.is_file():
        raise InputError(f"no weights at {path}: download {url}{name} and put it there")
    return path
