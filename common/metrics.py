"""Scores of edited and generated pictures, each under one name that says how it was measured.

Functions on pictures (float32 [B, 3, H, W] in [0, 1]) return plain tensors, so that a reader can see the formula.
Result rows store scores under their `score_key`, such as "lpips/pie_official" or "CLIP-T (picturebook)". PIE-Bench has
two protocols:

pie_official   the published scorer with all its quirks (PnP Inversion, ICLR 2024, evaluation code). Scores of "the
               unedited part" multiply both pictures by 1 - mask and average over the whole frame, so that a large mask
               raises the PSNR for free; masked pixels enter LPIPS as -1; structure distance normalises 0..255 pixels as
               if they were 0..1; CLIP sees "the edited part" on black.
pie_corrected  averages over the unedited region alone, 0..1 pixels throughout, antialiased resize. In the compared
               picture the edited region is filled from the source, so that no window or receptive field sees the edit.

Both give NaN where the region they speak of is empty.
"""

import math
import re
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from common.encoders import PIE_ENCODERS, Clip, Dino, Encoders, Lpips, label
from common.runs import InputError

PIE_PROTOCOLS = ("pie_official", "pie_corrected")

# Which encoder a PIE-Bench score uses, and the factor by which the published tables multiply it.
PIE_SCORES = {
    "structure": ("dino", 1e3),
    "psnr": (None, 1.0),
    "lpips": ("lpips", 1e3),
    "mse": (None, 1e4),
    "ssim": (None, 1e2),
    "clip_source": ("clip", 1.0),  # source picture, source prompt
    "clip_whole": ("clip", 1.0),  # edited picture, target prompt
    "clip_edited": ("clip", 1.0),  # its edited part, target prompt
}


def score_key(name: str, encoder: str = "", protocol: str = "") -> str:
    """The name in result rows and tables: name[/protocol][ (encoder)], without the encoder that is prescribed. encoder:
    label of the network that looked; "" for arithmetic on pixels."""
    shown = f" ({encoder})" if encoder != prescribed_encoder(name, protocol) else ""
    return f"{name}/{protocol}{shown}" if protocol else name + shown


def prescribed_encoder(name: str, protocol: str) -> str:
    """The label of the encoder with which the protocol was published; "" where there is none."""
    kind = PIE_SCORES[name][0] if protocol in PIE_PROTOCOLS else None
    return label(PIE_ENCODERS[kind]) if kind else ""


def parse_key(key: str) -> dict[str, str]:
    """The inverse of score_key: "lpips/pie_official (picturebook)" -> its name, protocol and encoder."""
    parts = re.fullmatch(r"(?P<name>.+?)(/(?P<protocol>\w+))?( \((?P<encoder>.+)\))?", key).groupdict(default="")
    return parts | {"encoder": parts["encoder"] or prescribed_encoder(parts["name"], parts["protocol"])}


# Pixels. `weight` [B or 1, 1, H, W] restricts the mean to a region; a region of no weight gives NaN.


def mse(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of two batches [B, 3, H, W] -> [B]."""
    return _mean((a - b) ** 2, weight)


def psnr(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB of two batches [B, 3, H, W] in [0, 1] -> [B]; infinite for equal pictures."""
    return -10 * torch.log10(mse(a, b, weight))


def ssim(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., 2004) of two batches [B, 3, H, W] in [0, 1] -> [B].

    Gaussian window 11 wide, sigma 1.5, K = (0.01, 0.03), population variances. The mean runs over windows that lie
    inside the picture, as in the authors' code and in the torchmetrics of 2023, behind the published PIE-Bench tables;
    today's torchmetrics pads by reflection and counts the border too.
    """
    offsets = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    line = torch.exp(-((offsets / 1.5) ** 2) / 2)
    window = torch.outer(line, line) / line.sum() ** 2
    channels = a.shape[1]

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window.expand(channels, 1, 11, 11), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    spread = blur(a * a) + blur(b * b) - mean_a**2 - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return _mean(similarity, weight if weight is None else weight[..., 5:-5, 5:-5])


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """[B, C, H, W] -> [B]."""
    if weight is None:
        return x.mean((1, 2, 3))
    weight = weight.to(x).expand_as(x)
    return (x * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))


def lpips_distance(a: Tensor, b: Tensor, lpips: Lpips, weight: Tensor | None = None) -> Tensor:
    """Learned perceptual distance (Zhang et al., CVPR 2018, Eq. 1) of two batches [B, 3, H, W] in [0, 1] -> [B]. With a
    weight [B or 1, 1, H, W], each layer's map is enlarged to the picture first (as lpips does for spatial=True)."""
    maps = lpips.layer_maps(a, b)
    if weight is not None:
        maps = [F.interpolate(m, a.shape[-2:], mode="bilinear", align_corners=False) for m in maps]
    return sum(_mean(m, weight) for m in maps)


def truth_scores(truth: Tensor, edited: Tensor, lpips: Lpips) -> dict[str, float]:
    """Nearness of an edit to the true picture, [1, 3, H, W] in [0, 1] both, by score_key."""
    distance = lpips_distance(truth, edited, lpips).item()
    return {"psnr_truth": psnr(truth, edited).item(), score_key("lpips_truth", lpips.label): distance}


def clip_image_similarity(pictures: Tensor, references: Tensor, clip: Clip) -> Tensor:
    """CLIP-I: cosines [A, B] of A pictures with B references; DreamBooth's is their mean (section 4.1)."""
    return clip.embed(pictures) @ clip.embed(references).T


def clip_text_similarity(pictures: Tensor, prompts: list[str], clip: Clip) -> Tensor:
    """CLIP-T: cosines [A, B] of A pictures with B prompts. Not times 100 and not times 2.5, as some papers have it."""
    return clip.embed(pictures) @ clip.embed_text(prompts).to(pictures.device).T


def dino_similarity(pictures: Tensor, references: Tensor, dino: Dino) -> Tensor:
    """DINO: cosines [A, B] of the class tokens of A pictures with those of B references (DreamBooth, section 4.1)."""
    return F.normalize(dino.embed(pictures), dim=-1) @ F.normalize(dino.embed(references), dim=-1).T


def structure_distance(a: Tensor, b: Tensor, dino: Dino, pixel_range: float = 1.0, antialias: bool = True) -> Tensor:
    """DINO structure distance (Tumanyan et al., CVPR 2022, Eq. 3) of two batches [B, 3, H, W] in [0, 1] -> [B]: the
    mean squared difference of the two self-similarities, the cosines between the last block's keys (Dino.keys)."""

    def self_similarity(pictures: Tensor) -> Tensor:
        keys = dino.keys(pictures, pixel_range, antialias)
        norms = keys.norm(dim=-1, keepdim=True)
        return keys @ keys.mT / (norms @ norms.mT).clamp(min=1e-8)

    return ((self_similarity(a) - self_similarity(b)) ** 2).mean((1, 2))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features [n, d] (Heusel et al., NeurIPS 2017, Eq. 6).

    |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)). With centred features A, S_a = A^T A, the eigenvalues
    of S_a S_b are the squared singular values of A B^T, so the last trace is the sum of those: no square root of a
    matrix, and exact also where n <= d leaves the covariances singular. Computed in float64, never below 0.

    Raises InputError for fewer than two rows or features that are not finite; warns where n <= d, because the distance
    of so few pictures is biased upwards and only comparable at the same n.
    """
    n, d = min(len(features_a), len(features_b)), features_a.shape[1]
    if n < 2:
        raise InputError(f"a Frechet distance needs at least two pictures on each side, not {n}")
    if not (features_a.isfinite().all() and features_b.isfinite().all()):
        raise InputError("a Frechet distance needs finite features; these contain NaN or infinity")
    if n <= d:
        warnings.warn(f"Frechet distance of n = {n} pictures in d = {d} dimensions: compare at equal n", stacklevel=2)

    def gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
        features = features.double().cpu()
        mean = features.mean(0)
        centred = (features - mean) / (len(features) - 1) ** 0.5
        return mean, torch.linalg.qr(centred, mode="r").R  # R^T R = A^T A with at most d rows

    (mean_a, a), (mean_b, b) = gaussian(features_a), gaussian(features_b)
    distance = ((mean_a - mean_b) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(distance.item(), 0.0)


def pie_scores(
    source: Tensor, edited: Tensor, mask: Tensor, source_prompt: str, target_prompt: str, encoders: Encoders,
    protocol: str = "pie_official",
) -> dict[str, float]:  # fmt: skip
    """All PIE-Bench scores of one edit, by score_key, e.g. {"psnr/pie_official": 31.2, …}.

    source, edited: [1, 3, H, W] in [0, 1], as read back from 8-bit files. mask: [H, W] or [1, 1, H, W], 1 where the
    edit may change something, 0 elsewhere (EditItem.mask). Prompts without brackets. PSNR is in dB, CLIP scores are
    100 max(cosine, 0); nothing is multiplied as in the tables. InputError for an unknown protocol or unequal sizes.
    """
    if protocol not in PIE_PROTOCOLS:
        raise InputError(f"there is no protocol '{protocol}'; it is one of {', '.join(PIE_PROTOCOLS)}")
    if not source.shape[-2:] == edited.shape[-2:] == mask.shape[-2:]:
        sizes = ", ".join(f"{x.shape[-2]}x{x.shape[-1]}" for x in (source, edited, mask))
        raise InputError(f"source, edited picture and mask must be of one size, not {sizes}")
    mask = mask.to(source).reshape(1, 1, *mask.shape[-2:])
    kept = 1 - mask

    if protocol == "pie_official":
        a, b, weight = source * kept, edited * kept, None
        structure = structure_distance(source, edited, encoders.dino, pixel_range=255.0, antialias=False)
    else:
        a, b, weight = source, source * mask + edited * kept, kept
        structure = structure_distance(source, edited, encoders.dino)
    unedited = {"psnr": psnr(a, b, weight), "lpips": lpips_distance(a, b, encoders.lpips, weight),
                "mse": mse(a, b, weight), "ssim": ssim(a, b, weight)}  # fmt: skip
    values = {name: value.item() if kept.any() else math.nan for name, value in unedited.items()}
    values["structure"] = structure.item()

    def told(picture: Tensor, prompt: str) -> float:
        """As torchmetrics' CLIPScore: 100 max(cosine, 0)."""
        return 100 * clip_text_similarity(picture, [prompt], encoders.clip).clamp(min=0).item()

    values["clip_source"], values["clip_whole"] = told(source, source_prompt), told(edited, target_prompt)
    values["clip_edited"] = told(edited * mask, target_prompt) if mask.any() else math.nan
    labels = {name: getattr(encoders, kind).label if kind else "" for name, (kind, _) in PIE_SCORES.items()}
    return {score_key(name, labels[name], protocol): values[name] for name in PIE_SCORES}
