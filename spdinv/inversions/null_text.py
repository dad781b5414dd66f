"""Null-text inversion (NTI, arXiv 2211.09794): DDIM inversion, then an unconditional embedding per sampling step, so
optimised that the guided way back follows the way there.
"""

from dataclasses import replace

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_step, guide
from common.pipelines import Conditioning, encode_prompt, predict_noise
from spdinv.inversions import ddim
from spdinv.inversions.residual import gradients, mean_square
from spdinv.inversions.result import Inversion
from spdinv.sampling import predict_pair


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    inner_steps: int = 10, learning_rate: float = 1e-2, threshold: float = 1e-5, guidance_scale: float = 7.5,
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] under the source prompt `cond`, and find the embeddings to come back with.

    inner_steps: Adam steps per sampling step; 0 keeps the null text: DDIM inversion. learning_rate: of sampling step 0;
    it falls as 1 - step / 100 (never below a hundredth, for more than 100 sampling steps). threshold: at step 0; it
    grows by 2e-5 per step; 0 never stops early. guidance_scale: of the sampling that the embeddings are for.
    As released: Adam starts afresh at every sampling step and from the embedding of the step before, the loss is a mean
    square, and the test comes after the step, on the loss before it.
    The step that ends a level asks for both predictions anew, in one batch: Adam would enlarge what two batches round.
    Embeddings stay float32 whatever the network's type. SDXL's pooled text stays that of "".
    Images share network calls and nothing else: each has its own loss, its own optimiser state and its own stop.
    """
    inversion, everyone = ddim.invert(pipe, schedule, latents, cond), list(range(len(latents)))
    null = encode_prompt(pipe, [""])[[0] * len(latents)]
    u = [embed.to(latents.dtype) for embed in null.embeds.split(1)]  # per image [1,L,D]

    def unconditional(z, t, images):
        text = torch.cat([u[i] for i in images]).to(null.embeds)
        return predict_noise(pipe, schedule, z[images], t, null[images].with_embeds(text))

    z, embeds, spent = inversion.noise, [], torch.zeros_like(inversion.rounds)
    for step, t in enumerate(tqdm(schedule.timesteps, "null-text optimisation", leave=False, disable=None)):
        aim = inversion.trajectory[-2 - step]
        eps_cond = predict_noise(pipe, schedule, z, t, cond)
        u = [embed.clone().requires_grad_() for embed in u]
        optimizer = torch.optim.Adam(u, lr=learning_rate * max(1 - step / 100, 0.01))
        searching, stop_below = everyone, threshold and threshold + step * 2e-5
        for _ in range(inner_steps):
            optimizer.zero_grad()  # images that have stopped keep no gradient, so the optimiser passes them by
            with torch.enable_grad():
                eps = guide(unconditional(z, t, searching), eps_cond[searching], guidance_scale)
                loss = mean_square(ddim_step(schedule, z[searching], eps, t) - aim[searching])
                found = gradients(loss, [u[i] for i in searching], pipe.unet.dtype)
            for i, gradient in zip(searching, found, strict=True):
                u[i].grad = gradient
            optimizer.step()
            spent[-1 - step, searching] += 1
            searching = [i for i, value in zip(searching, loss.tolist(), strict=True) if not value < stop_below]
            if not searching:
                break
        embeds.append(torch.cat(u).detach())
        pair = predict_pair(pipe, schedule, z, t, null.with_embeds(embeds[-1].to(null.embeds)), cond)
        z = ddim_step(schedule, z, guide(*pair, guidance_scale), t)
    return replace(inversion, rounds=spent, uncond_embeds=torch.stack(embeds))
