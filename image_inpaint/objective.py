"""The loss of both stages (Sec. 4.1, Eq. 6), from what `triples.encode` gives."""

import torch
from torch import Tensor

from common.training import noised, target
from image_inpaint.conditioning import context_of, nine_channels, unconditional
from image_inpaint.triples import Views, draw_latents


def loss(
    pipe, views: Views, generator: torch.Generator, condition_dropout: float = 0.2, per: str = "batch",
    layer_dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """Eq. 6, the mean of |eps - eps_theta(I_s, I_r, t, c)|^2 over a batch of B views, on the CPU. All that is random
    comes from the CPU generator, in the order below.

    condition_dropout: how often the learned vector stands in for the reference, once "per" batch (released) or sample.
    layer_dropout: where it is not 0, torch's own generator is seeded too, from which layers draw.
    """
    unet, encoder, device = pipe.unet, pipe.image_encoder, pipe.unet.device
    scale, alpha_bar, batch = pipe.vae.config.scaling_factor, pipe.scheduler.alphas_cumprod, len(views)
    z_0 = scale * draw_latents(views.mean, views.std, generator)  # E(I_s), the target [B, 4, h, w]
    masked = scale * draw_latents(views.masked_mean, views.masked_std, generator)  # of I_s without its hole
    eps = torch.randn(z_0.shape, generator=generator)
    t = torch.randint(0, len(alpha_bar), (batch,), generator=generator)
    draws = 1 if per == "batch" else batch
    dropped = (torch.rand(draws, generator=generator) < condition_dropout).expand(batch)
    if layer_dropout:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    z_t = noised(alpha_bar, z_0, eps, t)  # Eq. 2
    channels = nine_channels(z_t, masked, views.keep).to(device)
    c = context_of(encoder, views.tokens.to(device))  # of I_r
    c = torch.where(dropped[:, None, None].to(device), unconditional(encoder, batch), c)
    said = unet(channels, t.to(device), encoder_hidden_states=c, return_dict=False)[0]
    wanted = target(pipe.scheduler.config.prediction_type, alpha_bar, z_0, eps, t)  # eps itself, or v
    return (said.float() - wanted.to(device)).square().mean()  # Eq. 6
