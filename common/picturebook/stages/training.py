"""What every stage's loop shares: learning rate, moving average, checkpoints that survive a kill, progress."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn

SAVED_EVERY = 250  # steps
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast() -> torch.autocast:
    """bfloat16 where the processor multiplies matrices in it (1.5 to 2 times faster), else float32."""
    has_units = DEVICE.type == "cuda" or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=has_units)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200, decay: float = 0.3) -> float:
    """Linear warm-up, a plateau, and a linear descent to zero over the last `decay` share of the steps.

    The plateau does not depend on `steps`: a training may be continued with more of them.
    """
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


def save(path: Path, **state) -> None:
    """Writes a checkpoint atomically."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load(path: Path) -> dict:
    try:
        return torch.load(path, weights_only=True, map_location=DEVICE)
    except Exception as problem:  # torch raises half a dozen kinds for a damaged file
        raise OSError(f"{path} cannot be read ({type(problem).__name__}); remove it, and it is made anew") from None


class Run:
    """A training of `model`: its optimiser, the moving average of `averaged` (the part that is shipped) and its step.

    Continues from work/<name>.pt if that is there, and keeps it up to date. Everything random in a stage is drawn on
    the CPU from the step's number, so a killed training goes on exactly as it would have. Models are moved to DEVICE;
    the stages move their batches there.
    """

    def __init__(
        self, name: str, work: Path, model: nn.Module, steps: int, peak: float, averaged: nn.Module | None = None,
        ema: float = 0.998, betas=(0.9, 0.98), weight_decay: float = 0.05,
    ):  # fmt: skip
        self.name, self.path, self.steps, self.peak, self.decay = name, work / f"{name}.pt", steps, peak, ema
        self.model, self.averaged = model.to(DEVICE), averaged or model
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, peak, betas=betas, weight_decay=weight_decay, fused=True)
        self.ema = {key: value.detach().clone() for key, value in self.averaged.state_dict().items()}
        self.first = 0
        if self.path.exists():
            state = load(self.path)
            try:
                model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.ema, self.first = state["ema"], state["step"]
            except (KeyError, TypeError, ValueError, RuntimeError):
                raise OSError(f"{self.path} is of another network; remove it, or name another --work") from None
        self.start, self.shown = time.time(), {}

    def todo(self) -> range:
        return range(self.first, self.steps)

    def descend(self, step: int, loss: torch.Tensor, every: int = 50, **shown: torch.Tensor) -> None:
        """One optimiser step down `loss`; `shown` are values to print, averaged over `every` steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, self.peak)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.average(step)
        for key, value in {"loss": loss, **shown}.items():
            self.shown[key] = self.shown.get(key, 0.0) + value.detach().item() / every
        if (step + 1) % every == 0:
            self.print_progress(step)
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == self.steps:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema}
            save(self.path, step=step + 1, **state)

    @torch.no_grad()
    def average(self, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        state = self.averaged.state_dict()
        moving = [key for key, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.ema[key] for key in moving], [state[key] for key in moving], 1 - decay)
        for key in state.keys() - set(moving):
            self.ema[key].copy_(state[key])

    def print_progress(self, step: int) -> None:
        pace = (time.time() - self.start) / (step + 1 - self.first)
        values = " ".join(f"{key} {value:.4f}" for key, value in self.shown.items())
        left = pace * (self.steps - step - 1) / 60
        print(f"{self.name} {step + 1}/{self.steps} {values} | {pace:.2f} s/step, {left:.0f} min left", flush=True)
        self.shown = {}

    def finish(self) -> nn.Module:
        """The averaged model, frozen, on the CPU."""
        self.averaged.load_state_dict(self.ema)
        return self.averaged.cpu().eval().requires_grad_(False)
