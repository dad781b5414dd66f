"""The penalty where its failure occurs: subjects that were only ever pictured on one lawn.

    python -m eval.tracks.personalization.lawn --split validation --arms plain      the gate: is there anything to cure?
    python -m eval.tracks.personalization.lawn --split validation                   every arm; what is chosen of each
    python -m eval.tracks.personalization.lawn --split test                         the chosen ones, test subjects

Arms: plain DreamBooth; prior preservation; the penalty; and what costs nothing: the way back from plain weights to the
base's (interpolation), and, as a control, a random change of the same size. Rates are the same for all, steps are taken
along one run each; so stopping early and a lower rate are points of the plain arm. Three numbers of each point:

- likeness: the share of the way from the right kind and colour without identity (0) to the true picture (1)
- context: pictures that show all that their prompt asks for; leak: those that show the lawn instead
- class_kept: things of the subject's class in other colours that are still drawn as asked, and not as the subject

The gate: at a step where plain DreamBooth has learned the subject (likeness of GATE_LIKENESS), the lawn leaks into
GATE_LEAK of the pictures, or as many class words are lost. Claims: lipschitz_personalize/reproduction/claims.toml.
"""

import argparse
import json
import math
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.files import append_row, atomic_path
from common.flags import Shard, check_writable, number, shard, weights_of
from common.runs import InputError, make_parser, script, write_config
from eval.tracks.personalization.methods import METHODS

RATES, PRIORS, LAMBDAS = (1e-4, 3e-4, 1e-3), (0.3, 1.0, 3.0), (5.0, 50.0, 500.0)
STEPS = (50, 100, 200, 300)
STRENGTHS = (0.25, 0.5, 0.75)  # of the way from the base to the plain weights
ARMS = ("plain", "prior", "penalty", "interpolation", "random")
METHOD_OF = {"plain": "dreambooth", "prior": "dreambooth+prior", "penalty": "dreambooth+penalty"}
GATE_LIKENESS, GATE_LEAK = 0.5, 0.3
CHOICE = Path(__file__).parents[2] / "tuning" / "lawn.toml"
OTHERS = 4  # further things of the subject's class, in other colours
SEED_OF_OTHERS = 900


@dataclass(frozen=True)
class Setting:
    """A training: arm, learning rate, weight of class pictures or lambda (0: none)."""

    arm: str
    rate: float
    weight: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.arm} {self.rate:g}" + (f" {self.weight:g}" if self.weight else "")

    @property
    def method(self) -> str:
        return METHOD_OF[self.arm]

    @property
    def flags(self) -> dict[str, float]:
        weight = {"prior": "prior_loss_weight", "penalty": "l2_reg_weight"}.get(self.arm)
        return {"learning_rate": self.rate, **({weight: self.weight} if weight else {})}


def settings_of(arms: list[str]) -> list[Setting]:
    """Every training that the arms need; interpolation and the random change begin at plain weights."""
    weights = {"plain": (0.0,), "prior": PRIORS, "penalty": LAMBDAS}
    wanted = ["plain"] * bool(set(arms) & {"plain", "interpolation", "random"}) + [a for a in arms if a in weights]
    return [Setting(arm, rate, weight)
            for arm in dict.fromkeys(wanted) for rate in RATES for weight in weights[arm]]  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--split", choices=("validation", "test"), default="validation", help="test runs what validation has chosen")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="what to run; plain alone is the gate")
    add("--limit", type=number(int, 1), help="subjects; by default three of validation, eight of test")
    add("--steps", nargs="+", type=number(int, 1), default=list(STEPS), help="points along every run")
    add("--seeds", nargs="+", type=number(int, 0, 10**6), default=[0], help="trainings per subject and setting")
    add("--images_per_prompt", type=number(int, 1, 1000), default=1, help="pictures of each prompt")
    add("--num_inference_steps", type=number(int, 1, 1000), default=15, help="of sampling")
    add("--guidance_scale", type=number(float, 0), default=7.5, help="of sampling")
    add("--pretrained_model_name_or_path", default="picturebook", help="picturebook, or a folder with its marker")
    add("--output_dir", default="outputs/lawn", help="folder for rows and pictures; what is done is kept")
    add("--shard", type=shard, metavar="I/N", help="take the I-th of N parts of the trainings, for N processes")
    add("--device", help="cpu, cuda; a GPU if there is one by default")
    args = parser.parse_args(argv)
    args.limit = args.limit or {"validation": 3, "test": 8}[args.split]
    check_writable(Path(args.output_dir))
    return args


# ------------------------------------------------------------------------------------------------------------- points


def points_of(setting: Setting, steps: list[int], arms: list[str], device, folders: dict[int, Path], model: str):
    """(arm, name of the point, its place on the arm's curve, pipeline) of a training: its steps, and of a plain one
    what is made of its last weights."""
    from lipschitz_personalize.loading import load_trained
    from lipschitz_personalize.objectives import load_backbone

    if setting.arm in arms:
        for step in steps:
            yield setting.arm, f"{setting.name} @{step}", step, load_trained(folders[step], model, device)
    if setting.arm != "plain":
        return
    for strength in STRENGTHS if "interpolation" in arms else ():
        pipe = load_trained(folders[max(steps)], model, device, strength)
        yield "interpolation", f"interpolation {setting.rate:g} @{strength:g}", strength, pipe
    if "random" in arms:
        pipe, base = load_trained(folders[max(steps)], model, device), load_backbone(model, device)
        yield "random", f"random {setting.rate:g} @1", 1, randomly_moved(base, pipe)


def randomly_moved(base, pipe, seed: int = 0):
    """The base with every tensor moved as far as in `pipe`, in a direction of chance: what a change of that size does
    that has learned nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own, moved in zip(base.unet.parameters(), pipe.unet.parameters(), strict=True):
            direction = torch.randn(own.shape, generator=generator).to(own)
            own.add_(direction * ((moved.to(own) - own).norm() / direction.norm()))
    return base


# ------------------------------------------------------------------------------------------------------------- scores


def score(pipe, token: str, subject, data, eyes, how, seed: int) -> dict[str, float]:
    """The three numbers of a point and what they are made of; `data` is of `read_data`."""
    from eval.tracks.personalization import protocol, scoring

    pictures = protocol.sample_subject(pipe, data.templates, token, subject.class_name, seed, how)
    found, _ = scoring.subject_scores(pictures, data.templates, subject, data.references, eyes, data.truths)
    kind, seen = subject.class_name, [eyes.classifier.read(batch) for batch in pictures]
    wanted = [protocol.asked(template, kind) for template in data.templates]
    leaks = [reading.background == data.lawn for asked, row in zip(wanted, seen, strict=True)
             for reading in row if asked.get("background") not in (None, data.lawn)]  # fmt: skip
    prompts = [prompt for prompt, _ in data.others for _ in range(how.images_per_prompt)]
    seeds = [protocol.picture_seed(seed, SEED_OF_OTHERS + n // how.images_per_prompt, n % how.images_per_prompt)
             for n in range(len(prompts))]  # fmt: skip
    others = protocol.sample(pipe, prompts, seeds, how)
    colors = [color for _, color in data.others for _ in range(how.images_per_prompt)]
    kept = [reading.things[0]["kind"] == kind and reading.things[0]["color"] == color
            for reading, color in zip(eyes.classifier.read(others), colors, strict=True)]  # fmt: skip
    return found | {
        "leak (picturebook)": scoring.share(leaks),
        "class_kept (picturebook)": scoring.share(kept),
        "class_likeness (picturebook)": scoring.likeness_of(others, data.truths, data.references, eyes.dino),
    }


@dataclass(frozen=True)
class Data:
    """Of a subject: prompt templates, its own pictures, scoring.Truths, the background of all of them, and (prompt,
    colour) of other things of its class."""

    templates: list[str]
    references: list
    truths: object
    lawn: str
    others: list[tuple[str, str]]


def read_data(folder: Path, truths: Path, subject, classifier) -> Data:
    from collections import Counter

    from common.picturebook.scenes import BACKGROUND_WORDS, COLORS, HELD_OUT
    from eval.tracks.personalization import protocol, scoring

    references = scoring.read_references(subject)
    readings = [classifier.read(reference)[0] for reference in references]
    lawn, kind = Counter(reading.background for reading in readings).most_common(1)[0][0], subject.class_name
    usual = protocol.usual_color(kind, readings)
    colors = [color for color in COLORS if color != usual and (color, kind) not in HELD_OUT][:OTHERS]
    places = [words for name, words in BACKGROUND_WORDS.items() if name != lawn]
    others = [(f"a {color} {kind} {places[n % len(places)]}", color) for n, color in enumerate(colors)]
    templates = protocol.prompts_of(folder, subject)
    return Data(templates, references, scoring.read_truths(truths, subject, len(templates)), lawn, others)


# ------------------------------------------------------------------------------------------------------------- a run


def run(args: argparse.Namespace, settings: list[Setting]) -> list[dict]:
    """Train, sample and score what is missing; all rows."""
    from common.data import read_subjects
    from common.picturebook.benchmarks import ensure_lawn, ensure_truths
    from eval.tracks.personalization import protocol, scoring
    from eval.tracks.personalization.arena import read_all_rows

    output, model = Path(args.output_dir) / args.split, args.pretrained_model_name_or_path
    folder, truths = ensure_lawn(args.split), ensure_truths(args.split)
    subjects = read_subjects(folder)[: args.limit]
    write_config(output, args, weights=weights_of(model))
    eyes = scoring.load_eyes("picturebook", args.device)
    how = protocol.Sampling(args.num_inference_steps, args.guidance_scale, args.images_per_prompt)
    part = f"-{args.shard.index}of{args.shard.count}" if args.shard else ""
    work = [(setting, subject, seed) for seed in args.seeds for subject in subjects for setting in settings]
    for setting, subject, seed in (args.shard or Shard()).of(work):
        done = {(row["method"], row["item"], row["seed"]) for row in read_all_rows(output)}
        if (f"{setting.name} all", subject.name, seed) in done:
            continue
        data = read_data(folder, truths, subject, eyes.classifier)
        rows = list(rows_of(args, setting, subject, seed, data, eyes, how, output / "weights" / f"now{part}"))
        for row in rows:
            append_row(output / f"rows{part}.jsonl", row)
    return [row for row in read_all_rows(output) if row["metrics"]]


def rows_of(args, setting: Setting, subject, seed: int, data: Data, eyes, how, place: Path) -> Iterator[dict]:
    """One row for each point of a training, and an empty one that says that it is whole."""
    from eval.tracks.personalization.along import train_along

    model, method = args.pretrained_model_name_or_path, METHODS[setting.method]
    folders = train_along(method, subject, place, model, setting.flags, seed, args.steps)
    about = {"paper": "lipschitz_personalize", "item": subject.name, "kind": subject.class_name, "seed": seed,
             "seconds": math.nan, "peak_memory_mb": math.nan}  # fmt: skip
    for arm, name, at, pipe in points_of(setting, args.steps, args.arms, args.device, folders, model):
        metrics = score(pipe, method.token, subject, data, eyes, how, seed)
        yield about | {"method": name, "arm": arm, "rate": setting.rate, "weight": setting.weight, "at": at,
                       "curves": curves_of(arm, setting, at, args), "metrics": metrics}  # fmt: skip
    yield about | {"method": f"{setting.name} all", "metrics": {}}
    shutil.rmtree(place, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------- judgement


def gate(rows: list[dict]) -> tuple[bool, str]:
    """Whether plain DreamBooth fails where it has learned the subject, at any rate and step; and what was seen."""
    plain = [row for row in rows if row["arm"] == "plain"]
    seen = []
    for name in dict.fromkeys(row["method"] for row in plain):
        own = [row["metrics"] for row in plain if row["method"] == name]
        means = {key: sum(one[f"{key} (picturebook)"] for one in own) / len(own)
                 for key in ("likeness", "leak", "class_kept")}  # fmt: skip
        seen.append((means["likeness"], max(means["leak"], 1 - means["class_kept"]), name))
    learned = [one for one in seen if one[0] >= GATE_LIKENESS]
    worst = max(learned, key=lambda one: one[1], default=None)
    if worst is None:
        return False, f"nothing was learned: likeness is at most {max(seen)[0]:.2f}"
    return worst[1] >= GATE_LEAK, f"{worst[2]}: likeness {worst[0]:.2f}, leaked or class lost {worst[1]:.2f}"


def choose(rows: list[dict]) -> dict[str, dict]:
    """arm -> rate and weight of the run whose best point is best, the harmonic mean of likeness, context and class;
    and "free", the better of what costs nothing: stopping early at the best rate, or interpolating."""
    best: dict[str, tuple[float, dict]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        means = [min(1.0, sum(row["metrics"][f"{key} (picturebook)"] for row in own) / len(own))
                 for key in ("likeness", "context", "class_kept")]  # fmt: skip
        value = 3 / sum(1 / mean for mean in means) if min(means) > 0 else 0.0
        if value > best.get(own[0]["arm"], (-1.0, {}))[0]:
            best[own[0]["arm"]] = value, {key: own[0][key] for key in ("rate", "weight")}
    free = [(best[arm][0], arm) for arm in ("plain", "interpolation") if arm in best]
    found = {arm: chosen for arm, (_, chosen) in best.items()}
    return found | ({"free": {"arm": max(free)[1], **found[max(free)[1]]}} if free else {})


def read_choice(args: argparse.Namespace) -> dict[str, dict]:
    """What validation has chosen. InputError where it was not run, unless plain DreamBooth alone is wanted."""
    if CHOICE.is_file():
        return tomllib.loads(CHOICE.read_text(encoding="utf-8"))
    if set(args.arms) == {"plain"}:
        return {}
    raise InputError(f"{CHOICE} is not there: --split validation writes it, with all arms")


def curves_of(arm: str, setting: Setting, at: float, args: argparse.Namespace) -> dict[str, float]:
    """Of which curves (matched.py) a point is, and where: of its arm's if it was chosen, and of the free rival's. The
    weights at the end of plain training end the interpolation, too. None on the validation split."""
    if args.split == "validation":
        return {}
    chosen, found = read_choice(args), {}
    places = {arm: at} | ({"interpolation": 1.0} if arm == "plain" and at == max(args.steps) else {})
    for name, place in places.items():
        own = {"rate": setting.rate, "weight": setting.weight}
        if chosen.get(name) == own:
            found[name] = place
        if chosen.get("free") == {"arm": name, **own}:
            found["free"] = place
    return found


def write_choice(path: Path, chosen: dict[str, dict], subjects: int) -> None:
    lines = [f"# Of each arm the run with the best point on {subjects} validation subjects; written by",
             "# python -m eval.tracks.personalization.lawn --split validation"]  # fmt: skip
    for arm, values in chosen.items():
        lines += ["", f"[{arm}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def chosen_settings(args: argparse.Namespace) -> list[Setting]:
    """The trainings of the test split: plain at all rates, of which the free rivals are made, and each arm's chosen."""
    mine = {arm: Setting(arm, **values) for arm, values in read_choice(args).items() if arm in METHOD_OF}
    return [one for one in settings_of(args.arms) if one.arm == "plain" or one == mine.get(one.arm)]


def table(rows: list[dict]) -> str:
    """The points' own scores, without DreamBench's."""
    from common.tables import by_method, score_table

    shown = ("likeness", "context", "leak", "class_kept", "class_likeness")
    short = [row | {"metrics": {key: value for key, value in row["metrics"].items() if key.partition(" (")[0] in shown}}
             for row in rows]  # fmt: skip
    return score_table(by_method(short), "subjects")


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    rows = run(args, settings_of(args.arms) if args.split == "validation" else chosen_settings(args))
    if args.shard:
        print(f"shard {args.shard} is done; start without --shard for the choice when all are")
        return
    print(table(rows))
    if any(row["arm"] == "plain" for row in rows):
        passed, said = gate(rows)
        print(f"the gate is {'passed' if passed else 'NOT passed'}: {said}")
    if args.split == "validation" and set(args.arms) == set(ARMS):
        write_choice(CHOICE, choose(rows), args.limit)
        print(f"written to {CHOICE}")


if __name__ == "__main__":
    main()
