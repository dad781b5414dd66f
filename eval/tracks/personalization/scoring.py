"""Scores of one personalised model: fidelity to the subject, adherence to the prompt, diversity.

As in DreamBench (Ruiz et al., CVPR 2023, section 4): DINO and CLIP-I are the mean cosine over all pairs of generated
and real pictures of the subject, CLIP-T that of picture and prompt without the rare token, averaged over prompts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch

from common.data import Subject, fill_prompt
from common.encoders import DREAMBOOTH_ENCODERS, Encoders, load_encoders
from common.images import load_image, to_tensor
from common.metrics import Score, clip_image_similarity, clip_text_similarity, dino_similarity, lpips_distance
from eval.tracks.personalization.protocol import asked, context_seen, subject_seen, usual_color

PROTOCOL = "dreambench"


def load_eyes(name: str, device: str | None = None) -> Encoders:
    """name: "picturebook"; "paper", DreamBench's CLIP ViT-B/32 and DINO ViT-S/16, with LPIPS on AlexNet and the FID's
    Inception; or a folder with copies of these. Raises InputError if one is missing."""
    return load_encoders(name, device, DREAMBOOTH_ENCODERS)


def read_references(subject: Subject) -> list[torch.Tensor]:
    """The subject's own pictures, [1, 3, h, w] each in [0, 1]: they may differ in size."""
    return [to_tensor(load_image(path)) for path in subject.paths]


def key(name: str, encoder: str) -> str:
    """A DreamBench score's name in result rows."""
    return Score(name, 0.0, encoder, PROTOCOL).key


def fidelity(pictures: torch.Tensor, references: Sequence[torch.Tensor], eyes: Encoders) -> dict[str, float]:
    """DINO and CLIP-I of pictures [n, 3, H, W]: mean cosine with every reference."""
    looks = ((dino_similarity, "DINO", eyes.dino), (clip_image_similarity, "CLIP-I", eyes.clip))
    return {
        key(name, eye.label): mean(similarity(pictures, reference, eye).mean() for reference in references)
        for similarity, name, eye in looks
    }


@dataclass(frozen=True)
class Truths:
    """The true picture of every prompt, and the same with the thing in kind and colour but without what marks the
    individual: [prompts, 3, H, W] each. The second is where identity begins, the first is all of it."""

    marked: torch.Tensor
    unmarked: torch.Tensor


def read_truths(folder: Path, subject: Subject, prompts: int) -> Truths | None:
    """marked/<subject>/<pp>.png and unmarked/… of a folder; None where there are none, as for photographs."""
    if not (folder / "marked" / subject.name).is_dir():
        return None
    names = [f"{number:02d}.png" for number in range(prompts)]
    found = {kind: torch.cat([to_tensor(load_image(folder / kind / subject.name / name)) for name in names])
             for kind in ("marked", "unmarked")}  # fmt: skip
    return Truths(**found)


def likeness(pictures: torch.Tensor, truths: Truths, references: Sequence[torch.Tensor], dino) -> float:
    """The share of the way of pictures [prompts, k, 3, H, W] from the unmarked thing (0) to the true picture (1), in
    the mean DINO cosine with the subject's own pictures; each picture against the unmarked one of its prompt. Pictures
    that copy can exceed 1; NaN where the two ends are one."""
    floor, ceiling = (_dino(ends, references, dino) for ends in (truths.unmarked, truths.marked))
    own = _dino(pictures.flatten(0, 1), references, dino).unflatten(0, pictures.shape[:2])
    whole = (ceiling - floor).mean()
    return ((own - floor[:, None]).mean() / whole).item() if whole > 0 else math.nan


def likeness_of(pictures: torch.Tensor, truths: Truths, references: Sequence[torch.Tensor], dino) -> float:
    """The same of pictures [n, 3, H, W] that have no true picture of their own: against the mean ends."""
    floor, ceiling = (_dino(ends, references, dino).mean() for ends in (truths.unmarked, truths.marked))
    own = _dino(pictures, references, dino).mean()
    return ((own - floor) / (ceiling - floor)).item() if ceiling > floor else math.nan


def _dino(pictures: torch.Tensor, references: Sequence[torch.Tensor], dino) -> torch.Tensor:
    """Of each picture the mean cosine with the references, [n]."""
    return torch.stack([dino_similarity(pictures, reference, dino).mean(1) for reference in references]).mean(0)


def ceiling(references: list[torch.Tensor], eyes: Encoders) -> dict[str, float]:
    """The same of each real picture with the other real ones: the row "Real pictures" of DreamBench's tables."""
    rows = [fidelity(one, references[:i] + references[i + 1 :], eyes) for i, one in enumerate(references)]
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def diversity(pictures: torch.Tensor, eyes: Encoders) -> float:
    """Mean LPIPS between the pictures [prompts, k, 3, H, W] of the same prompt; NaN where k = 1."""
    found = []
    for i, j in combinations(range(pictures.shape[1]), 2):
        found += lpips_distance(pictures[:, i], pictures[:, j], eyes.lpips).tolist()
    return mean(found)


def subject_scores(
    pictures: torch.Tensor, templates: list[str], subject: Subject, references: list[torch.Tensor], eyes: Encoders,
    truths: Truths | None = None,
) -> tuple[dict[str, float], list[list[bool | None]]]:  # fmt: skip
    """Scores of one subject's pictures [prompts, k, 3, H, W] by Score.key, and per picture whether the classifier sees
    what its prompt asks for (None: nobody judged)."""
    prompts = [fill_prompt(template, "", subject.class_name) for template in templates]
    flat = pictures.flatten(0, 1)
    scores = fidelity(flat, references, eyes)
    per_prompt = clip_text_similarity(flat, prompts, eyes.clip).unflatten(0, pictures.shape[:2])
    own = [per_prompt[number, :, number].mean() for number in range(len(prompts))]
    scores[key("CLIP-T", eyes.clip.label)] = mean(own)
    scores[f"diversity ({eyes.lpips.label})"] = diversity(pictures, eyes)
    if truths is not None:
        scores[f"likeness ({eyes.dino.label})"] = likeness(pictures, truths, references, eyes.dino)
    if eyes.classifier is None:
        return scores, [[None] * pictures.shape[1] for _ in templates]
    seen, found = judged(pictures, templates, subject.class_name, references, eyes.classifier)
    return scores | found, seen


def judged(
    pictures: torch.Tensor, templates: list[str], kind: str, references: list[torch.Tensor], classifier
) -> tuple[list[list[bool | None]], dict[str, float]]:
    """What the attribute classifier says: per picture whether the context is there, and the shares of pictures with
    their context and with the subject's kind and colour."""
    color = usual_color(kind, [classifier.read(reference)[0] for reference in references])
    contexts, identities = [], []
    for template, batch in zip(templates, pictures, strict=True):
        wanted = asked(template, kind)
        readings = classifier.read(batch)
        contexts.append([context_seen(wanted, kind, reading) if wanted else None for reading in readings])
        identities += [subject_seen(wanted, kind, color, reading) for reading in readings]
    every = [seen for row in contexts for seen in row]
    return contexts, {"context (picturebook)": share(every), "identity (picturebook)": share(identities)}


def share(flags: Sequence[bool | None]) -> float:
    """Of the flags that are not None; NaN if there is none."""
    return mean(float(flag) for flag in flags if flag is not None)


def mean(values) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values) if values else math.nan
