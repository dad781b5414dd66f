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
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean

from common.flags import check_writable, number
from common.runs import InputError, make_parser, script
from common.shards import add_shard_flag
from common.tables import by, by_method, score_table
from eval.tuning.tuner import write_settings

RATES, PRIORS, LAMBDAS = (1e-4, 3e-4, 1e-3), (0.3, 1.0, 3.0), (5.0, 50.0, 500.0)
STEPS = (100, 200, 400)
ARMS = ("plain", "prior", "penalty", "interpolation", "random")
TRAINED = {  # arm -> method, and the flag of its weight
    "plain": ("dreambooth", ""), "prior": ("dreambooth+prior", "prior_loss_weight"),
    "penalty": ("dreambooth+penalty", "l2_reg_weight"),
}  # fmt: skip
GATE_LIKENESS, GATE_LEAK = 0.5, 0.3
CHOICE = Path(__file__).parents[2] / "tuning" / "lawn.toml"


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
        return TRAINED[self.arm][0]

    @property
    def flags(self) -> dict[str, float]:
        flag = TRAINED[self.arm][1]
        return {"learning_rate": self.rate, **({flag: self.weight} if flag else {})}


def settings_of(arms: list[str]) -> list[Setting]:
    """Every training that the arms need; interpolation and the random change begin at plain weights."""
    weights = {"plain": (0.0,), "prior": PRIORS, "penalty": LAMBDAS}
    wanted = dict.fromkeys(arm if arm in weights else "plain" for arm in sorted(arms, key=ARMS.index))
    return [Setting(arm, rate, weight) for arm in wanted for rate in RATES for weight in weights[arm]]


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
    add_shard_flag(parser, "trainings")
    add("--device", help="cpu, cuda; a GPU if there is one by default")
    args = parser.parse_args(argv)
    args.limit = args.limit or {"validation": 3, "test": 8}[args.split]
    check_writable(Path(args.output_dir))
    return args


# ---------------------------------------------------------------------------------------------------------- judgement


def means_of(rows: list[dict], *keys: str) -> dict[str, list[float]]:
    """point -> its mean scores over subjects and seeds."""
    return {name: [sum(row["metrics"][f"{key} (picturebook)"] for row in own) / len(own) for key in keys]
            for name, own in by(rows, "method").items()}  # fmt: skip


def gate(rows: list[dict]) -> tuple[bool, str]:
    """Whether plain DreamBooth fails where it has learned the subject, at any rate and step; and what was seen."""
    means = means_of([row for row in rows if row["arm"] == "plain"], "likeness", "leak", "class_kept")
    seen = [(likeness, max(leak, 1 - kept), name) for name, (likeness, leak, kept) in means.items()]
    learned = [one for one in seen if one[0] >= GATE_LIKENESS]
    if not learned:
        return False, f"nothing was learned: likeness is at most {max(seen)[0]:.2f}"
    likeness, lost, name = max(learned, key=lambda one: one[1])
    return lost >= GATE_LEAK, f"{name}: likeness {likeness:.2f}, leaked or class lost {lost:.2f}"


def choose(rows: list[dict]) -> dict[str, dict]:
    """arm -> rate and weight of the run whose best point is best, the harmonic mean of likeness, context and class;
    and "free", the better of what costs nothing: stopping early at the best rate, or interpolating."""
    first = {name: own[0] for name, own in by(rows, "method").items()}
    best: dict[str, tuple[float, dict]] = {}
    for name, means in means_of(rows, "likeness", "context", "class_kept").items():
        value = harmonic_mean([max(0.0, min(1.0, mean)) for mean in means])
        if value > best.get(first[name]["arm"], (-1.0, {}))[0]:
            best[first[name]["arm"]] = value, {key: first[name][key] for key in ("rate", "weight")}
    found = {arm: chosen for arm, (_, chosen) in best.items()}
    free = max(((best[arm][0], arm) for arm in ("plain", "interpolation") if arm in best), default=None)
    return found | ({"free": {"arm": free[1], **found[free[1]]}} if free else {})


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
    chosen, own = read_choice(args), {"rate": setting.rate, "weight": setting.weight}
    places = {arm: at} | ({"interpolation": 1.0} if arm == "plain" and at == max(args.steps) else {})
    found = {name: place for name, place in places.items() if chosen.get(name) == own}
    free = [place for name, place in places.items() if chosen.get("free") == {"arm": name, **own}]
    return found | ({"free": free[-1]} if free else {})


def chosen_settings(args: argparse.Namespace) -> list[Setting]:
    """The trainings of the test split: what was chosen of each arm (interpolation and the random change are made of
    plain ones); every plain one where nothing was chosen."""
    chosen, wanted = read_choice(args), []
    for arm in args.arms:
        if values := chosen.get("plain" if arm == "random" else arm):
            wanted.append(Setting(arm if arm in TRAINED else "plain", **values))
    return [setting for setting in settings_of(args.arms) if setting in wanted or not chosen]


def table(rows: list[dict]) -> str:
    """The points' own scores, without DreamBench's."""
    shown = ("likeness", "context", "leak", "class_kept", "class_likeness")
    short = [row | {"metrics": {key: value for key, value in row["metrics"].items() if key.partition(" (")[0] in shown}}
             for row in rows]  # fmt: skip
    return score_table(by_method(short), "subjects")


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    settings = settings_of(args.arms) if args.split == "validation" else chosen_settings(args)
    from eval.tracks.personalization.lawn_run import run

    if not (rows := run(args, settings, curves_of)):
        return
    print(table(rows))
    if any(row["arm"] == "plain" for row in rows):
        passed, said = gate(rows)
        print(f"the gate is {'passed' if passed else 'NOT passed'}: {said}")
    if args.split == "validation" and set(args.arms) == set(ARMS):
        head = [f"Of each arm the run with the best point on {args.limit} validation subjects; written by",
                "python -m eval.tracks.personalization.lawn --split validation"]  # fmt: skip
        write_settings(CHOICE, head, choose(rows))
        print(f"written to {CHOICE}")


if __name__ == "__main__":
    main()
