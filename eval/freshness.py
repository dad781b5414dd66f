"""Which experiments there are (experiments.toml), and whether the rows kept of each are of the present world.

Rows are fresh while what they depend on is as it was: the commands, the settings that the entry names, the weights,
what the picturebook draws, and the protocol number of every measure that is shown or judged (protocols.toml). A change
of code that keeps these makes nothing stale.
"""

import functools
import importlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.claims import PAPERS, read_claims
from common.runs import InputError, digest_of, read_object, read_rows

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"  # committed
FRESH, STALE, MISSING = "fresh", "stale", "not run"
MODELS = ("unet", "vae", "clip", "text_encoder", "dino", "classifier")  # what most experiments run or score with


@dataclass(frozen=True)
class Experiment:
    """One entry of experiments.toml; its head explains the fields."""

    id: str
    title: str
    question: str
    commands: list[str]
    n: int
    minutes: float
    tier: int
    rows: str = "rows.jsonl"
    quick: str = "--limit 2 --num_inference_steps 2"
    shards: bool = False
    settings: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    table: str = ""
    figure: str = ""
    gpu: str = ""
    models: tuple[str, ...] = MODELS

    @property
    def kept(self) -> Path:
        """The committed rows, or what was printed; beside them <id>.json says where they come from."""
        return RESULTS / f"{self.id}{'.jsonl' if self.rows else '.txt'}"

    @property
    def about(self) -> Path:
        return self.kept.with_suffix(".json")

    @property
    def took(self) -> float:
        """Minutes: measured, where there are rows, or expected."""
        return read_object(self.about)["minutes"] if self.about.is_file() else self.minutes


@functools.cache
def experiments() -> dict[str, Experiment]:
    """By id, in the order of the file. InputError for an entry that lacks something."""
    found = {}
    for entry in read_toml(HERE / "experiments.toml")["experiment"]:
        try:
            one = Experiment(**entry)
        except TypeError as problem:
            raise InputError(f"experiments.toml, {entry.get('id')!r}: {problem}") from None
        if one.id in found:
            raise InputError(f"experiments.toml has {one.id!r} twice")
        found[one.id] = one
    return found


def find(name: str) -> Experiment:
    if name not in experiments():
        raise InputError(f"there is no experiment {name!r}; --list shows all")
    return experiments()[name]


def read_toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def protocols() -> dict[str, int]:
    return read_toml(HERE / "protocols.toml")["protocols"]


def claims_of(name: str) -> list[dict[str, Any]]:
    """The claims of all papers that an experiment decides."""
    return [claim for paper in PAPERS for claim in read_claims(paper) if claim["experiment"] == name]


def measures_of(experiment: Experiment) -> list[str]:
    """The scores that its table shows or a claim reads."""
    judged = [claim[key] for claim in claims_of(experiment.id) for key in ("score", "matched") if key in claim]
    return list(dict.fromkeys([*experiment.columns, *judged]))


def settings_of(place: str) -> Any:
    """What decides a result beside the command: a toml file of the project, or "module:NAME", a plain constant."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name) if name else read_toml(ROOT / place)


def fingerprint(experiment: Experiment) -> dict[str, Any]:
    """All that its rows depend on."""
    from common.picturebook.hashes import data_hash, weights_hash

    known = protocols()
    return {
        "commands": experiment.commands,
        "settings": {place: digest_of(settings_of(place)) for place in experiment.settings},
        "weights": weights_hash(*experiment.models),
        "drawing": data_hash(),
        "protocols": {name: known.get(name, 1) for name in measures_of(experiment)},
    }


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed between two fingerprints, in words. A measure that was not asked for then is no change."""
    found = [name for name in ("commands", "weights", "drawing") if before.get(name) != now[name]]
    then, measured = before.get("settings", {}), before.get("protocols", {})
    found += [f"settings of {place}" for place, value in now["settings"].items() if then.get(place) != value]
    return found + [f"protocols of {name}" for name, value in now["protocols"].items()
                    if measured.get(name, value) != value]  # fmt: skip


def state(experiment: Experiment) -> tuple[str, str]:
    """(fresh, stale or not run; what is stale about it)."""
    if not experiment.kept.is_file() or not experiment.about.is_file():
        return MISSING, ""
    changed = differing(read_object(experiment.about).get("fingerprint", {}), fingerprint(experiment))
    return (STALE, ", ".join(changed)) if changed else (FRESH, "")


def fresh_rows(name: str) -> list[dict]:
    """The kept rows of an experiment if they are of the present world, else none."""
    experiment = experiments().get(name)
    if experiment is None or not experiment.rows or state(experiment)[0] != FRESH:
        return []
    return read_rows(experiment.kept)
