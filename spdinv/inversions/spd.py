"""Source Prompt Disentangled Inversion (paper, Sec. 3.2): Eq. 1, 3 and 4, and Algorithm 1, as released and as printed.

Each inversion step is a search for the fixed point x = f(x) in x = z_t by gradient descent on its residual, the
gradient going through the network.
"""

from functools import partial

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step, inversion_timestep
from common.pipelines import Conditioning, predict_noise
from spdinv.inversions import solvers
from spdinv.inversions.residual import gradients, mean_square
from spdinv.inversions.result import Inversion

SHOWN = {"t": "target", "t-1": "source"}  # the guess's timestep in the words of common.ddim.inversion_timestep


def coefficients(schedule: Schedule, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """C_{t,1} and C_{t,2} of Eq. 1, float32."""
    alpha_t, alpha_before = schedule.alpha_bar_at(t), schedule.alpha_bar_at(schedule.previous(t))
    return (alpha_t / alpha_before) ** 0.5, alpha_t**0.5 * ((1 / alpha_t - 1) ** 0.5 - (1 / alpha_before - 1) ** 0.5)


def f_theta(
    pipe: DiffusionPipeline, schedule: Schedule, z: torch.Tensor, t: int, cond: Conditioning, x: torch.Tensor,
    images: list[int], printed: bool = False, shown: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """f(x) = C_{t,1} z_{t-1} + C_{t,2} eps(x, t, c) (Eq. 3), for the n listed `images` of the batch: z [B,4,h,w] is
    z_{t-1} of all, x [n,4,h,w] stands for their z_t.

    shown: the timestep that the network is told, t by default; with x = z_{t-1} and shown = t-1 this is Eq. 2.
    """
    eps = predict_noise(pipe, schedule, x, t if shown is None else shown, cond[images])
    if printed:
        C_t1, C_t2 = coefficients(schedule, t)
        return C_t2 * eps + C_t1 * z[images]
    return ddim_inverse_step(schedule, z[images], eps, t)  # the same by way of x_0, as released; it rounds differently


def norm(residual: torch.Tensor) -> torch.Tensor:
    """Per image: the unsquared L2 norm of residual [B,4,h,w]; the loss that the paper prints (Eq. 4)."""
    return torch.linalg.vector_norm(residual, dim=(1, 2, 3))


@torch.no_grad()
def invert(
    pipe: DiffusionPipeline, schedule: Schedule, latents: torch.Tensor, cond: Conditioning,
    rounds: int = 25, learning_rate: float = 1e-3, threshold: float = 5e-6, solver: str = "adamw", guess: str = "t",
) -> Inversion:  # fmt: skip
    """Invert clean `latents` [B,4,h,w] (float32) under the source prompt `cond`, without classifier-free guidance.

    rounds: K; 0 is DDIM inversion. learning_rate: eta. threshold: delta, compared with the loss before the step just
    taken; 0 never stops early. solver: "adamw" is the released code, "sgd" the printed lines 4 and 5; "descent" and
    "anderson" find the same fixed point with fewer evaluations (solvers.py). guess: which timestep the network is shown
    in line 2, "t" as released or "t-1" as printed, with adamw as with sgd.
    Images share network calls and nothing else: each has its own loss, its own optimiser state and its own stop.
    """
    if solver in ("adamw", "sgd"):
        printed = solver == "sgd"
        return algorithm_1(pipe, schedule, latents, cond, rounds, threshold, learning_rate, printed, guess)
    solve = partial(solvers.descend, network_dtype=pipe.unet.dtype) if solver == "descent" else solvers.ANDERSON
    return solvers.search(pipe, schedule, latents, cond, solve, rounds, threshold, thrifty=True)


def algorithm_1(
    pipe: DiffusionPipeline, schedule: Schedule, z_0: torch.Tensor, p_s: Conditioning, K: int, delta: float, eta: float,
    printed: bool = False, guess: str = "t",
) -> Inversion:  # fmt: skip
    """Algorithm 1 for z_0 [B,4,h,w] and source prompts p_s. printed: lines 4 and 5 and the form of Eq. 1 to the letter.
    guess: the timestep of line 2, "t" as released or "t-1" as printed.

    Otherwise as released: the loss is a mean square, and AdamW, with torch's weight decay of 0.01 and afresh at every
    timestep, takes the place of the plain step.
    In both the test comes after the step, on the loss before it, and the last iterate is kept.
    """
    everyone = list(range(len(z_0)))
    norm_of, optimizer_of = (norm, torch.optim.SGD) if printed else (mean_square, torch.optim.AdamW)
    trajectory, spent = [z_0], torch.zeros(len(schedule.timesteps), len(z_0), dtype=torch.int64)
    for level, t in enumerate(tqdm(schedule.timesteps[::-1], "SPDInv", leave=False, disable=None)):  # Alg. 1, l. 1
        z = trajectory[-1]
        f = partial(f_theta, pipe, schedule, z, t, p_s, printed=printed)
        z_t = f(z, everyone, shown=inversion_timestep(schedule, t, SHOWN[guess]))  # Alg. 1, l. 2: Eq. 2
        z_t = [image.clone().requires_grad_() for image in z_t.split(1)]
        optimizer, searching = optimizer_of(z_t, lr=eta), everyone
        for _ in range(K):  # Alg. 1, l. 3
            optimizer.zero_grad()  # images that have stopped keep no gradient, so the optimiser passes them by
            with torch.enable_grad():
                x = torch.cat([z_t[i] for i in searching])
                L = norm_of(f(x, searching) - x)  # Alg. 1, l. 4: Eq. 4
                nabla_L = gradients(L, [z_t[i] for i in searching], pipe.unet.dtype)
            for i, gradient in zip(searching, nabla_L, strict=True):
                z_t[i].grad = gradient
            optimizer.step()  # Alg. 1, l. 5: z_t := z_t - eta nabla L
            spent[level, searching] += 1
            # Alg. 1, l. 6: if L < delta, break, each image by itself
            searching = [i for i, loss in zip(searching, L.tolist(), strict=True) if not loss < delta]
            if not searching:
                break
        trajectory.append(torch.cat(z_t).detach())
    return Inversion(torch.stack(trajectory), spent)
