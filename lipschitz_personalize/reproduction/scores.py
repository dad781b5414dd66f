"""DreamBench's three scores of a personalised model, and its drift."""

from torch import Tensor

from common.data import fill_prompt
from common.metrics import Score, clip_image_similarity, clip_text_similarity, dino_similarity


def fidelity(pictures: Tensor, references: Tensor, clip, dino) -> dict[str, float]:
    """DINO and CLIP-I: the mean cosine over all pairs of generated [n,3,H,W] and real pictures [m,3,H,W] in [0,1]."""
    return {
        Score("DINO", 0, dino.label).key: dino_similarity(pictures, references, dino).mean().item(),
        Score("CLIP-I", 0, clip.label).key: clip_image_similarity(pictures, references, clip).mean().item(),
    }


def adherence(pictures: Tensor, templates: list[str], class_name: str, clip) -> dict[str, float]:
    """CLIP-T: the mean cosine of each picture with its own prompt, without the unique token. templates: one per
    picture, "a {0} {1} in the snow"."""
    prompts = [fill_prompt(template, "", class_name) for template in templates]
    similarity = clip_text_similarity(pictures, prompts, clip).diagonal()
    return {Score("CLIP-T", 0, clip.label).key: similarity.mean().item()}
