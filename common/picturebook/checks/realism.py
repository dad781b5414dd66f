"""How far samples are from drawings that went through the VAE, whatever their captions: nothing but what the UNet
paints can tell the two apart."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from common.picturebook.classifier import Residual, load_classifier
from common.picturebook.quality import GUIDANCE, Result, drawn, held_out_scenes, samples, share, through_vae

FOLDS, STEPS, BATCH, PEAK = 3, 400, 64, 2e-3


def both(count: int, guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of the captions of `count` scenes of one thing and as many of two, and the drawings of these scenes
    through the VAE, [2 * count, 3, 64, 64] each, in one order."""
    made = torch.cat([samples(count, things, guidance) for things in (1, 2)])
    scenes = [scene for things in (1, 2) for scene in held_out_scenes(count, things)]
    return made.clone(), through_vae(drawn(scenes)).clone()  # no longer bound to inference mode


def new_judge() -> nn.Module:
    """Pictures [B, 3, 64, 64] in [0, 1] -> one logit each: drawn rather than sampled."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), Residual(24, 40, 2), Residual(40, 64, 2), Residual(64, 96, 2),
        nn.Dropout2d(0.1), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * 96, 1),
    )  # fmt: skip


def trained_judge(made: torch.Tensor, real: torch.Tensor, steps: int = STEPS) -> nn.Module:
    """A judge trained from scratch to tell samples from drawings, each shown as it is or in a mirror, and shifted by up
    to two pixels."""
    torch.manual_seed(0)
    judge = new_judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, steps)
    truth = torch.cat([torch.zeros(BATCH // 2), torch.ones(BATCH // 2)])
    for _ in range(steps):
        rows = torch.randint(len(made), (2, BATCH // 2))
        pictures = torch.cat([made[rows[0]], real[rows[1]]])
        mirrored = torch.rand(BATCH) < 0.5
        pictures[mirrored] = pictures[mirrored].flip(3)
        x, y = torch.randint(0, 5, (2,)).tolist()
        pictures = F.pad(pictures, (2, 2, 2, 2), mode="replicate")[:, :, y : y + 64, x : x + 64]
        loss = F.binary_cross_entropy_with_logits(judge(pictures.contiguous(memory_format=torch.channels_last))[:, 0],
                                                  truth)  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def right_answers(made: torch.Tensor, real: torch.Tensor, steps: int = STEPS) -> list[bool]:
    """Whether judges are right on each sample and each drawing of scenes that they were not trained on; FOLDS turns."""
    flags, fold = [], torch.arange(len(made)) % FOLDS
    for number in range(FOLDS):
        held_out = fold == number
        judge = trained_judge(made[~held_out], real[~held_out], steps)
        with torch.no_grad():
            flags += (judge(made[held_out])[:, 0] < 0).tolist() + (judge(real[held_out])[:, 0] > 0).tolist()
    return flags


def anatomy(count: int) -> Iterator[Result]:
    for guidance in (3.0, GUIDANCE):
        flags = right_answers(*both(count, guidance))
        goals = (85, 65) if guidance == GUIDANCE else (None, None)
        yield Result(f"anatomy: a network tells samples from drawings, guidance {guidance:g} (% right)", share(flags),
                     len(flags), *goals, at_least=False)  # fmt: skip


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the Gaussians fitted to features [n, d] (Heusel et al., NeurIPS 2017, Eq. 6).

    The eigenvalues of the product of two covariances A^T A and B^T B are the squared singular values of A B^T.
    """
    a, b = a.double(), b.double()
    first, second = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    shared = torch.linalg.svdvals(first @ second.T).sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + first.square().sum() + second.square().sum() - 2 * shared)


def frechet(count: int) -> Iterator[Result]:
    """Told at guidance 3 and 7.5; beside it that of two halves of the drawings, which is not zero either."""
    for guidance in (3.0, GUIDANCE):
        with torch.no_grad():
            made, real = (
                torch.cat([load_classifier().embedding(part) for part in pictures.split(100)])
                for pictures in both(count, guidance)
            )
        yield Result(f"Fréchet distance of classifier features, guidance {guidance:g}", frechet_distance(made, real),
                     len(made), at_least=False)  # fmt: skip
    yield Result("Fréchet distance of two halves of the drawings", frechet_distance(real[::2], real[1::2]),
                 len(real) // 2, at_least=False)  # fmt: skip
