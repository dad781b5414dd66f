"""A training under way: accelerator, optimiser, losses and checkpoints, one call each in the loop of every train.py.

Weights, optimiser, learning rate schedule and the step's number are all that a run needs to go on in the same bytes.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from common.files import InputError, read_object, refused_as
from common.flags import check_device
from common.joining import resolved
from common.runs import digest_of, find_checkpoint, load_checkpoint, progress, save_checkpoint
from common.shards import told_by_launch
from common.training import picture_hashes, step_generator

# Flags that may differ between a run and its continuation: what does not change a step (steps may too, where the
# schedule does not know them), and where pictures lie, for what both have in common is what the pictures are.
FREE = {"output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "validation_prompt",
        "validation_steps", "num_validation_images", "report_to", "print_config", "sample_batch_size", "device",
        "gradient_checkpointing", "basis_dir", "instance_data_dir", "class_data_dir", "image_path", "data_dir",
        "concepts_list", "train_data_dir", "boxes_file"}  # fmt: skip


@dataclass(eq=False)
class Run:
    """args: the script's flags. weights: the trained tensors by name. who: see `identity`. first: the step that it
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
        return step_generator(self.args.seed, step, micro, self.accelerator.process_index)

    def turn(self, step: int, micro: int) -> int:
        """Which micro-step this is, from 0 on, of all that all processes take."""
        before = step * self.args.gradient_accumulation_steps + micro
        return before * self.accelerator.num_processes + self.accelerator.process_index

    def backward(self, loss: Tensor) -> None:
        """The gradient of a micro-step's loss, which counts as one of several."""
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)

    def update(self, losses: Sequence[Tensor], step: int, more_gradient: Callable[[], None] | None = None) -> float:
        """The optimiser's step after `backward` of every micro-step's loss; returns their mean.

        Gradients are averaged over the processes (no wrapper is put around a model, which would send frozen weights
        about), unscaled, joined by what `more_gradient()` adds to them, and clipped to --max_grad_norm (0: never).
        Raises InputError, in all processes and before any weight moves, if the mean loss is not finite.
        """
        accelerator, optimizer = self.accelerator, self.optimizer
        loss = accelerator.reduce(torch.stack([loss.detach().float() for loss in losses]).mean(), "mean").item()
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {step}: lower --learning_rate, or train in float32")
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")
        accelerator.unscale_gradients(optimizer)
        if more_gradient is not None:
            more_gradient()
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        optimizer.step()
        self.schedule.step()
        optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss)
        return loss

    def due(self, done: int, every: int | None) -> bool:
        """Whether what comes every so many steps comes now, and is this process's to do. every: None for never."""
        return self.accelerator.is_main_process and bool(every) and done % every == 0

    def save(self, done: int) -> None:
        """checkpoint-<done> where one is due; none after the last step. Raises InputError if a weight has diverged."""
        if not self.due(done, self.args.checkpointing_steps) or done == self.args.max_train_steps:
            return
        check_finite(self.weights)
        scaler = self.accelerator.scaler
        state = {"who": self.who, "weights": {name: tensor.detach().cpu() for name, tensor in self.weights.items()},
                 "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                 "scaler": scaler.state_dict() if scaler else {}, "losses": self.losses}  # fmt: skip
        save_checkpoint(self.args.output_dir, done, state, self.args.checkpoints_total_limit)

    @torch.no_grad()
    def resume(self) -> None:
        """Put the checkpoint that --resume_from_checkpoint names into place, if there is one. Raises InputError if it
        is damaged or belongs to a training with other flags, pictures or another base model."""
        path = find_checkpoint(self.args.output_dir, self.args.resume_from_checkpoint)
        if path is None:
            return
        saved = load_checkpoint(path)
        before, tensors = (saved.get(name) for name in ("who", "weights"))
        if not isinstance(before, dict) or not isinstance(tensors, dict):
            raise InputError(f"{path} is no checkpoint of a training")
        check_same(path, before, self.who)
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.weights.items()}:
            raise InputError(f"{path} was made for another model: the names or shapes of its tensors differ")
        if saved["step"] > (most := self.args.max_train_steps):
            raise InputError(f"{path} is beyond --max_train_steps {most}; ask for more, or name another")
        for name, tensor in self.weights.items():
            tensor.copy_(tensors[name])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.accelerator.scaler and saved["scaler"]:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.first, self.losses = saved["step"], saved.get("losses", [])

    def seconds(self, spent: float | None = None) -> float:
        """Of the whole training: steps before a checkpoint count at the pace of later ones. spent: since `begin`, by
        default to now."""
        spent = time.perf_counter() - self.began if spent is None else spent
        steps = self.args.max_train_steps
        return spent * steps / (steps - self.first) if self.first < steps else spent


# ------------------------------------------------------------------------------------------------------------- begin


def make_accelerator(args: argparse.Namespace, name: str):
    """accelerate's Accelerator for devices, processes, mixed precision and tracker (under the project's `name`);
    accumulation is the loop's business."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # another training in the same process may have had another precision
    tracker = None if args.report_to == "none" else args.report_to
    check_device(args.device)
    if args.mixed_precision == "fp16" and (args.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("--mixed_precision fp16 needs a GPU; take bf16 or no")
    # told nothing, accelerate would run several processes without a GPU side by side, each as if it were alone
    cpu = told_by_launch().get("WORLD_SIZE", 1) > 1 and not torch.cuda.is_available() or args.device == "cpu"
    with refused_as("the processes of this training do not find each other"):
        accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=cpu, log_with=tracker,
                                  project_dir=args.output_dir)  # fmt: skip
    if tracker:
        plain = {key: value for key, value in vars(args).items() if isinstance(value, int | float | str | bool)}
        accelerator.init_trackers(name, config=plain)
    return accelerator


def make_optimizer(parameters: Iterable, args: argparse.Namespace, processes: int = 1, kind=torch.optim.AdamW):
    """(optimiser, learning rate schedule). parameters: tensors, or groups {"params", "lr"} with rates of their own.
    kind: torch.optim.AdamW, or Adam, whose weight decay goes through its moments."""
    from diffusers.optimization import get_scheduler

    betas = args.adam_beta1, args.adam_beta2
    optimizer = kind(parameters, args.learning_rate, betas, args.adam_epsilon, args.adam_weight_decay, fused=True)
    if args.scale_lr:
        for group in optimizer.param_groups:
            group["lr"] *= args.gradient_accumulation_steps * args.train_batch_size * processes
    steps = {"num_warmup_steps": args.lr_warmup_steps, "num_training_steps": args.max_train_steps}
    return optimizer, get_scheduler(args.lr_scheduler, optimizer, **steps)


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
    optimizer, schedule = make_optimizer(groups, args, accelerator.num_processes, kind)
    run = Run(args, accelerator, weights, accelerator.prepare(optimizer), schedule, who, lock=lock)
    run.resume()
    check_replaced(Path(args.output_dir), who, () if args.resume_from_checkpoint else results)
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


# ---------------------------------------------------------------------------------------- which training, which weights


def identity(args: argparse.Namespace, pictures: Iterable[str | Path] = (), **base: Any) -> dict[str, Any]:
    """What a checkpoint and the run that takes it up have in common: the flags but FREE, the number of processes,
    base=fingerprint(…), and all pictures of the training (class pictures included), wherever they lie."""
    free = FREE | ({"max_train_steps"} if args.lr_scheduler.startswith("constant") else set())
    flags = {name: resolved(value) if name.endswith("_path") else value
             for name, value in vars(args).items() if name not in free}  # fmt: skip
    flags["processes"] = told_by_launch().get("WORLD_SIZE", 1)  # each draws samples and noise of its own
    return json.loads(json.dumps({**flags, **base, "pictures": picture_hashes(pictures)}, default=str))


def check_same(path: str | Path, before: dict[str, Any], who: dict[str, Any]) -> None:
    """Raises InputError if a checkpoint of identity `before` is of another training than that of `who`."""
    for key in sorted((before.keys() | who.keys()) - {"pictures"}):
        if before.get(key) != who.get(key):
            raise InputError(f"{path} is of a training with another {key} ({before.get(key)!r}, now {who.get(key)!r}); "
                             "take the same one, or start anew in another --output_dir")  # fmt: skip
    if changed := changed_picture(before.get("pictures", []), who["pictures"]):
        raise InputError(f"{path} is of a training on other pictures: {changed}; take the same ones, or start anew in "
                         "another --output_dir")  # fmt: skip


def changed_picture(before: list[list[str]], now: list[list[str]]) -> str | None:
    """What differs between the pictures of two identities, in words; names alone may differ."""
    old, new = [digest for _, digest in before], [digest for _, digest in now]
    added = [name for name, digest in now if digest not in old]
    gone = [name for name, digest in before if digest not in new]
    if both := [name for name in added if name in gone]:
        return f"{both[0]} is another picture now"
    if added or gone:
        return f"{added[0]} is new" if added else f"{gone[0]} is gone"
    return None if old == new else "their order, which follows their names, is another one"


def check_replaced(folder: Path, who: Mapping[str, Any], results: Iterable[str]) -> None:
    """Raises InputError if a folder holds config.json or `results` of another training than that of identity `who`."""
    there = [name for name in ("config.json", *results) if (folder / name).exists()]
    if not there:
        return
    before = read_object(folder / "config.json") if "config.json" in there else {}
    if before.get("training") != digest_of(who):
        changed = (name for name in who if name in before and before[name] != who[name] != resolved(before[name]))
        other = next(changed, "training pictures")
        raise InputError(f"{folder} holds {there[-1]} of another run (other {other}), which this training would "
                         "replace; take another --output_dir, or remove it")  # fmt: skip


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve digits that tell models apart: of names, shapes and some twenty evenly spread values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        spread = flat[:: max(1, len(flat) // 16)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + spread.tobytes())
    return digest.hexdigest()[:12]


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises InputError if a tensor holds NaN or infinity, which the loss of the step before does not tell."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} has diverged: lower --learning_rate, or train in float32; nothing is saved")
