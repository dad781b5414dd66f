"""Rate, schedule and steps of every parameter space, on validation subjects: what each is then judged at.

The same grid for all: four rates, a factor of about three apart, times a constant rate, whose steps come from
checkpoints along its run, and a cosine over all steps. A score
is the harmonic mean of two shares: of the way that DINO goes from the base model's pictures to the subject's own,
and of the way that CLIP-T goes from the subject's own pictures, which obey no prompt, to the base model's. A training
that only copies, or that changes nothing, gets nothing. A winner at an edge of the grid is to be followed beyond it
(--rates).
"""

from functools import partial
from statistics import fmean, harmonic_mean
from typing import NamedTuple

from common.claims import key_of
from common.data import Subject
from common.runs import InputError, read_rows, write_json
from common.tables import by, subject_of, text_table
from svdiff import merging
from svdiff.reproduction.figures import FROZEN, subject_panel
from svdiff.reproduction.scores import references
from svdiff.reproduction.study import SPACES, Maker, Method, Study

RATES = {"svdiff": (2e-3, 5e-3, 2e-2, 5e-2), "full": (3e-5, 1e-4, 3e-4, 1e-3), "lora": (1e-3, 3e-3, 1e-2, 3e-2),
         "key_value": (3e-4, 1e-3, 3e-3, 1e-2)}  # fmt: skip
BASE, OWN = "base", "the subject's own pictures"
MOST = 100  # steps, unless --max_train_steps says otherwise


class Setting(NamedTuple):
    space: str
    rate: float
    schedule: str
    steps: int

    def __str__(self) -> str:
        return f"{self.space} {self.rate:g} {self.schedule} {self.steps}"


def lengths(study: Study) -> list[int]:
    most = study.args.max_train_steps or MOST
    return sorted({max(1, most * share // 4) for share in (1, 2, 3, 4)})


def settings(study: Study) -> list[Setting]:
    """The grid; --rates gives rates of one's own."""
    rates = study.args.rates or [(space, rate) for space, own in RATES.items() for rate in own]
    steps = {"constant": lengths(study), "cosine": lengths(study)[-1:]}
    return [Setting(*one, schedule, count) for one in rates for schedule in steps for count in steps[schedule]]


def trained(study: Study, subject: Subject, setting: Setting) -> merging.Change:
    """The training of a setting, text encoders frozen; of a constant rate the state at its step of the longest run."""
    space, rate, schedule, steps = setting
    told = [study.concept(subject)]
    flags = [*SPACES[space], FROZEN, "--learning_rate", f"{rate:g}", "--lr_scheduler", schedule]
    name, most = f"{subject.name}-{space}-{rate:g}-{schedule}", max(lengths(study))
    if schedule == "cosine":
        return study.trained(f"{name}-{steps}", told, *flags, "--max_train_steps", str(steps))
    flags += ["--checkpointing_steps", str(min(lengths(study))), "--max_train_steps"]
    longest = study.training(name, told, *flags, str(most))
    if steps == most:
        return study.trained(name, told, *flags, str(most))
    return study.trained(f"{name}-{steps}", told, *flags, str(steps), "--resume_from_checkpoint",
                         str(longest / f"checkpoint-{steps}"))  # fmt: skip


def tuning(study: Study) -> None:
    """tuning.json and tuning.png: every setting on every subject, and the best of each space."""
    every, panels = settings(study), []
    for subject in study.subjects:
        own = references(study, subject)

        def shown(prompt: str, own=own) -> Maker:
            return lambda seeds: own[[k % len(own) for k in range(len(seeds))]]

        methods = [Method(OWN, make=shown, shown=False), Method(BASE),
                   *(Method(str(one), partial(trained, study, subject, one)) for one in every)]  # fmt: skip
        panels.append(subject_panel(study, subject, methods))
    study.compare(panels, "tuning.png")
    found = {one: score_of(read_rows(study.rows), str(one)) for one in every}
    best = {space: max((one for one in every if one.space == space), key=found.get)
            for space in dict.fromkeys(one.space for one in every)}  # fmt: skip
    write_json(study.output / "tuning.json", {"scores": {str(one): score for one, score in found.items()},
                                              "best": {space: str(one) for space, one in best.items()}})  # fmt: skip
    lines = [["space", "rate", "schedule", "steps", "score", "at an edge"]]
    for one in best.values():
        rates = [other.rate for other in every if other.space == one.space]
        edge = one.rate in (min(rates), max(rates)) or one.steps == max(lengths(study))
        lines.append([one.space, f"{one.rate:g}", one.schedule, str(one.steps), f"{found[one]:.3f}", "yes" * edge])
    print(text_table(lines))


def score_of(rows: list[dict], method: str) -> float:
    """The mean over subjects of a setting's score, 0 to 1. Raises InputError where rows are missing."""
    keys = [key_of(rows, name) for name in ("DINO", "CLIP-T")]
    values = {name: by((row for row in rows if row["method"] == name), "item") for name in (BASE, OWN, method)}
    subjects: dict[str, list[float]] = {}
    for item in values[BASE]:
        if any(item not in values[name] for name in values):
            raise InputError(f"{method} has no row of {item} yet; start the run again")
        base, own, ours = ([fmean(row["metrics"][key] for row in of[item]) for key in keys] for of in values.values())
        likeness, obeys = share(ours[0], base[0], own[0]), share(ours[1], own[1], base[1])
        subjects.setdefault(subject_of(item), []).append(harmonic_mean([likeness, obeys]))
    return fmean(map(fmean, subjects.values()))


def share(value: float, low: float, high: float) -> float:
    """How far `value` is on the way from low to high, 0 to 1."""
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
