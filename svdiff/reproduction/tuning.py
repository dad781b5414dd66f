"""Rate, schedule and steps of every parameter space, on validation subjects: what each is then judged at.

The same grid for all: five rates, a factor of about three apart, times a constant rate and a cosine. The steps come
from checkpoints along the run of a constant rate; a cosine ends with its run, so it has one for each length. A score
is the harmonic mean of two shares: of the way that DINO goes from the base model's pictures to the subject's own,
and of the way that CLIP-T goes from the subject's own pictures, which obey no prompt, to the base model's. A training
that only copies, or that changes nothing, gets nothing. A winner at an edge of the grid is to be followed beyond it
(--rates).
"""

from common.metrics import parse_key
from common.runs import InputError, read_rows, write_json
from common.tables import by, text_table
from svdiff import merging
from svdiff.reproduction.figures import FROZEN, Method, compare, subject_panel
from svdiff.reproduction.scores import references
from svdiff.reproduction.study import SPACES, Study, concept, draw, is_done, training

RATES = {"svdiff": (5e-4, 2e-3, 5e-3, 2e-2, 5e-2), "full": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
         "lora": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}  # fmt: skip
SCHEDULES = ("constant", "cosine")
BASE, OWN = "base", "the subject's own pictures"
MOST = 100  # steps, unless --max_train_steps says otherwise


def lengths(study: Study) -> list[int]:
    most = study.args.max_train_steps or MOST
    return sorted({max(1, most * share // 4) for share in (1, 2, 3, 4)})


def settings(study: Study) -> list[tuple[str, float, str, int]]:
    """(space, rate, schedule, steps). --rates gives rates of one's own."""
    rates = by_space(study.args.rates) if study.args.rates else RATES
    return [(space, rate, schedule, steps) for space, own in rates.items() for rate in own for schedule in SCHEDULES
            for steps in (lengths(study) if schedule == "constant" else lengths(study)[1::2] or lengths(study))]


def by_space(rates: list[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for space, rate in rates:
        found.setdefault(space, []).append(rate)
    return found


def name_of(setting: tuple[str, float, str, int]) -> str:
    space, rate, schedule, steps = setting
    return f"{space} {rate:g} {schedule} {steps}"


def trained(study: Study, subject, setting: tuple[str, float, str, int]) -> merging.Change:
    """The training of a setting, text encoders frozen; of a constant rate the state at its step of the longest run."""
    space, rate, schedule, steps = setting
    step, most = min(lengths(study)), max(lengths(study))
    told, common = [concept(study, subject)], [*SPACES[space], FROZEN, "--learning_rate", f"{rate:g}"]
    name = f"{subject.name}-{space}-{rate:g}-{schedule}"
    if schedule == "cosine":
        flags = [*common, "--lr_scheduler", "cosine", "--max_train_steps", str(steps)]
        return merging.load(study.pipe, training(study, f"{name}-{steps}", told, *flags), study.bases)
    flags = [*common, "--checkpointing_steps", str(step)]
    folder = training(study, name, told, *flags, "--max_train_steps", str(most))
    if steps < most:
        flags += ["--max_train_steps", str(steps), "--resume_from_checkpoint", str(folder / f"checkpoint-{steps}")]
        folder = training(study, f"{name}-{steps}", told, *flags)
    return merging.load(study.pipe, folder, study.bases)


def run(study: Study) -> None:
    """tuning.json and tuning.png: every setting on every subject, and the best of each space."""
    every, panels = settings(study), []
    for subject in study.subjects:
        methods = [Method(BASE), *(Method(name_of(one), lambda subject=subject, one=one: trained(study, subject, one))
                                   for one in every)]  # fmt: skip
        panel = subject_panel(study, subject, methods)
        for item, prompt, score in panel.drawn:  # the subject's own pictures, under every prompt
            own = references(study, subject)
            if not is_done(study, OWN, item):
                draw(study, OWN, item, lambda seeds, own=own: own[[k % len(own) for k in range(len(seeds))]], score,
                     prompt=prompt)  # fmt: skip
        panels.append(panel)
    compare(study, panels, "tuning.png", ["input", BASE, *map(name_of, every)])
    found = {name_of(one): score_of(read_rows(study.rows), name_of(one)) for one in every}
    best = {space: max((one for one in every if one[0] == space), key=lambda one: found[name_of(one)])
            for space in dict.fromkeys(one[0] for one in every)}  # fmt: skip
    write_json(study.output / "tuning.json", {"scores": found, "best": {space: name_of(one) for space, one in
                                                                       best.items()}})  # fmt: skip
    lines = [["space", "rate", "schedule", "steps", "score", "at an edge"]]
    for space, one in best.items():
        rates = sorted({other[1] for other in every if other[0] == space})
        edge = one[1] in (rates[0], rates[-1]) or one[3] == max(lengths(study))
        lines.append([space, f"{one[1]:g}", one[2], str(one[3]), f"{found[name_of(one)]:.3f}", "yes" if edge else ""])
    print(text_table(lines))


def score_of(rows: list[dict], method: str) -> float:
    """The mean over subjects of a setting's score, 0 to 1. Raises InputError where rows are missing."""
    values = {name: by((row for row in rows if row["method"] == name), "item") for name in (BASE, OWN, method)}
    subjects: dict[str, list[float]] = {}
    for item in values[BASE]:
        if any(item not in values[name] for name in values):
            raise InputError(f"{method} has no row of {item} yet; start the run again")
        (base, own, ours) = (means(values[name][item]) for name in (BASE, OWN, method))
        likeness = share(ours["DINO"], base["DINO"], own["DINO"])
        obeys = share(ours["CLIP-T"], own["CLIP-T"], base["CLIP-T"])
        both = 2 * likeness * obeys / (likeness + obeys) if likeness + obeys else 0.0
        subjects.setdefault(item.partition("|")[0], []).append(both)
    return sum(sum(one) / len(one) for one in subjects.values()) / len(subjects)


def means(rows: list[dict]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row["metrics"].items():
            found.setdefault(parse_key(key)["name"], []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def share(value: float, low: float, high: float) -> float:
    """How far `value` is on the way from low to high, 0 to 1."""
    return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
