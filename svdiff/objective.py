"""The training loss (paper, Eq. 1 and Eq. 3), to be held beside the paper; the unmix loss joins it in train.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.pipelines import Conditioning
from common.training import noised, target


def loss(
    pipe, latents: Tensor, cond: Conditioning, generator: torch.Generator, subjects: int, prior_weight: float
) -> Tensor:
    """L(delta) = E || eps_theta_delta(z*_t | c*) - eps ||^2 + lambda L_pr(delta), a scalar.

    latents [n,4,h,w], cond [n]: the first `subjects` of them z*, c*, the others z^pr, c^pr (none: lambda = 0).
    generator: of eps and t.
    """
    alpha_bar, kind = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
    eps = torch.randn(latents.shape, generator=generator).to(latents)  # eps ~ N(0, I)
    t = torch.randint(len(alpha_bar), (len(latents),), generator=generator).to(latents.device)  # t ~ Uniform(1, T)
    z_t = noised(alpha_bar, latents, eps, t)
    predicted = pipe.unet(z_t, t, encoder_hidden_states=cond.embeds, added_cond_kwargs=cond.added).sample
    wanted = target(kind, alpha_bar, latents, eps, t)  # eps; the velocity where the network predicts that
    errors = F.mse_loss(predicted.float(), wanted, reduction="none").mean((1, 2, 3))  # Eq. 1, per sample
    prior = errors[subjects:].mean() if len(errors) > subjects else 0.0  # Eq. 3, L_pr
    return errors[:subjects].mean() + prior_weight * prior  # Eq. 3
