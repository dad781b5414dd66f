"""What the trainings share: randomness by step, pictures, noise levels and targets, class pictures, exact resume.

Everything random of an optimiser step is drawn from a CPU generator that its number alone seeds (`step_generator`), and
the pictures follow one permutation per epoch (`picture_indices`). So weights, optimiser, learning rate schedule and the
step's number are all that a run needs to go on in the same bytes, and several processes see different data. The
training loops stand in each folder's train.py.
"""

import argparse
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.files import InputError, read_object, refused_as, write_json
from common.flags import check_device
from common.images import is_picture, list_pictures, load_image, save_png
from common.joining import resolved
from common.runs import latest_checkpoint, load_checkpoint, progress, save_checkpoint
from common.shards import told_by_launch

# Flags that may differ between a run and its continuation. (Steps may too, where the schedule does not know them.)
FREE = {"output_dir", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "validation_prompt",
        "validation_steps", "num_validation_images", "report_to", "print_config", "sample_batch_size", "device",
        "gradient_checkpointing", "basis_dir"}  # fmt: skip
# Where pictures lie. What a run and its continuation have in common is what the pictures are.
PLACES = {"instance_data_dir", "class_data_dir", "image_path", "data_dir", "concepts_list", "train_data_dir",
          "boxes_file"}  # fmt: skip
CLASS_FILE = "class_pictures.json"


# ------------------------------------------------------------------------------------------------------- randomness


def _generator(*numbers: int) -> torch.Generator:
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(seed))


def step_generator(seed: int, step: int, micro: int = 0, process: int = 0) -> torch.Generator:
    """The CPU generator of all that is random in a micro-step of optimiser step `step` on a process."""
    return _generator(0, seed, step, micro, process)


def picture_indices(
    count: int, batch_size: int, seed: int, step: int, micro: int = 0, micros: int = 1, process: int = 0,
    processes: int = 1,
) -> list[int]:  # fmt: skip
    """Which of `count` pictures a micro-step sees: each once per epoch, in an order of the epoch's own; the processes
    share an epoch out. micros: micro-steps per optimiser step."""
    first = ((step * micros + micro) * processes + process) * batch_size

    @functools.cache
    def order(epoch: int) -> list[int]:
        return torch.randperm(count, generator=_generator(1, seed, epoch)).tolist()

    return [order(place // count)[place % count] for place in range(first, first + batch_size)]


# --------------------------------------------------------------------------------------------------------- pictures


def load_pictures(
    folder_or_paths: str | Path | Sequence[Path], resolution: int, squash: bool = False,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> list[Tensor]:  # fmt: skip
    """A folder's pictures as uint8 [3,h,w], the shorter side `resolution` (bilinear, as diffusers' DreamBooth script).

    squash: both sides, whatever the proportions. InputError for a damaged picture, a strip of one, or an empty folder.
    """
    paths = list_pictures(folder_or_paths) if isinstance(folder_or_paths, str | Path) else folder_or_paths
    pictures = []
    for path in paths:
        image = load_image(path)
        short = min(image.size)
        if max(image.size) > 100 * short and not squash:
            raise InputError(f"{path} is {image.width}x{image.height} pixels; cut it, a training picture's longer side "
                             "may be a hundred times the shorter one at most")  # fmt: skip
        size = tuple(resolution if squash or side == short else int(resolution * side / short) for side in image.size)
        pixels = np.array(image.resize(size, resample))
        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return pictures


def picture_batch(
    pictures: Sequence[Tensor], indices: Iterable[int], resolution: int, generator: torch.Generator,
    center_crop: bool = False, random_flip: bool = False, corners: list[tuple[int, int]] | None = None,
) -> Tensor:  # fmt: skip
    """Pictures cut to squares as torchvision does: float32 [B,3,side,side] in [0,1]. corners: gets each (top, left)."""
    batch = []
    for index in indices:
        picture = pictures[index]
        spare = (picture.shape[1] - resolution, picture.shape[2] - resolution)
        top, left = (round(n / 2) if center_crop else int(torch.randint(n + 1, (), generator=generator)) for n in spare)
        square = picture[:, top : top + resolution, left : left + resolution]
        if random_flip and torch.rand((), generator=generator) < 0.5:
            square, left = square.flip(2), spare[1] - left
        if corners is not None:
            corners.append((top, left))
        batch.append(square.float() / 255)
    return torch.stack(batch)


def draw_pictures(
    pipe, prompts: list[str], generators: list[torch.Generator], resolution: int | None = None,
    num_inference_steps: int = 50, guidance_scale: float = 7.5,
) -> list[Image.Image]:  # fmt: skip
    """One picture per prompt by the pipeline's own call, each from a generator of its own."""
    pipe.set_progress_bar_config(disable=True)
    sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return pipe(prompts, height=resolution, width=resolution, generator=generators, **sampling).images


def generate_class_pictures(
    pipe, prompt: str, folder: str | Path, count: int, resolution: int | None = None, batch_size: int = 4,
    seed: int = 0, process: int = 0, processes: int = 1, **sampling: Any,
) -> list[Path]:  # fmt: skip
    """`count` pictures of `prompt` in a folder, of which only the missing ones are drawn; returns the paths made here.

    A user's own pictures count. Several processes share the drawing out. sampling: of draw_pictures. Raises InputError
    if the folder's own were drawn with another prompt or model, and for a resolution that the pipeline refuses.
    """
    folder = Path(folder)
    about = {"prompt": prompt, "model": str(pipe.name_or_path), "resolution": resolution, "seed": seed, **sampling}
    before = read_object(folder / CLASS_FILE) if (folder / CLASS_FILE).is_file() else about
    for name in (key for key in {**about, **before} if resolved(before.get(key)) != resolved(about.get(key))):
        raise InputError(f"the class pictures in {folder} were drawn with another {name} ({before.get(name)!r}); "
                         "take the same one, or another --class_data_dir")  # fmt: skip
    drawn = [folder / f"class-{number:05d}.png" for number in range(count)]
    there = {path for path in folder.iterdir() if is_picture(path)} if folder.is_dir() else set()
    drawn = drawn[: max(0, count - len(there - set(drawn)))]
    missing = [path for path in drawn[process::processes] if path not in there]
    if missing and resolution and resolution % 8:
        raise InputError(f"class pictures of --resolution {resolution} cannot be drawn: take a multiple of 8")
    if missing and process == 0:
        write_json(folder / CLASS_FILE, about)
    for start in progress(range(0, len(missing), batch_size), "class pictures", shown=bool(missing)):
        paths = missing[start : start + batch_size]
        generators = [step_generator(seed, int(path.stem[-5:])) for path in paths]
        images = draw_pictures(pipe, [prompt] * len(paths), generators, resolution, **sampling)
        for path, image in zip(paths, images, strict=True):
            save_png(path, image)
    return missing


# --------------------------------------------------------------------------------------------- diffusion's objective


def noised(alpha_bar: Tensor, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise (DDPM, Eq. 4). alpha_bar [T]; latents, noise [B,4,h,w]; t [B]."""
    a = alpha_bar.to(latents.device)[t].reshape(-1, 1, 1, 1)
    return (a.sqrt() * latents + (1 - a).sqrt() * noise).to(latents.dtype)


def target(prediction_type: str, alpha_bar: Tensor, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network is to say about z_t: "epsilon" the noise, "v_prediction" sqrt(a) noise - sqrt(1 - a) z_0."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        a = alpha_bar.to(latents.device)[t].reshape(-1, 1, 1, 1)
        return (a.sqrt() * noise - (1 - a).sqrt() * latents).to(latents.dtype)
    raise InputError(f"this model predicts {prediction_type!r}; epsilon and v_prediction can be trained")


# ------------------------------------------------------------------------------------- accelerator, optimiser, resume


def make_accelerator(args: argparse.Namespace, name: str):
    """accelerate's Accelerator for devices, processes, mixed precision and tracker (under the project's `name`).

    Accumulation is the loop's business: divide each micro-step's loss by --gradient_accumulation_steps, and `update`
    after the last one.
    """
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
    kind: torch.optim.AdamW, or Adam, whose weight decay goes through its moments.

    The schedule is to be stepped once per optimiser step, on every process.
    """
    from diffusers.optimization import get_scheduler

    betas = args.adam_beta1, args.adam_beta2
    optimizer = kind(parameters, args.learning_rate, betas, args.adam_epsilon, args.adam_weight_decay, fused=True)
    if args.scale_lr:
        for group in optimizer.param_groups:
            group["lr"] *= args.gradient_accumulation_steps * args.train_batch_size * processes
    steps = {"num_warmup_steps": args.lr_warmup_steps, "num_training_steps": args.max_train_steps}
    return optimizer, get_scheduler(args.lr_scheduler, optimizer, **steps)


def update(
    accelerator, optimizer, schedule, losses: Sequence[Tensor], max_grad_norm: float, step: int,
    more_gradient: Callable[[], None] | None = None,
) -> float:  # fmt: skip
    """The optimiser's step after `accelerator.backward(loss / micros)` of every micro-step; returns the mean loss.

    Gradients are averaged over the processes (no wrapper is put around a model, which would send frozen weights about),
    unscaled, joined by what `more_gradient()` adds to them, and clipped to max_grad_norm (0: never). The gradients are
    gone afterwards. losses: one scalar per micro-step, undivided. optimizer: as accelerator.prepare returns it.
    Raises InputError, in all processes and before any weight moves, if the mean loss is not finite.
    """
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
    if max_grad_norm:
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


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


def picture_hashes(paths: Iterable[str | Path]) -> list[list[str]]:
    """[file name, twelve digits of the file's content] of every picture, in their order."""
    return [[Path(path).name, hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]] for path in paths]


def identity(args: argparse.Namespace, pictures: Iterable[str | Path] | None = None, **base: str) -> dict[str, Any]:
    """What a checkpoint and the run that takes it up have in common: the flags but FREE, the number of processes,
    base=fingerprint(…), and [file name, twelve digits of its content] of every picture of the training (class pictures
    included) in its order, wherever they lie."""
    free = FREE | ({"max_train_steps"} if args.lr_scheduler.startswith("constant") else set())
    if pictures is not None:
        free, base = free | PLACES, {**base, "pictures": picture_hashes(pictures)}
    flags = {name: resolved(value) if name.endswith("_path") else value
             for name, value in vars(args).items() if name not in free}  # fmt: skip
    flags["processes"] = told_by_launch().get("WORLD_SIZE", 1)  # each draws samples and noise of its own
    return json.loads(json.dumps({**flags, **base}, default=str))


def _changed_picture(before: list[list[str]], now: list[list[str]]) -> str | None:
    """What differs between the pictures of two identities, in words; names alone may differ."""
    old, new = [digest for _, digest in before], [digest for _, digest in now]
    added = [name for name, digest in now if digest not in old]
    gone = [name for name, digest in before if digest not in new]
    if both := [name for name in added if name in gone]:
        return f"{both[0]} is another picture now"
    if added or gone:
        return f"{added[0]} is new" if added else f"{gone[0]} is gone"
    return None if old == new else "their order, which follows their names, is another one"


def save_training(
    args, step: int, weights: Mapping[str, Tensor], optimizer, schedule, who: dict, scaler=None,
    losses: Sequence[float] = (),
) -> Path:  # fmt: skip
    """checkpoint-<step> in --output_dir: the trained tensors, AdamW's state, the schedule's, `who` (identity), and the
    steps' losses so far. Raises InputError if a tensor has diverged."""
    check_finite(weights)
    state = {"who": who, "weights": {name: tensor.detach().cpu() for name, tensor in weights.items()},
             "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
             "scaler": scaler.state_dict() if scaler else {}, "losses": list(losses)}  # fmt: skip
    return save_checkpoint(args.output_dir, step, state, args.checkpoints_total_limit)


@torch.no_grad()
def resume_training(
    args, weights: Mapping[str, Tensor], optimizer, schedule, who: dict, scaler=None, losses: list[float] | None = None
) -> int:
    """Put the checkpoint that --resume_from_checkpoint names into place; returns its step, 0 without one. losses: gets
    those of the steps before, so that metrics tell of the whole training.

    Raises InputError if it is damaged or belongs to a training with other flags or another base model.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None:
        return 0
    near = Path(args.output_dir) / wanted
    path = latest_checkpoint(args.output_dir) if wanted == "latest" else near if near.is_dir() else Path(wanted)
    if path is None:
        return 0
    saved = load_checkpoint(path)
    try:
        before, tensors = saved["who"], saved["weights"]
        keys = (before.keys() | who.keys()) - {"pictures"}
        differing = sorted(key for key in keys if before.get(key) != who.get(key))
        changed = _changed_picture(before.get("pictures", []), who.get("pictures", []))
    except (KeyError, AttributeError, TypeError, ValueError):
        raise InputError(f"{path} is no checkpoint of a training") from None
    if differing:
        key = differing[0]
        raise InputError(f"{path} is of a training with another {key} ({before.get(key)!r}, now {who.get(key)!r}); "
                         "take the same one, or start anew in another --output_dir")  # fmt: skip
    if changed:
        raise InputError(f"{path} is of a training on other pictures: {changed}; take the same ones, or start anew in "
                         "another --output_dir")  # fmt: skip
    if tensors.keys() != weights.keys() or any(tensors[name].shape != weights[name].shape for name in weights):
        raise InputError(f"{path} was made for another model: the names or shapes of its tensors differ")
    if saved["step"] > args.max_train_steps:
        raise InputError(f"{path} is beyond --max_train_steps {args.max_train_steps}; ask for more, or name another")
    for name, tensor in weights.items():
        tensor.copy_(tensors[name])
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    if scaler and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    if losses is not None:
        losses.extend(saved.get("losses", ()))
    return saved["step"]
