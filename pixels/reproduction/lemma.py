"""Lemma 1: how far a noised surgical latent can be from where the reverse process takes it.

In VE coordinates x = z / sqrt(alpha_bar), sigma = sqrt((1 - alpha_bar) / alpha_bar), score s = -eps_theta / sigma, with
|s|^2 <= B everywhere and k numbers in a latent, the paper (Eq. 1) bounds |x(0) - x(t)|^2, with probability 1 - p, by

    sigma^4 B + sigma^2 (k + 2 sqrt(-k ln p) - 2 ln p).

Its proof takes |a + b|^2 <= |a|^2 + |b|^2 for drift a and noise b (Eq. 5), which is false (and puts an expectation
inside the probability). The triangle inequality gives, under the same assumptions, the square of

    sigma^2 sqrt(B) + sigma sqrt(k + 2 sqrt(-k ln p) - 2 ln p),

at most twice the paper's value. `corrected_bound` is that; `experiment` tries both on a latent, `lemma` on
pairs of pictures.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.runs import write_json
from common.tables import text_table
from pixels.backbones.backbone import Backbone
from pixels.reproduction.baselines import surgical_latent
from pixels.reproduction.pairs import Pair
from pixels.reproduction.scoring import Bench
from pixels.surgery import noise_levels


def chi_square_tail(k: int, p: float) -> float:
    """A value that a chi-square variable of k degrees of freedom exceeds with probability at most p (Laurent and
    Massart 2000, Lemma 1; Eq. 9)."""
    return k + 2 * math.sqrt(-k * math.log(p)) - 2 * math.log(p)


def paper_bound(sigma: float, score_bound: float, k: int, p: float) -> float:
    """Eq. 1 and 10. score_bound: B, the supremum of |s|^2."""
    return sigma**4 * score_bound + sigma**2 * chi_square_tail(k, p)


def corrected_bound(sigma: float, score_bound: float, k: int, p: float) -> float:
    """The same with a valid inequality for the square of a sum in the place of Eq. 5; Eq. 6 to 8 bound its terms."""
    return (sigma**2 * math.sqrt(score_bound) + sigma * math.sqrt(chi_square_tail(k, p))) ** 2


@dataclass(frozen=True)
class Trial:
    """One reverse run. distance: |x(0) - x(t)|^2. score_bound: largest |s|^2 met on the way; at_start: at t alone."""

    sigma: float
    k: int  # numbers in a latent
    distance: float
    score_bound: float
    at_start: float


@torch.no_grad()
def experiment(backbone: Backbone, latents: Tensor, generator: torch.Generator) -> list[Trial]:
    """Noise the surgical latents [B, 4, h, w] to the backbone's first timestep (Eq. 2 without its drift, which is VE),
    and run the reverse SDE (Eq. 3) from there to 0, which is the integral of Eq. 4.

    No source is put back and no solver is used but the ancestral Euler step of Eq. 3, of which the lemma speaks:
    x_next = x + (sigma^2 - sigma_next^2) s + sqrt(sigma^2 - sigma_next^2) n. One Trial per latent.
    """
    timesteps = backbone.start()
    signal, noise_level = noise_levels(backbone.scheduler, timesteps, latents)
    ratio = (noise_level / signal).double()  # sigma in VE coordinates, whatever the scheduler's own are
    sigmas = torch.cat([ratio, ratio.new_zeros(1)])

    def noise() -> Tensor:
        return torch.randn(latents.shape, generator=generator, dtype=torch.float64).to(latents.device)

    x = start = latents.double() + sigmas[0] * noise()
    squares = []
    for i, t in enumerate(timesteps):
        backbone.start()  # Euler scales its input by the step that it counts, and no step() is called here to count on
        z = (signal[i] * x).to(latents.dtype)
        eps = epsilon(backbone, backbone.predict(z, t), z, signal[i], noise_level[i]).double()
        score = -eps / sigmas[i]
        squares.append(score.square().sum((1, 2, 3)))
        variance = sigmas[i] ** 2 - sigmas[i + 1] ** 2
        x = x + variance * score + variance.sqrt() * noise()
    distances, squares = (x - start).square().sum((1, 2, 3)), torch.stack(squares, dim=1)
    return [Trial(float(sigmas[0]), latents[0].numel(), distance.item(), own.max().item(), own[0].item())
            for distance, own in zip(distances, squares, strict=True)]  # fmt: skip


def epsilon(backbone: Backbone, output: Tensor, z: Tensor, signal: Tensor, noise_level: Tensor) -> Tensor:
    """The noise that the network's output stands for; signal and noise_level as of add_noise at its timestep."""
    output = output[:, : z.shape[1]]  # without a learned variance
    kind = backbone.scheduler.config.prediction_type
    if kind == "sample":
        return (z - signal * output) / noise_level
    if kind == "v_prediction":
        total = (signal**2 + noise_level**2).sqrt()  # 1, or for Euler's sigma what its network's input is divided by
        return (signal * output + noise_level * z / total) / total
    return output


def lemma(bench: Bench, pairs: list[Pair], p: float = 0.05) -> None:
    """Surgical latents of several pairs and strengths through the reverse SDE: distances beside both bounds."""
    numbers, pairs = [], pairs[: max(bench.args.repeats // 4, 1)]
    lines = [["strength", "sigma", "k", "runs", "mean |x0 - xt|^2", "paper's bound", "holds", "with B of the start",
              "holds", "corrected bound", "holds"]]  # fmt: skip
    for strength in (0.2, 0.5, 0.8):
        trials = []
        for number, (_, loaded) in enumerate(bench.loaded(pairs, f"strength {strength}")):
            backbone = bench.bind(loaded, strength=strength, denoising_start=None)
            z = surgical_latent(backbone, loaded["source"], loaded["exemplars"], loaded["maps"], bench.surgery)
            generator = torch.Generator().manual_seed(bench.args.seed + number)
            trials += experiment(backbone, z, generator)
        first, count = trials[0], len(trials)
        worst, start = max(t.score_bound for t in trials), max(t.at_start for t in trials)
        mean = sum(t.distance for t in trials) / count
        bounds = {"paper": paper_bound(first.sigma, worst, first.k, p),
                  "paper_start": paper_bound(first.sigma, start, first.k, p),
                  "corrected": corrected_bound(first.sigma, worst, first.k, p)}  # fmt: skip
        holds = {name: sum(t.distance <= bound for t in trials) / count for name, bound in bounds.items()}
        numbers.append({"strength": strength, "sigma": first.sigma, "k": first.k, "mean": mean, "runs": count, "p": p,
                        "bounds": bounds, "holds": holds, "distances": [t.distance for t in trials]})  # fmt: skip
        cells = [cell for name, bound in bounds.items() for cell in (f"{bound:.4g}", f"{100 * holds[name]:.0f} %")]
        lines.append([f"{strength}", f"{first.sigma:.3f}", str(first.k), str(count), f"{mean:.4g}", *cells])
    write_json(bench.output / "lemma.json", numbers)
    print(text_table(lines))
    print(f"p = {p}: a bound should hold in at least {100 * (1 - p):.0f} % of the runs; {bench.output / 'lemma.json'}")
