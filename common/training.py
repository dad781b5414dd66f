"""What a training step is made of: randomness by step, pictures, class pictures, noise levels and targets.

Everything random of an optimiser step is drawn from a CPU generator that its number alone seeds (`step_generator`), and
the pictures follow one permutation per epoch (`picture_indices`). So a run can go on in the same bytes, and several
processes see different data. The loops stand in each folder's train.py; what they call beside it in training_run.py.
"""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.files import InputError, read_object, write_json
from common.images import is_picture, list_pictures, load_image, save_png
from common.joining import resolved
from common.runs import progress

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


def picture_hashes(paths: Iterable[str | Path]) -> list[list[str]]:
    """[file name, twelve digits of the file's content] of every picture, in their order."""
    return [[Path(path).name, hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]] for path in paths]


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
