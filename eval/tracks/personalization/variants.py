"""What the arena runs: each method with its tuned settings, and the curves that compare them at matched fidelity.

A curve turns one knob of one method and leaves the rest. Fig. 4's is the penalty's weight; the others are what a
sceptic would try instead: the weight of prior preservation, stopping early, a lower learning rate, and no training
trick at all but interpolating the fine-tuned weights back towards the base's.
"""

import argparse
import contextlib
import importlib
import io
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common.flags import as_flags, is_picturebook_folder
from eval.tracks.personalization.methods import METHODS
from lipschitz_personalize.reproduction.plan import with_recipe

SETTINGS = Path(__file__).parents[2] / "tuning/personalization.toml"  # tuned on the validation split
INTERPOLATION = "interpolation"  # the one knob that is turned after the training


class Curve(NamedTuple):
    """method: whose knob is turned, to factors of its tuned value; 1 is the method itself. title: on the page."""

    method: str
    knob: str
    factors: tuple[float, ...]
    title: str


CURVES = {
    "penalty": Curve("dreambooth+penalty", "l2_reg_weight", (0.1, 1, 10), "penalty, λ"),
    "prior": Curve("dreambooth+prior", "prior_loss_weight", (0.1, 1, 10), "prior preservation, weight"),
    "early_stopping": Curve("dreambooth", "max_train_steps", (0.2, 0.5, 1), "early stopping"),
    "lower_rate": Curve("dreambooth", "learning_rate", (0.1, 0.3, 1), "lower learning rate"),
    "interpolation": Curve("dreambooth", INTERPOLATION, (0.3, 0.6, 1), "interpolation to the base"),
}


@dataclass(frozen=True)
class Variant:
    """A method with one knob turned. name: in result rows. knob: None for the method as it is. curves: curve -> factor,
    of every curve that this is a point of."""

    name: str
    method: str
    knob: str | None = None
    factor: float = 1.0
    curves: dict[str, float] = field(default_factory=dict)

    @property
    def strength(self) -> float:
        """How far from the base's weights to the trained ones the model is loaded."""
        return self.factor if self.knob == INTERPOLATION else 1.0

    @property
    def trained_as(self) -> str:
        """The variant whose training this one shares: interpolation needs none of its own."""
        return self.method if self.knob == INTERPOLATION else self.name


def variants(methods: list[str], curves: list[str]) -> list[Variant]:
    """The methods as they are, in order, then the curves' further points; a curve brings its own method."""
    names = dict.fromkeys([*methods, *(CURVES[curve].method for curve in curves)])
    found = [Variant(name, name, curves={key: 1.0 for key, curve in CURVES.items() if curve.method == name})
             for name in names]  # fmt: skip
    for curve in curves:
        method, knob, factors, _ = CURVES[curve]
        found += [Variant(f"{method}@{knob}x{factor:g}", method, knob, factor, {curve: factor})
                  for factor in factors if factor != 1]  # fmt: skip
    return found


def tuned_settings() -> dict[str, dict[str, Any]]:
    """method -> flags of its script, tuned on the picturebook's validation subjects."""
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))


def plan(args: argparse.Namespace, tuned: dict[str, dict] | None = None):
    """(variants to run, variant -> flags of its training, method -> what all its flags resolve to).

    tuned: method -> flags over its script's defaults; by default those of eval/tuning/personalization.toml.
    """
    model = args.pretrained_model_name_or_path
    on_picturebook = is_picturebook_folder(model)
    names = args.methods or [name for name, method in METHODS.items() if not (method.needs and on_picturebook)]
    wanted = variants(names, args.curves)
    if tuned is None:
        tuned = tuned_settings() if on_picturebook else {}
    if args.device:
        tuned = {name: {**tuned.get(name, {}), "device": args.device} for name in METHODS}
    whole = {one.method: resolved(one.method, model, tuned.get(one.method, {})) for one in wanted if one.knob is None}
    return wanted, {variant.name: settings_of(variant, tuned, whole) for variant in wanted}, whole


def resolved(method: str, model: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What all flags of a method's script resolve to for this model, from its own --print_config; {} without a script.

    Nothing is loaded or trained.
    """
    own = METHODS[method]
    if not own.script:
        return {}
    flags = as_flags({"pretrained_model_name_or_path": model, **with_recipe(own.flags, model), **settings})
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(own.script).main([*flags, "--print_config"])
    return json.loads(printed.getvalue())


def settings_of(variant: Variant, tuned: dict[str, dict[str, Any]], whole: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The flags that a variant's training gets: its method's tuned ones, with the knob turned.

    whole: method -> its `resolved` flags, which the knob's value is taken from.
    """
    settings = dict(tuned.get(variant.method, {}))
    if variant.knob in (None, INTERPOLATION):
        return settings
    turned = whole[variant.method][variant.knob] * variant.factor
    return settings | {variant.knob: max(1, round(turned)) if variant.knob == "max_train_steps" else turned}
