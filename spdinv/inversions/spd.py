"""Source Prompt Disentangled Inversion (paper, Sec. 3.2, Alg. 1): each inversion step is a search for the fixed point

    x = f(x),   f(x) = C_{t,1} z_{t-1} + C_{t,2} eps(x, t, c)                                                   (Eq. 3)

by gradient descent on its residual, the gradient going through the network.
"""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from common.ddim import Schedule, ddim_inverse_step
from common.pipelines import Conditioning, predict_noise
from spdinv.inversions import forward
from spdinv.inversions.descent import descend
from spdinv.inversions.residual import gradients, mean_square, norm
from spdinv.inversions.result import Inversion, clock


def algorithm_1(
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    optimizer_class: type[torch.optim.Optimizer],
    f: Callable[[torch.Tensor, list[int]], torch.Tensor],
    guess: torch.Tensor,
    rounds: int,
    threshold: float,
    learning_rate: float,
    network_dtype: torch.dtype,
) -> tuple[torch.Tensor, list[int], int]:
    """Lines 3 to 7, from `guess` [B,4,h,w]; f(x [n,4,h,w], images) is Eq. 3 for the n listed images.

    As the official code does: the optimiser starts afresh at every timestep, the test comes after the step, on the loss
    before it, and the last iterate is kept. Returns x, the rounds of each image, and the backward passes of all.
    """
    x = [image.clone().requires_grad_() for image in guess.split(1)]
    optimizer = optimizer_class(x, lr=learning_rate)
    searching, spent = list(range(len(x))), [0] * len(x)
    for _ in range(rounds):  # Alg. 1, l. 3
        optimizer.zero_grad()  # images that have stopped keep no gradient, so the optimiser passes them by
        with torch.enable_grad():
            candidate = torch.cat([x[i] for i in searching])
            loss = loss_of(candidate - f(candidate, searching))  # Eq. 4; Alg. 1, l. 4
            found = gradients(loss, [x[i] for i in searching], network_dtype)
        for i, gradient in zip(searching, found, strict=True):
            x[i].grad = gradient
            spent[i] += 1
        optimizer.step()  # Alg. 1, l. 5
        searching = [i for i, value in zip(searching, loss.tolist(), strict=True) if not value < threshold]
        if not searching:  # Alg. 1, l. 6
            break
    return torch.cat(x).detach(), spent, sum(spent)


def accelerated(f, guess, rounds, threshold, learning_rate, network_dtype) -> tuple[torch.Tensor, list[int], int]:
    """Anderson acceleration: the same fixed point and threshold, no gradient, so no learning rate."""
    return *forward.iterate(f, guess, rounds, threshold, forward.anderson), 0


def descent(f, guess, rounds, threshold, learning_rate, network_dtype) -> tuple[torch.Tensor, list[int], int]:
    """Gradient descent that finds its own step lengths, so no learning rate."""
    return descend(f, guess, rounds, threshold, network_dtype)


SOLVERS = {
    "adamw": partial(algorithm_1, mean_square, torch.optim.AdamW),  # as released, with torch's weight decay of 0.01
    "sgd": partial(algorithm_1, norm, torch.optim.SGD),  # l. 4-5 to the letter: z <- z - eta grad ||f(z) - z||_2
    "descent": descent,
    "anderson": accelerated,
}
THRIFTY = ("descent", "anderson")  # these take over the noise that the network saw last, instead of asking for a guess


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
    As the official code does, the guess of line 2 shows the network the timestep t (so it is f(z_{t-1})).
    "descent" and "anderson" are this project's: each round is one evaluation of f, the test comes before the step, and
    the answer is f(x), which costs nothing more. From the second level on their guess costs nothing either: it is the
    step by the noise that the network saw at the level before, in the latent that was found there.
    Images share network calls and nothing else: each has its own loss, its own optimiser state and its own stop.
    """
    start = clock(latents)
    everyone = list(range(len(latents)))
    trajectory, spent, cost = [latents], [], {"forward": 0, "backward": 0}
    noise = torch.zeros_like(latents)  # what the network saw last in each image
    for step, t in enumerate(tqdm(schedule.timesteps[::-1], "SPDInv", leave=False, disable=None)):  # Alg. 1, l. 1
        z = trajectory[-1]

        def f(x, images, z=z, t=t):  # Eq. 3
            eps = predict_noise(pipe, schedule, x, t, cond[images])
            noise[images] = eps.detach()
            cost["forward"] += len(images)
            return ddim_inverse_step(schedule, z[images], eps, t)

        thrifty = solver in THRIFTY and rounds > 0 and step > 0
        guess = ddim_inverse_step(schedule, z, noise, t) if thrifty else f(z, everyone)  # Alg. 1, l. 2
        x, rounds_spent, backward = SOLVERS[solver](f, guess, rounds, threshold, learning_rate, pipe.unet.dtype)
        trajectory.append(x)
        spent.append(rounds_spent)
        cost["backward"] += backward
    cost["seconds"] = clock(latents) - start
    return Inversion(torch.stack(trajectory), torch.tensor(spent), cost)
