"""Pictures of a personalised model, and DreamBench's three scores of them (Ruiz et al., CVPR 2023, section 4).

DINO and CLIP-I are the mean cosine over all pairs of generated and real pictures of the subject, CLIP-T that of picture
and prompt without the rare token.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from common.data import fill_prompt
from common.encoders import DREAMBOOTH_ENCODERS, INCEPTION_FILE, Encoders, load_encoders
from common.metrics import clip_image_similarity, clip_text_similarity, dino_similarity, score_key
from common.runs import InputError


def load_eyes(name: str, device: str | None = None, fid: bool = False) -> Encoders:
    """name: "picturebook"; "published", ViT-B/32 and ViT-S/16 as in the DreamBooth paper; or a folder with copies of
    these. fid: with the FID's Inception, if the published ones or a folder have it. InputError if one is missing."""
    fid = fid and (name == "published" or (Path(name) / INCEPTION_FILE).is_file())
    wanted = {key: DREAMBOOTH_ENCODERS[key] for key in ("clip", "dino", *["features"] * fid)}
    found = load_encoders("paper" if name == "published" else name, device, wanted)
    return found if fid else replace(found, features=None)  # the picturebook's is another network


@torch.no_grad()
def sample(
    pipe, prompts: Sequence[str], generators: Sequence[torch.Generator], batch: int = 8,
    num_inference_steps: int = 50, guidance_scale: float = 7.5, **size: int,
) -> Tensor:  # fmt: skip
    """A picture per prompt, each from a generator of its own: [n, 3, H, W] on the CPU in [0, 1], of 8 bits as in files.

    batch: how many at a time (it decides the last digits of every picture). size: height and width, by default the
    model's. Raises InputError where the model gives NaN, which a diverged training does.
    """
    pipe.set_progress_bar_config(disable=True)
    how, made = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **size}, []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        drawn = pipe(list(prompts[part]), generator=list(generators[part]), output_type="pt", **how)
        made.append(drawn.images.float().cpu())
    pictures = torch.cat(made)
    if pictures.isnan().any():
        raise InputError("the personalised model gives NaN: its training diverged; lower the learning rate")
    return (pictures.clamp(0, 1) * 255).round() / 255


def fidelity(pictures: Tensor, references: Sequence[Tensor], clip, dino, protocol: str = "") -> dict[str, float]:
    """DINO and CLIP-I of pictures [n, 3, H, W] in [0, 1] with the real ones, batches [m, 3, h, w] that count alike (one
    of all, or one for each where they differ in size)."""
    found = {}
    for name, similarity, eye in (("DINO", dino_similarity, dino), ("CLIP-I", clip_image_similarity, clip)):
        means = [similarity(pictures, reference, eye).mean().item() for reference in references]
        found[score_key(name, eye.label, protocol)] = sum(means) / len(means)
    return found


def adherence(pictures: Tensor, templates: list[str], class_name: str, clip, protocol: str = "") -> dict[str, float]:
    """CLIP-T of pictures [prompts, k, 3, H, W] with their own prompts without the unique token: the mean over prompts.
    templates: "a {0} {1} in the snow"."""
    prompts = [fill_prompt(template, "", class_name) for template in templates]
    similarity = clip_text_similarity(pictures.flatten(0, 1), prompts, clip).unflatten(0, pictures.shape[:2])
    means = [similarity[place, :, place].mean().item() for place in range(len(prompts))]
    return {score_key("CLIP-T", clip.label, protocol): sum(means) / len(means)}
