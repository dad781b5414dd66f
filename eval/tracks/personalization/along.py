"""The weights at several steps of one training, each as a training of that many steps would have left them.

Trainings resume exactly, so that a run to the longest, with checkpoints, holds all shorter ones: each is written out by
taking its checkpoint up and asking for no further step. That is true of a constant learning rate alone.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from common.data import Subject
from common.runs import InputError
from eval.tracks.personalization.methods import Method

WHOLE = "whole"


def train_along(
    method: Method, subject: Subject, folder: Path, model: str, settings: dict[str, Any], seed: int, steps: list[int]
) -> dict[int, Path]:
    """step -> folder of the weights after so many steps, inside `folder`. Raises InputError for another schedule."""
    if settings.get("lr_scheduler", "constant") != "constant":
        raise InputError(f"--lr_scheduler {settings['lr_scheduler']} knows its last step: points along one run need "
                         "constant")  # fmt: skip
    longest, whole = max(steps), folder / WHOLE
    shared = settings | {"class_data_dir": whole / "class_pictures"}
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    every = {"checkpointing_steps": math.gcd(*steps)} if len(steps) > 1 else {}
    method.train(subject, whole, model, shared | every | {"max_train_steps": longest}, seed)
    found = {}
    for step in sorted(steps)[:-1]:
        found[step] = folder / f"step-{step}"
        taken_up = {"max_train_steps": step, "resume_from_checkpoint": whole / f"checkpoint-{step}"}
        method.train(subject, found[step], model, shared | taken_up, seed)
    for place in whole.glob("checkpoint-*"):
        shutil.rmtree(place)
    return found | {longest: whole}
