"""Blended diffusion (Avrahami et al., CVPR 2022, arXiv 2111.14818): text draws inside the mask, and at every noise
level the picture itself is put back outside of it. Table 2's BlendDM.

Alg. 2, with the released code's settings: an unconditional model of pixels, led by CLIP. As released, the picture is
put back with the noise of the level that the step came from, not of the one it reached, so the surroundings are one
level noisier than what is drawn.
"""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torchvision.transforms import InterpolationMode, RandomAffine, RandomApply, RandomPerspective
from tqdm import tqdm

from common.encoders import Clip


def edit(
    unet: UNet2DModel, alpha_bar: torch.Tensor, clip: Clip, picture: torch.Tensor, mask: torch.Tensor, prompt: str,
    steps: int = 100, skipped: int = 25, clip_guidance: float = 1000.0, range_guidance: float = 50.0,
    augmentations: int = 8, seed: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Draw `prompt` where `mask` [1,1,H,W] is 1 into `picture` [1,3,H,W] in [0,1]; returns such a picture, which is the
    source itself outside of the mask.

    unet, alpha_bar: an unconditional model of pixels, see guided_diffusion.load_unconditional; it predicts noise and,
    if it has six channels out, where its variance lies between the two bounds. clip: released with ViT-B/16.
    steps: of the 1000, respaced; the first `skipped` are left out. clip_guidance, range_guidance: lambdas of the loss.
    Released besides, and left to the caller: 32 drawings are made, and the one that CLIP likes best is taken.
    """
    device = next(unet.parameters()).device
    x_source, m, text = (picture * 2 - 1).to(device), mask.to(device, torch.float32), clip.embed_text([prompt])
    timesteps, a = respaced(alpha_bar, steps)
    with torch.random.fork_rng():  # torchvision's augmentations draw from the global generator
        torch.manual_seed(seed)

        def noised(i: int) -> torch.Tensor:
            return a[i] ** 0.5 * x_source + (1 - a[i]) ** 0.5 * torch.randn_like(x_source)

        x = noised(steps - skipped - 1)
        for i in tqdm(range(steps - skipped - 1, 0, -1), "blended diffusion", leave=False, disable=None):
            x.requires_grad_()
            x_0, mean, variance = posterior(unet, x, timesteps[i], a[i], a[i - 1])
            seen = x_0 * (1 - a[i]) ** 0.5 + x * (1 - (1 - a[i]) ** 0.5)  # released; Alg. 2 looks at x_0 alone
            loss = clip_guidance * clip_distance(clip, augmented(seen * m, clip, augmentations), text)
            loss = loss + range_guidance * (x_0 - x_0.clamp(-1, 1)).square().mean()
            (gradient,) = torch.autograd.grad(loss, x)
            x_drawn = mean - variance * gradient + variance**0.5 * torch.randn_like(x)
            x = (x_drawn * m + noised(i) * (1 - m)).detach()
        with torch.no_grad():
            x_0 = posterior(unet, x, timesteps[0], a[0], 1.0)[0]
    return ((x_0 * m + x_source * (1 - m)) / 2 + 0.5).clamp(0, 1)


def respaced(alpha_bar: torch.Tensor, steps: int) -> tuple[list[int], list[float]]:
    """`steps` timesteps from the first to the last, ascending, and their noise levels (guided diffusion's "100")."""
    timesteps = torch.linspace(0, len(alpha_bar) - 1, steps, dtype=torch.float64).round().long()
    return timesteps.tolist(), alpha_bar[timesteps].tolist()


def posterior(unet: UNet2DModel, x: torch.Tensor, t: int, a: float, a_before: float) -> tuple[torch.Tensor, ...]:
    """The predicted x_0, and mean and variance of q(x_{t-1} | x_t, x_0), all shaped as x [1,3,H,W]. a, a_before:
    alpha_bar of this level and of the next cleaner one (DDPM, Eq. 7; learned variance: Improved DDPM, arXiv 2102.09672,
    Eq. 15)."""
    eps, *learned = unet(x, t).sample.split(3, dim=1)
    x_0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
    alpha = a / a_before
    mean = (a_before**0.5 * (1 - alpha) * x_0 + alpha**0.5 * (1 - a_before) * x) / (1 - a)
    low, high = (1 - alpha) * (1 - a_before) / (1 - a), 1 - alpha
    if not learned:
        return x_0, mean.detach(), torch.full_like(x, low).detach()
    share = (learned[0].detach() + 1) / 2
    return x_0, mean.detach(), high**share * low ** (1 - share)


def augmented(x: torch.Tensor, clip: Clip, count: int) -> torch.Tensor:
    """`x` [1,3,H,W] at CLIP's size, and count - 1 random affine and perspective views of it: [count,3,s,s]. Beyond the
    edge is grey; in the released affine views it is the edge's colour, which the mask has made grey too."""
    x = F.adaptive_avg_pool2d(x, clip.model.config.vision_config.image_size)
    affine = RandomAffine(15, translate=(0.1, 0.1), interpolation=InterpolationMode.BILINEAR)
    views = [RandomPerspective(0.7, p=0.7)(RandomApply([affine], 0.7)(x)) for _ in range(count - 1)]
    return torch.cat([x, *views])


def clip_distance(clip: Clip, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Mean over x [n,3,s,s] in [-1,1] of the squared great-circle distance to unit vector `text` [1,D], halved (the
    released code; the paper prints the cosine distance)."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1).to(x) for v in (clip.processor.image_mean, clip.processor.image_std))
    pooled = clip.model.vision_model((x / 2 + 0.5 - mean) / std).pooler_output
    seen = F.normalize(clip.model.visual_projection(pooled), dim=-1)
    return ((seen - text.to(seen)).norm(dim=-1) / 2).arcsin().square().mul(2).mean()
