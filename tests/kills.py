"""Kill every training and evaluation at random moments, give the same command again, and compare its end with that of a
run that nobody disturbed: tensor for tensor, row for row, pixel for pixel.

    python -m tests.kills --times 10              every script, ten kills each; prints a table
    python -m tests.kills --times 1 svdiff.lora   one of them

A kill is SIGKILL to a process that was forked from this one, so that no library is imported twice. After each, what
stands under a final name has to be whole. A training that is killed goes on from the third checkpoint of the other.
"""

import argparse
import functools
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from common.data import Subject, write_subjects  # noqa: E402
from common.runs import COSTS, read_json, read_rows  # noqa: E402
from tests import small_data  # noqa: E402
from tests.image_inpaint.models import tiny_inpainter  # noqa: E402
from tests.pixels.tiny_models import few_numbers, write_eyes  # noqa: E402
from tests.tiny import tiny_sd  # noqa: E402

STEPS = ["--max_train_steps", "6", "--checkpointing_steps", "1", "--resume_from_checkpoint", "latest",
         "--num_validation_images", "1", "--device", "cpu", "--output_dir", "out"]  # fmt: skip
SUBJECT = ["--instance_data_dir", "../data/subject", "--instance_prompt", "a photo of a sks cat"]
CLASSES = ["--class_prompt", "a photo of a cat", "--class_data_dir", "classes", "--num_class_images", "2"]
SD, INPAINTER = (["--pretrained_model_name_or_path", f"../data/{name}"] for name in ("sd", "inpainter"))
SUBJECTS = ["--dataset", "../data/subjects"]
QUICK, ACCUMULATED = ["--num_inference_steps", "2"], ["--gradient_accumulation_steps", "2"]
PAIR = ["--output_dir", "out", "--device", "cpu", *QUICK]


def svdiff(space: str) -> list[str]:
    return [*SD, *SUBJECT, *CLASSES, *STEPS, "--parameter_space", space, "--basis_dir", "basis"]


def lipschitz(space: str, prompt: str = "a sks cat") -> list[str]:
    return [*SD, "--instance_data_dir", "../data/subject", "--instance_prompt", prompt, *STEPS, *QUICK,
            "--mixed_precision", "no", "--parameter_space", space]  # fmt: skip


def inpaint(kind: str, *more: str) -> list[str]:
    return [*INPAINTER, "--instance_data_dir", "../data/boxed", *STEPS, "--train_batch_size", "1", "--tuning", kind,
            *more]  # fmt: skip


# name -> (script, its arguments); each runs in a folder of its own beside data/
RUNS: dict[str, tuple[str, list[str]]] = {
    "svdiff.shifts": ("svdiff.train", [*svdiff("svdiff"), "--with_prior_preservation", "--lr_scheduler",
                                       "constant_with_warmup", "--lr_warmup_steps", "2", *ACCUMULATED]),
    "svdiff.lora": ("svdiff.train", [*svdiff("lora"), "--no-with_prior_preservation"]),
    "svdiff.full": ("svdiff.train", [*svdiff("full"), "--no-with_prior_preservation"]),
    "lipschitz.full": ("lipschitz_personalize.train", [*lipschitz("full"), "--l2_reg_weight", "20", "--lr_scheduler",
                                                       "cosine", "--no-cache_latents", *ACCUMULATED]),
    "lipschitz.prior": ("lipschitz_personalize.train", [*lipschitz("lora"), "--with_prior_preservation", *CLASSES]),
    "lipschitz.custom_diffusion": ("lipschitz_personalize.train",
                                   [*lipschitz("custom_diffusion", "a <new1> cat"), "--initializer_token", "cat"]),
    "image_inpaint.lora": ("image_inpaint.train", inpaint("lora", "--layer_dropout", "0.2")),
    "image_inpaint.cached": ("image_inpaint.train", inpaint("lora", "--cache_views", "3")),
    "image_inpaint.full": ("image_inpaint.train", inpaint("full", *ACCUMULATED)),
    "image_inpaint.pretrain": ("image_inpaint.train", [
        *SD, "--stage", "pretrain", "--prior", "none", "--train_data_dir", "../data/boxed", "--boxes", "whole",
        "--clip_model_name_or_path", "../data/encoders/clip-vit-large-patch14", "--train_batch_size", "1", *STEPS]),
    "textual_inversion": ("eval.baselines.textual_inversion",
                          [*SD, "--instance_data_dir", "../data/subject", "--initializer_token", "cat",
                           "--num_vectors", "2", *STEPS]),
    "oft": ("eval.baselines.oft", [*SD, *SUBJECT, *CLASSES, *STEPS]),
    "spdinv.eval": ("spdinv.eval", [*SD, "--dataset", "../data/bench", "--metric_encoders", "../data/encoders", *PAIR,
                                    "--inversions", "ddim", "spd", "--engines", "p2p", "--spd_rounds", "2"]),
    "pixels.eval": ("pixels.eval", [*SD, "--dataset", "../data/pairs", "--metric_encoders", "../data/eyes",
                                    "--methods", "pixels", "paste", *PAIR]),
    "svdiff.eval": ("svdiff.eval", [*SD, *SUBJECTS, "--metric_encoders", "../data/encoders", *PAIR, "--figure", "5",
                                    "--limit", "1", "--prompts", "1", "--images_per_prompt", "1", "--max_train_steps",
                                    "2", "--num_class_images", "2", "--basis_dir", "basis"]),
    "lipschitz.eval": ("lipschitz_personalize.eval", [
        *SD, *SUBJECTS, "--metric_encoders", "../data/eyes", *PAIR, "--methods", "dreambooth+penalty", "dreambooth",
        "--train_args", "--max_train_steps", "3", "--checkpointing_steps", "1", "--mixed_precision", "no", *QUICK,
        "--num_validation_images", "1"]),
    "image_inpaint.eval": ("image_inpaint.eval", [
        *INPAINTER, "--subjects", "../data/subjects", "--scenes", "../data/scenes", "--boxes", "whole", *PAIR,
        "--metric_encoders", "picturebook", "--methods", "untuned", "lora", "--items", "2", "--training_flags",
        "--max_train_steps 2 --train_batch_size 1 --cache_views 0 --checkpointing_steps 1"]),
    **{f"picturebook.{stage}": ("common.picturebook.build", [stage, "--steps", "6", "--work", f"checkpoint-{stage}",
                                                             "--threads", "1"])
       for stage in ("vae", "clip", "unet", "classifier", "dino", "inpaint")},
}  # fmt: skip


def write_data(root: Path) -> None:
    """Models of random weights, subjects, benchmarks and encoders, all small."""
    data = root / "data"
    tiny_sd(data / "sd")
    tiny_inpainter(data / "inpainter")
    pictures = small_data.write_noise(data / "subject", [(64, 64)] * 2)
    small_data.write_boxed(data / "boxed")
    (data / "scenes").mkdir()
    small_data.save_noise(data / "scenes" / "room.png")
    small_data.save_mask(data / "scenes" / "room_mask.png")
    cat = Subject("cat", "cat", True, pictures)
    write_subjects(data / "subjects", [cat], {"object": ["a {0} {1}"], "live": ["a red {0} {1}"]})
    small_data.write_benchmark(data / "bench")
    small_data.write_pie_encoders(data / "encoders")
    small_data.write_pairs(data / "pairs")
    write_eyes(data / "encoders", data / "eyes")
    shutil.copytree(data / "encoders" / "dino-vitb8", data / "eyes" / "dino-vits16")


class InThisProcess(nullcontext):
    """In place of a pool of processes."""

    def __enter__(self):
        return self

    def map(self, function, things, **how):
        return map(function, things)


def shorten() -> None:
    """Pictures at the end of a training are drawn in two steps in place of fifty; the picturebook has 24 scenes."""
    import image_inpaint.samples
    import svdiff.editing as editing
    from common import encoders
    from common.picturebook import shipping
    from common.picturebook.stages import classifier, clip, corpus, dino, inpaint, training, unet, vae

    encoders.load_inception = lambda *where: few_numbers()
    training.SAVED_EVERY, dino.INDIVIDUALS = 1, 24  # two of each kind
    dino.album = lambda work: np.stack([dino.draw_views(number) for number in range(24)])
    for stage in (vae, clip, unet, classifier, dino, inpaint):
        stage.BATCH = 4
    classifier.HELD_OUT_BATCH, classifier.SOFT, vae.scaling_factor = 2, 16, lambda *given: 1.0
    corpus.ProcessPoolExecutor = inpaint.ProcessPoolExecutor = InThisProcess
    scenes = corpus.Corpus
    corpus.Corpus = lambda work, count, *split: scenes(work, 24, *split)
    for name in [name for name in vars(shipping) if name.startswith("ship_")]:
        setattr(shipping, name, functools.partial(getattr(shipping, name), models=Path("out")))
    image_inpaint.samples.STEPS, draw = 2, editing.draw
    editing.draw = lambda pipe, prompt, seeds, how, *rest: draw(pipe, prompt, seeds, editing.Sampling(2), *rest)


def start(run: Callable[[list[str]], Any], words: list[str], place: Path) -> int:
    """A process that runs a script in `place`, with its log in a file there."""
    place.mkdir(exist_ok=True)
    if process := os.fork():
        return process
    code = 1
    try:
        os.chdir(place)
        with open("log.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
            run(words)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os._exit(code)


def wait(process: int, seconds: float | None = None) -> int | None:
    """The exit code of a process, or None if it still runs after so many seconds."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(0.005)


def without_costs(value: Any) -> Any:
    """A JSON value without what varies from run to run: times, memory, and whether the checkout is being edited."""
    if isinstance(value, dict):
        kept = [key for key in value if key not in COSTS and not re.search("seconds|memory|^dirty$|git_revision", key)]
        return {key: without_costs(value[key]) for key in kept}
    return [without_costs(one) for one in value] if isinstance(value, list) else value


def state_of(folder: Path) -> dict[str, str]:
    """Digests of everything that a run leaves, by name; checkpoints and hidden files are not what it is for."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or "checkpoint-" in name or "/." in f"/{name}" or name == "log.txt":
            continue
        if path.suffix == ".safetensors":
            bits = {key: tensor.contiguous().view(-1).view(torch.uint8) for key, tensor in load_file(path).items()}
            content = repr([(key, hashlib.sha256(bits[key].numpy()).digest()) for key in sorted(bits)])
        elif path.suffix == ".jsonl":
            content = repr(without_costs(read_rows(path)))
        elif path.suffix == ".json":
            content = json.dumps(without_costs(read_json(path)))
        elif path.suffix == ".csv":
            continue  # the rows again, with their times
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = hashlib.sha256(content.encode()).hexdigest()[:12]
    return found


def check_whole(folder: Path) -> None:
    """Every file under a final name can be read to its end (of rows the last may be torn); raises what it raises."""
    for path in folder.rglob("*"):
        if not path.is_file() or "/." in f"/{path.relative_to(folder).as_posix()}":
            continue
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".jsonl":
            read_rows(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()


def disturb(name: str, root: Path, times: int, rng: random.Random) -> dict[str, Any]:
    """One script: undisturbed, then killed `times` times and finished; what differs in the end."""
    import importlib

    script, words = RUNS[name]
    run = importlib.import_module(script).main
    begin = time.monotonic()
    code = wait(start(run, words, root / f"{name}.whole"))
    whole = time.monotonic() - begin
    if code:
        return {"name": name, "kills": 0, "whole": whole, "wrong": [f"exit code {code} undisturbed"]}
    kills, place, tries = 0, root / f"{name}.killed", 0
    for kept in (root / f"{name}.whole").glob("*/checkpoint-3"):
        shutil.copytree(kept, place / kept.parent.name / kept.name)
    while kills < times and tries < 4 * times:
        tries += 1
        process = start(run, words, place)
        if wait(process, rng.uniform(0.02, 1.0) * whole) is not None:  # at its end: begin again
            place.rename(root / f"{name}.killed.{tries}")
            continue
        os.kill(process, signal.SIGKILL)
        wait(process)
        kills += 1
        check_whole(place)
    code = wait(start(run, words, place))
    if code:
        return {"name": name, "kills": kills, "whole": whole, "wrong": [f"exit code {code} after kills"]}
    ours, theirs = state_of(place), state_of(root / f"{name}.whole")
    wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    left = [path.name for path in place.rglob(".*-*") if path.suffix != ".lock"]
    return {"name": name, "kills": kills, "whole": whole, "files": len(theirs), "wrong": wrong + left}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; all by default")
    parser.add_argument("--times", type=int, default=10, help="kills of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        os.environ["STEERING_CACHE"] = f"{root}/cache"
        with redirect_stdout(io.StringIO()):
            write_data(Path(root))
        shorten()
        for name in args.names or RUNS:
            found = disturb(name, Path(root), args.times, random.Random(f"{args.seed} {name}"))
            wrong += bool(found["wrong"])
            end = "equal in " + f"{found['files']} files" if not found["wrong"] else "; ".join(found["wrong"])
            print(f"{name:28} {found['kills']:3} kills in runs of {found['whole']:5.1f} s: {end}", flush=True)
            if found["wrong"]:
                for place in sorted(Path(root).glob(f"{name}.*/log.txt")):
                    print("   ", place.parent.name, *place.read_text().splitlines()[-3:], sep="\n    ", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
