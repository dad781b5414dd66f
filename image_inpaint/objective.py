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
    """A scalar. views: a batch of B, on the CPU. All that is random comes from the CPU generator, in the order below.

    condition_dropout: how often the learned vector stands in for the reference, once "per" batch (released) or sample.
    layer_dropout: where it is not 0, torch's own generator is seeded too, from which layers draw.
    """
    scale, alpha_bar, batch = pipe.vae.config.scaling_factor, pipe.scheduler.alphas_cumprod, len(views)
    z_0 = scale * draw_latents(views.mean, views.std, generator)  # E(I_s), the target
    masked = scale * draw_latents(views.masked_mean, views.masked_std, generator)  # of I_s without its hole
    noise = torch.randn(z_0.shape, generator=generator)
    t = torch.randint(0, len(alpha_bar), (batch,), generator=generator)
    draws = 1 if per == "batch" else batch
    dropped = (torch.rand(draws, generator=generator) < condition_dropout).expand(batch)
    if layer_dropout:
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    prediction = pipe.scheduler.config.prediction_type
    return squared_error(
        pipe.unet, pipe.image_encoder, z_0, masked, views.keep, views.tokens, dropped, noise, t, alpha_bar, prediction
    ).mean()  # Eq. 6


def squared_error(
    unet, encoder, z_0: Tensor, masked: Tensor, keep: Tensor, tokens: Tensor, dropped: Tensor, noise: Tensor, t: Tensor,
    alpha_bar: Tensor, prediction: str = "epsilon",
) -> Tensor:  # fmt: skip
    """|eps - eps_theta(z_t, t, c)|^2 of Eq. 6 before its mean, float32 [B, 4, h, w].

    z_0, masked, noise [B, 4, h, w], scaled latents of the picture with and without its hole; keep [B, 1, h, w], 1 =
    kept; tokens [B, D], CLIP's; dropped, bool [B]; t [B]; alpha_bar [T]. prediction: what the network is to say.
    """
    device = unet.device
    z_t = noised(alpha_bar, z_0, noise, t)  # Eq. 2
    channels = nine_channels(z_t, masked, keep).to(device)
    c = context_of(encoder, tokens.to(device))
    c = torch.where(dropped[:, None, None].to(device), unconditional(encoder, len(tokens)), c)
    said = unet(channels, t.to(device), encoder_hidden_states=c, return_dict=False)[0]
    return (said.float() - target(prediction, alpha_bar, z_0, noise, t).to(device)).square()
