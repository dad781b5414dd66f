"""Source Prompt Disentangled Inversion (paper, Sec. 3.2, Alg. 1): each inversion step is a search for the fixed point

    x = f(x),   f(x) = C_{t,1} z_{t-1} + C_{t,2} eps(x, t, c)                                                   (Eq. 3)

by gradient descent on its residual, the gradient going through the network.
"""

from functools import partial

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule
from common.pipelines import Conditioning
from spdinv.inversions.residual import f_theta, gradients, mean_square, norm
from spdinv.inversions.result import Inversion, clock

SOLVERS = {
    "adamw": (mean_square, torch.optim.AdamW),  # as released, with torch's default weight decay of 0.01
    "sgd": (norm, torch.optim.SGD),  # Alg. 1, l. 4-5 to the letter: z <- z - eta grad ||f(z) - z||_2
}


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline,
    schedule: Schedule,
    latents: torch.Tensor,
    cond: Conditioning,
    rounds: int = 25,
    learning_rate: float = 1e-3,
    threshold: float = 5e-6,
    solver: str = "adamw",
) -> Inversion:
    """Invert clean `latents` [B,4,h,w] (float32) under the source prompt `cond`, without classifier-free guidance.

    rounds: K; 0 is DDIM inversion. learning_rate: eta. threshold: delta, compared with the loss before the step just
    taken; 0 never stops early. solver: a key of SOLVERS; "adamw" is the released code, "sgd" the paper's formula.
    As the official code does: the guess of line 2 shows the network the timestep t (so it is f(z_{t-1})), the
    optimiser starts afresh at every timestep, the test comes after the step, and the last iterate is kept.
    Images share network calls and nothing else: each has its own loss, its own optimiser state and its own stop.
    """
    loss_of, optimizer_class = SOLVERS[solver]
    start = clock(latents)
    everyone = list(range(len(latents)))
    trajectory, spent = [latents], torch.zeros(len(schedule.timesteps), len(latents), dtype=torch.int64)
    for step, t in enumerate(tqdm(schedule.timesteps[::-1], "SPDInv", leave=False, disable=None)):  # Alg. 1, l. 1
        z = trajectory[-1]
        f = partial(f_theta, pipe, schedule, z, t, cond)
        x = [image.clone().requires_grad_() for image in f(z, everyone).split(1)]  # Alg. 1, l. 2
        optimizer = optimizer_class(x, lr=learning_rate)
        searching = everyone
        for _ in range(rounds):  # Alg. 1, l. 3
            optimizer.zero_grad()  # images that have stopped keep no gradient, so the optimiser passes them by
            with torch.enable_grad():
                candidate = torch.cat([x[i] for i in searching])
                loss = loss_of(candidate - f(candidate, searching))  # Eq. 4; Alg. 1, l. 4
                found = gradients(loss, [x[i] for i in searching], pipe.unet.dtype)
            for i, gradient in zip(searching, found, strict=True):
                x[i].grad = gradient
            optimizer.step()  # Alg. 1, l. 5
            spent[step, searching] += 1
            searching = [i for i, value in zip(searching, loss.tolist(), strict=True) if not value < threshold]
            if not searching:  # Alg. 1, l. 6
                break
        trajectory.append(torch.cat(x).detach())
    backward = int(spent.sum())
    cost = {"forward": spent.numel() + backward, "backward": backward, "seconds": clock(latents) - start}
    return Inversion(torch.stack(trajectory), spent, cost)
