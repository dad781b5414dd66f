"""A training under way: its optimiser, its losses and its checkpoints, one call each in the loop of every train.py."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from common import training
from common.runs import InputError, check_replaced, digest_of, progress


@dataclass(eq=False)
class Run:
    """args: the script's flags. weights: the trained tensors by name. who: training.identity. first: the step that it
    begins at, behind a checkpoint. losses: those of all steps so far, a checkpoint's included."""

    args: argparse.Namespace
    accelerator: Any
    weights: Mapping[str, Tensor]
    optimizer: Any
    schedule: Any
    who: dict[str, Any]
    losses: list[float] = field(default_factory=list)
    first: int = 0
    began: float = field(default_factory=time.perf_counter)
    lock: FileLock | None = None  # on the output folder, as long as this training lives

    @property
    def digest(self) -> str:
        """What config.json keeps of the training's identity."""
        return digest_of(self.who)

    @property
    def rate(self) -> float:
        return self.schedule.get_last_lr()[0]

    @property
    def last_loss(self) -> float:
        """The mean over the last fifty steps."""
        last = self.losses[-50:]
        return sum(last) / max(1, len(last))

    def steps(self) -> Iterator[int]:
        shown = self.accelerator.is_main_process
        return progress(range(self.first, self.args.max_train_steps), "training", shown=shown)

    def generator(self, step: int, micro: int) -> torch.Generator:
        """The CPU generator of all that is random in a micro-step on this process."""
        return training.step_generator(self.args.seed, step, micro, self.accelerator.process_index)

    def backward(self, loss: Tensor) -> None:
        """The gradient of a micro-step's loss, which counts as one of several."""
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)

    def update(self, losses: Sequence[Tensor], step: int, more_gradient: Callable[[], None] | None = None) -> float:
        """training.update; returns the step's mean loss."""
        self.losses.append(training.update(self.accelerator, self.optimizer, self.schedule, losses,
                                           self.args.max_grad_norm, step, more_gradient))  # fmt: skip
        return self.losses[-1]

    def save(self, done: int) -> None:
        """A checkpoint after `done` steps, where one is due; none after the last."""
        if self.due(done, self.args.checkpointing_steps) and done < self.args.max_train_steps:
            training.save_training(self.args, done, self.weights, self.optimizer, self.schedule, self.who,
                                   self.accelerator.scaler, self.losses)  # fmt: skip

    def due(self, done: int, every: int | None) -> bool:
        """Whether what comes every so many steps comes now, and is this process's to do. every: None for never."""
        return self.accelerator.is_main_process and bool(every) and done % every == 0

    def seconds(self, spent: float | None = None) -> float:
        """Of the whole training: steps before a checkpoint count at the pace of later ones. spent: since `begin`, by
        default to now."""
        spent = time.perf_counter() - self.began if spent is None else spent
        steps = self.args.max_train_steps
        return spent * steps / (steps - self.first) if self.first < steps else spent


def begin(
    accelerator, args: argparse.Namespace, weights: Mapping[str, Tensor], who: dict[str, Any],
    groups: Iterable | None = None, results: Iterable[str] = (), kind: type = torch.optim.AdamW,
) -> Run:  # fmt: skip
    """Optimiser and schedule, and the checkpoint that --resume_from_checkpoint names put into place. groups: of the
    optimiser, by default the weights in one. results: what a training leaves in --output_dir; without a config.json
    beside it, it is another's. Raises InputError for such, for a checkpoint of another training, and where another
    training is at work in --output_dir."""
    lock = held(Path(args.output_dir)) if accelerator.is_main_process else None
    groups = weights.values() if groups is None else groups
    optimizer, schedule = training.make_optimizer(groups, args, accelerator.num_processes, kind)
    run = Run(args, accelerator, weights, accelerator.prepare(optimizer), schedule, who, lock=lock)
    run.first = training.resume_training(args, weights, run.optimizer, schedule, who, accelerator.scaler, run.losses)
    check_replaced(args.output_dir, who, () if args.resume_from_checkpoint else results)
    return run


def held(folder: Path) -> FileLock:
    """A lock on an output folder for this process, in a file beside it; it ends with the process or the object."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.training.lock"), timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"another training is at work in {folder}; wait for its end, or take another "
                         "--output_dir") from None  # fmt: skip
    return lock
