"""Scores of inpainted pictures: likeness of the region (Sec. 5.1), realism of the set, and what the paper leaves out.

DINO and CLIP are mean cosines of the generated region, the bounding box of the hole, with each of the subject's
photographs, cut to the subject. FID and KID are of a set of pictures against a set of real ones. The rest is ours: is
the background kept, is there a seam, and on the picturebook, where the true picture is known: how much of the way from
the same thing without its marking to the true one is the likeness, does a classifier that the generator never saw find
the thing, are its pixels the true ones, and how much of the hole does it fill?
"""

import functools
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from common.encoders import DREAMBOOTH_ENCODERS, Encoders, load_encoders
from common.images import to_tensor
from common.metrics import clip_image_similarity, dino_similarity, frechet_distance, lpips_distance, psnr, score_key
from image_inpaint.data.benchmark import CONDITIONS, Item, Subject
from image_inpaint.masks import box_of

SQUARE = 224  # crops are squashed to this before CLIP, whose own processor would cut a long crop's ends off
COLOURS = 500  # of thing and of background, that pixels of the hole are told apart by
ANCHORS = 6  # scenes of a subject that its scale of likeness is measured on
LEAST_SCALE = 0.1  # of DINO, from the twin to the truth: an encoder that tells them no further apart tells no identity


@functools.cache
def load_eyes(name: str, device: str | None = None) -> Encoders:
    """name: "picturebook", or "paper": DINO ViT-S/16 as stated, CLIP ViT-B/32 (no variant is stated), Inception."""
    return load_encoders(name, device, DREAMBOOTH_ENCODERS)


def squares(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of any proportions, squashed: [B, 3, 224, 224] in [0, 1]."""
    return torch.cat([to_tensor(picture.resize((SQUARE, SQUARE), Image.Resampling.BICUBIC)) for picture in pictures])


def likeness(item: Item, subject: Subject, made: Image.Image, eyes: Encoders) -> float:
    """Mean DINO of the hole's box with the subject's photographs."""
    region, references = squares([made.crop(box_of(item.fill))]), squares(subject.crops)
    return dino_similarity(region, references, eyes.dino).mean().item()


def anchors(subject: Subject, items: Sequence[Item], eyes: Encoders) -> tuple[float, float] | None:
    """A subject's scale of likeness: the mean of its twin without marking and of the true picture, over its first
    items. None where nobody knows, or the two are too near each other."""
    own = [item for item in items if item.subject == subject.name][:ANCHORS]
    if not own or any(item.twin is None for item in own):
        return None
    low, high = (sum(likeness(item, subject, getattr(item, name), eyes) for item in own) / len(own)
                 for name in ("twin", "truth"))  # fmt: skip
    return (low, high) if high - low >= LEAST_SCALE else None


def item_scores(
    item: Item, subject: Subject, made: Image.Image, eyes: Encoders, scale: tuple[float, float] | None = None
) -> dict[str, float]:
    """All scores of one picture, by score_key. scale: anchors of the subject."""
    region, references = squares([made.crop(box_of(item.fill))]), squares(subject.crops)
    source, picture, fill = to_tensor(item.source), to_tensor(made), item.fill[None, None]
    like = likeness(item, subject, made, eyes)
    clip = clip_image_similarity(region, references, eyes.clip).mean().item()
    found = {
        score_key("DINO", eyes.dino.label, "region"): like,
        score_key("CLIP-I", eyes.clip.label, "region"): clip,
        "psnr_kept": psnr(source, picture, 1 - fill).item(),
        "rim": 255 * (step_across(picture, fill) - step_across(source, fill)),
    }  # fmt: skip
    if scale is not None:
        found[score_key("likeness", eyes.dino.label)] = (like - scale[0]) / (scale[1] - scale[0])
    if item.condition != CONDITIONS[0]:
        found[score_key("DINO", eyes.dino.label, "unseen")] = like
    if item.truth is not None:
        truth, thing = to_tensor(item.truth), item.region[None, None].float()
        found["psnr_thing"] = psnr(truth, picture, thing).item()
        found[score_key("lpips_thing", eyes.lpips.label)] = lpips_distance(truth, picture, eyes.lpips, thing).item()
        found["filled"] = thing_share(picture, truth, source, thing, fill)
        found["filled_excess"] = found["filled"] - thing_share(truth, truth, source, thing, fill)
    if eyes.classifier is not None and item.kind is not None:
        found[score_key("thing_seen", "picturebook")] = float(thing_seen(item, picture, eyes.classifier))
    return found


def step_across(picture: Tensor, fill: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels on two sides of the hole's rim. picture [1, 3, H, W]."""
    total = count = 0.0
    for axis in (2, 3):
        size = picture.shape[axis] - 1
        crosses = (fill.narrow(axis, 1, size) != fill.narrow(axis, 0, size)).float()
        step = (picture.narrow(axis, 1, size) - picture.narrow(axis, 0, size)).abs().mean(1, keepdim=True)
        total, count = total + (step * crosses).sum().item(), count + crosses.sum().item()
    return total / count if count else float("nan")


def thing_share(picture: Tensor, truth: Tensor, empty: Tensor, thing: Tensor, fill: Tensor) -> float:
    """The share of the hole in which the thing stands (the claim of Sec. 5.4: a model trained on tight masks fills all
    of a loose one): pixels whose colour is nearer to one of the true thing's than to all of the empty scene's. A
    background that was painted anew is no thing. Pictures [1, 3, H, W]; thing, fill [1, 1, H, W], 1 = there."""

    def colours(image: Tensor, place: Tensor) -> Tensor:
        found = image[0][:, place[0, 0] > 0].T
        return found[:: max(1, len(found) // COLOURS)]

    own, ground = colours(truth, thing), colours(empty, torch.ones_like(fill))
    pixels = picture[0][:, fill[0, 0] > 0].T
    return (torch.cdist(pixels, own).amin(1) < torch.cdist(pixels, ground).amin(1)).float().mean().item()


def thing_seen(item: Item, picture: Tensor, classifier) -> bool:
    """Whether the classifier finds the subject's kind among the surest ones, as many as there should be things. It
    knows no markings, and reads seven of eight true pictures so; colours of marked things it reads seldom."""
    (reading,) = classifier.read(picture)
    return item.kind in {thing["kind"] for thing in reading.things[: item.things]}


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID (Binkowski et al., ICLR 2018): unbiased squared maximum mean discrepancy of features [n, d] under the kernel
    (x.y / d + 1)^3, over all pairs and without random subsets."""
    a, b = a.double().cpu(), b.double().cpu()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).diagonal().sum()) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return (within[0] + within[1] - 2 * kernel(a, b).mean()).item()


@torch.no_grad()
def set_scores(real: Sequence[Image.Image], made: Sequence[Image.Image], eyes: Encoders) -> dict[str, dict]:
    """FID and KID of whole pictures; n: how many were made, n_real: how many they are compared with. From 240 pictures
    the 2048-dimensional covariance of the FID is singular and its value biased upwards: compare at equal n only. KID is
    unbiased."""
    if eyes.classifier is not None:  # the picturebook's features are of its own size
        real, made = ([picture.resize((64, 64)) for picture in one] for one in (real, made))
    features = [torch.cat([eyes.features.embed(to_tensor(picture)) for picture in one]) for one in (real, made)]
    if min(len(real), len(made)) < 2:
        return {}
    found = {"FID": frechet_distance(*features), "KID": kernel_distance(*features)}
    counts = {"n": len(made), "n_real": len(real)}
    return {score_key(name, eyes.features.label): {**dict.fromkeys(("mean", "low", "high"), value), **counts}
            for name, value in found.items()}  # fmt: skip
