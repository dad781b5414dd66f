"""What all figures share: trainings, pictures and scores that are made once, and a sheet. A stopped run goes on."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations, islice, pairwise
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from common.data import Subject, fill_prompt
from common.encoders import Encoders
from common.files import locked
from common.images import grid, list_pictures, load_image, save_png, to_tensor
from common.pipelines import is_picturebook
from common.runs import InputError, append_row, measure, read_object, read_rows, write_json
from common.shards import Shard, all_done
from common.training import picture_hashes
from svdiff import editing, merging, options, train
from svdiff.basis import Bases

LINES = 12  # of a sheet: what can be looked at
# Rare words, one for each subject of a dataset in turn.
TOKENS = ("sks", "qwe", "zxy", "ktn", "pll", "ucd", "olis", "phol", "mta", "xjk", "vbr", "wlf")
SPACES = {space: ["--parameter_space", space] for space in options.PARAMETER_SPACES}

Maker = Callable[[list[int]], Tensor]  # of seeds: pictures [n,3,H,W] in [0,1]
Scorer = Callable[[Tensor], dict[str, float]]  # of a picture [1,3,H,W] in [0,1]


class Unfinished(Exception):
    """A shard has done its part of a figure, and others have not."""


@dataclass(frozen=True)
class Method:
    """change: what the base is changed by, asked for when a picture is missing. make: of a prompt, how its pictures are
    made; by sampling, unless it is given. prompts: in place of the panel's. shown: whether its
    pictures stand on the sheet."""

    name: str
    change: Callable[[], merging.Change] = dict
    scale: float = 1.0
    make: Callable[[str], Maker] | None = None
    prompts: list[str] | None = None
    shown: bool = True


@dataclass(frozen=True)
class Panel:
    """A line of a figure. inputs: pictures by what they are called. drawn: (item, prompt, its scorer). about: for the
    rows. shown: which of a method's pictures stand on the sheet, (prompt, seed) by number."""

    label: str
    inputs: Mapping[str, Image.Image]
    methods: list[Method]
    drawn: list[tuple[str, str, Scorer]]
    about: Mapping[str, Any] = field(default_factory=dict)
    shown: tuple[tuple[int, int], ...] = ((0, 0),)


@dataclass(frozen=True, eq=False)
class Study:
    """args: the flags of svdiff.eval. pipe: the base model, float32. templates: subject -> prompts "a {0} {1} in …".
    every: all subjects of the dataset, which decide their tokens. output: folder of this figure; trainings lie beside
    it and are shared."""

    args: argparse.Namespace
    pipe: Any
    subjects: list[Subject]
    every: list[Subject]
    templates: dict[str, list[str]]
    encoders: Encoders
    bases: Bases
    output: Path
    how: editing.Sampling
    resolution: int

    @property
    def seeds(self) -> list[int]:
        return [self.args.seed + k for k in range(self.args.images_per_prompt)]

    @property
    def rows(self) -> Path:
        return self.output / "rows.jsonl"

    # ----------------------------------------------------------------------------------------------------- subjects

    def token(self, subject: Subject) -> str:
        return TOKENS[[one.name for one in self.every].index(subject.name) % len(TOKENS)]

    def phrase(self, subject: Subject) -> str:
        return f"a {self.token(subject)} {subject.class_name}"

    def prompts(self, subject: Subject) -> list[tuple[str, str]]:
        """The first --prompts prompts of a subject: (with its token, without)."""
        words = self.token(subject), ""
        chosen = self.templates[subject.name][: self.args.prompts]
        return [tuple(fill_prompt(text, word, subject.class_name) for word in words) for text in chosen]

    def concept(self, subject: Subject, word: str | None = None, token: str | None = None) -> options.Concept:
        """The subject as a training is told of it; `word` in place of its class, `token` in place of its own."""
        before = "" if is_picturebook(self.pipe) else "photo of "  # the picturebook's captions begin with the thing
        word, token = word or subject.class_name, token or self.token(subject)
        return options.Concept(str(subject.paths[0].parent), f"{before}a {token} {word}", None, f"{before}a {word}")

    def pairs(self, fit: Callable[[tuple], bool] = lambda pair: True) -> list[tuple[str, tuple[Subject, Subject]]]:
        """("similar" or "dissimilar", two subjects): the first --pairs of each kind that are `fit`, of --subjects or of
        all. Similar: of one class, which come first, or both alive; pairs that share no subject
        come before others. Raises InputError if there is no pair."""
        found = list(combinations(self.subjects if self.args.subjects else self.every, 2))
        one_class = [pair for pair in found if pair[0].class_name == pair[1].class_name]
        alive = [(one, two) for one, two in found if one.live and two.live and (one, two) not in one_class]
        others = [pair for pair in found if pair not in one_class + alive]
        kinds = {"similar": (one_class + apart(alive), self.args.pairs[0]),
                 "dissimilar": (apart(others), self.args.pairs[-1])}  # fmt: skip
        if not any(wanted and pairs for pairs, wanted in kinds.values()):
            raise InputError("this figure takes pairs: name two subjects at least, or leave out --subjects")
        return [(kind, pair) for kind, (pairs, wanted) in kinds.items() for pair in islice(filter(fit, pairs), wanted)]

    # ---------------------------------------------------------------------------------------------------- trainings

    def training(self, name: str, concepts: list[options.Concept], *flags: str) -> Path:
        """The folder of a training by svdiff.train, made if it is not there yet. Raises InputError if the one that is
        there was made with other flags."""
        folder = Path(self.args.output_dir) / "trainings" / name
        listed, args = folder.with_suffix(".json"), vars(self.args)
        rates = [rate for space, rate in self.args.learning_rate or [] if space in flags]
        given = {"output_dir": folder, "num_validation_images": 2, "learning_rate": rates[-1] if rates else None}
        given |= {name: args[name] for name in ("pretrained_model_name_or_path", "seed", "device", "max_train_steps",
                                                "basis_dir", "num_class_images")}  # fmt: skip
        given |= {"concepts_list": listed} if len(concepts) > 1 else vars(concepts[0]) if concepts else {}
        words = [*flags, *(f"--{name}={value}" for name, value in given.items()
                           if value is not None and f"--{name}" not in flags)]  # fmt: skip
        shown = [list_pictures(one.instance_data_dir) for one in concepts]
        shown += [[path] for flag, path in pairwise(flags) if flag == "--image_path"]
        order = {"flags": words, "concepts": [vars(one) for one in concepts], "pictures": [*map(picture_hashes, shown)]}
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):  # two shards may need it
            if (folder / "order.json").is_file():
                if {"pictures": order["pictures"], **read_object(folder / "order.json")} == order:
                    return folder
                raise InputError(f"{folder} was trained with other flags; take the same ones, or another --output_dir")
            write_json(listed, order["concepts"])
            print(f"training {name}")
            interrupted = "--resume_from_checkpoint" not in flags and list(folder.glob("checkpoint-*"))
            train.main([*words, *(["--resume_from_checkpoint", "latest"] if interrupted else [])])
            write_json(folder / "order.json", order)
        return folder

    def check_trained(self, names: Iterable[str]) -> None:
        """Raises Unfinished unless all of these trainings are there, of other shards too."""
        places = [Path(self.args.output_dir) / "trainings" / name / "order.json" for name in names]
        if missing := sum(not place.is_file() for place in places):
            print(f"shard {self.args.shard} is done; {missing} trainings are the other shards'")
            raise Unfinished

    def trained(self, name: str, concepts: list[options.Concept], *flags: str) -> merging.Change:
        """What a training changes."""
        return merging.load(self.pipe, self.training(name, concepts, *flags), self.bases)

    def tuned(self, subject: Subject, name: str = "svdiff", *flags: str) -> merging.Change:
        """What one subject's training changes, in the parameter space `name` unless there are flags."""
        return self.trained(f"{subject.name}-{name}", [self.concept(subject)], *(flags or SPACES[name]))

    # ----------------------------------------------------------------------------------------------- pictures, rows

    def picture_path(self, method: str, item: str, seed: int) -> Path:
        method, item = (re.sub(r"[^\w.+-]", "-", name) for name in (method, item))  # as every file system takes it
        return self.output / "pictures" / method / f"{item}_{seed}.png"

    def pictures(self, method: str, item: str) -> list[Image.Image]:
        return [load_image(self.picture_path(method, item, seed)) for seed in self.seeds]

    def missing(self, method: str, item: str) -> list[int]:
        """The seeds of which there is no row yet."""
        done = {row["seed"] for row in read_rows(self.rows) if (row["method"], row["item"]) == (method, item)}
        return [seed for seed in self.seeds if seed not in done]

    def sampled(self, prompt: str, how: editing.Sampling | None = None) -> Maker:
        return lambda seeds: editing.draw(self.pipe, prompt, seeds, how or self.how, self.resolution)

    def draw(self, method: str, item: str, make: Maker, score: Scorer, **about: Any) -> None:
        """The rows of one method and item that are missing. Pictures are scored as their files hold them."""
        if not (missing := self.missing(method, item)):
            return
        with measure() as cost:
            made = make(self.seeds)  # all of them, since a picture depends, in its last bits, on the size of its batch
        for seed, picture in zip(self.seeds, made, strict=True):
            if seed in missing:
                path = self.picture_path(method, item, seed)
                save_png(path, picture, "nearest")
                self.record(method, item, seed, score(to_tensor(load_image(path))), cost.seconds / len(self.seeds),
                            cost.peak_memory_mb, **about)  # fmt: skip

    def record(self, *given: Any, **about: Any) -> None:
        """Keep a row of scores; see row_of."""
        append_row(self.rows, row_of(*given, **about))

    def compare(self, panels: list[Panel], file: str, part: Shard | None = None) -> None:
        """Draw and score what is missing in the part's panels (by default the shard's), then the sheet: a line for each
        of the first panels. Raises Unfinished where other shards have panels to draw."""
        part = part or self.args.shard
        for panel in part.of(panels):
            for method in panel.methods:
                prompts = method.prompts or [prompt for _, prompt, _ in panel.drawn]
                if any(self.missing(method.name, item) for item, _, _ in panel.drawn):
                    with merging.applied(self.pipe, method.change(), method.scale, self.bases):
                        for (item, _, score), prompt in zip(panel.drawn, prompts, strict=True):
                            make = (method.make or self.sampled)(prompt)
                            self.draw(method.name, item, make, score, prompt=prompt, **panel.about)
        wanted = [(method.name, item, seed) for panel in panels for method in panel.methods
                  for item, _, _ in panel.drawn for seed in self.seeds]  # fmt: skip
        if not all_done(self.rows, wanted, part):
            raise Unfinished
        panels, sheet = panels[:LINES], []
        inputs = max((list(panel.inputs) for panel in panels), key=len)
        for panel in panels:
            row = [*panel.inputs.values(), *[None] * (len(inputs) - len(panel.inputs))]
            for method in panel.methods:
                if method.shown:
                    row += [self.pictures(method.name, panel.drawn[place][0])[seed] for place, seed in panel.shown]
            sheet.append(row)
        more = [""] * (len(panels[0].shown) - 1)  # a method's name stands above the first of its pictures
        shown = [head for method in panels[0].methods if method.shown for head in (method.name, *more)]
        save_png(self.output / file, grid(sheet, [panel.label for panel in panels], [*inputs, *shown]))


def row_of(method: str, item: str, seed: int, metrics: dict[str, float], seconds: float = 0.0,
           peak_memory_mb: float = 0.0, **about: Any) -> dict[str, Any]:  # fmt: skip
    return {"paper": "svdiff", "method": method, "item": item, "seed": seed, "metrics": metrics,
            "seconds": seconds, "peak_memory_mb": peak_memory_mb, **about}  # fmt: skip


def apart(pairs: list[tuple[Subject, Subject]]) -> list[tuple[Subject, Subject]]:
    """The same pairs; those that share no subject with an earlier one of these come first."""
    first, used = [], set()
    for pair in pairs:
        if not used & (names := {subject.name for subject in pair}):
            first.append(pair)
            used |= names
    return first + [pair for pair in pairs if pair not in first]


def pair_name(pair: Iterable[Subject]) -> str:
    return "+".join(subject.name for subject in pair)
