"""What the penalty costs: its gradient against one training step, and a whole run against prior preservation."""

import time
from collections.abc import Callable

import torch

from common.training import step_generator
from lipschitz_personalize.objectives import add_noise, encode_text, network, predict, squared_error
from lipschitz_personalize.regularizer import make_regularizer

PROMPT, CLASS_PROMPT = "a sks cat", "a cat"


def penalty_rows(pipe, repeats: int = 5, batch_size: int = 1, base_dtype: torch.dtype = torch.float32) -> list[dict]:
    """Pairs {"step_seconds", "penalty_seconds", "base_mb"}: a plain step of full fine-tuning (forward, backward, Adam)
    and, right after its backward pass, the penalty's gradient, timed apart. base_mb: memory of the frozen copy."""
    step, regularizer = _training(pipe, batch_size, base_dtype)
    rows = []
    for repeat in range(repeats + 1):  # the first pair warms up
        plain, added = step(repeat, regularizer)
        rows.append({"step_seconds": plain, "penalty_seconds": added})
    memory = sum(tensor.numel() * tensor.element_size() for tensor in regularizer.base.values()) / 2**20
    return [{**row, "base_mb": memory} for row in rows[1:]]


def run_rows(pipe, repeats: int, steps: int, class_pictures: int, num_inference_steps: int = 50) -> list[dict]:
    """Pairs {"ours_seconds", "prior_seconds"} of a whole run, from its parts measured in turn: ours is `steps` steps of
    one picture with the penalty; prior preservation is as many steps of two, without, and the drawing of its class
    pictures."""
    one, regularizer = _training(pipe, 1, torch.float32)
    two, _ = _training(pipe, 2, torch.float32)
    rows = []
    for repeat in range(repeats + 1):
        ours, double = sum(one(repeat, regularizer)), two(repeat, None)[0]
        drawing = _seconds(lambda repeat=repeat: _draw(pipe, repeat, num_inference_steps))
        rows.append({"ours_seconds": steps * ours, "prior_seconds": steps * double + class_pictures * drawing})
    return rows[1:]


def _training(pipe, batch_size: int, base_dtype: torch.dtype):
    """(step, regularizer): step(number, regularizer or None) -> seconds of the plain step and of the penalty's
    gradient."""
    net = network(pipe).requires_grad_(True)
    parameters = dict(net.named_parameters())
    regularizer = make_regularizer(parameters, 1.0, base_dtype=base_dtype)
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.0, weight_decay=0.0, fused=True)  # the weights stay
    with torch.no_grad():
        cond = encode_text(pipe, [PROMPT, CLASS_PROMPT])[[number % 2 for number in range(batch_size)]]
        width = getattr(net.config, "cross_attention_dim", None) or cond.embeds.shape[-1]
        cond = cond.with_embeds(cond.embeds.repeat(1, 1, width // cond.embeds.shape[-1]))  # sd15_shapes
    side = net.config.sample_size
    latents = torch.randn(batch_size, net.config.in_channels, side, side, generator=step_generator(0, 0)).to(
        pipe.device
    )

    def backward(number: int) -> None:
        noisy = add_noise(pipe, latents, step_generator(0, number))
        squared_error(predict(pipe, noisy.z, noisy.t, cond), noisy).mean().backward()

    def finish() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def step(number: int, penalty) -> tuple[float, float]:
        plain = _seconds(lambda: backward(number))
        added = _seconds(penalty.add_gradient) if penalty else 0.0
        return plain + _seconds(finish), added

    return step, regularizer


@torch.no_grad()
def _draw(pipe, seed: int, num_inference_steps: int) -> None:
    pipe.set_progress_bar_config(disable=True)
    pipe(CLASS_PROMPT, num_inference_steps=num_inference_steps, generator=step_generator(seed, 0))


def _seconds(work: Callable[[], None]) -> float:
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sd15_shapes(pipe):
    """The pipeline with a random UNet of Stable Diffusion 1.5's shapes in place of its own, on 64x64 latents; text
    states are repeated to its width. For timings only: the pictures are noise. Needs some 20 GB."""
    from diffusers import UNet2DConditionModel

    with torch.device(pipe.device):
        pipe.unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            layers_per_block=2,
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    return pipe
