"""What all experiments share: trainings made once, pictures drawn once, rows of scores; an interrupted run goes on."""

import argparse
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.data import Subject, fill_prompt
from common.encoders import Encoders
from common.images import load_image, save_png, to_tensor
from common.pipelines import is_picturebook
from common.runs import InputError, append_row, measure, read_json, read_rows, write_json
from svdiff import editing, merging, options, train
from svdiff.basis import Bases

# Rare words, one for each subject of a dataset in turn.
TOKENS = ("sks", "qwe", "zxy", "ktn", "pll", "ucd", "olis", "phol", "mta", "xjk", "vbr", "wlf")
SPACES = {space: ["--parameter_space", space] for space in options.PARAMETER_SPACES}


@dataclass(frozen=True, eq=False)
class Study:
    """args: the flags of svdiff.eval. pipe: the base model, float32. templates: subject -> prompts "a {0} {1} in …".
    every: all subjects of the dataset, which decide their tokens. output: folder of this experiment; trainings lie
    beside it and are shared."""

    args: argparse.Namespace
    pipe: object
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


# --------------------------------------------------------------------------------------------------------- subjects


def token_of(study: Study, subject: Subject) -> str:
    return TOKENS[[one.name for one in study.every].index(subject.name) % len(TOKENS)]


def phrase(study: Study, subject: Subject) -> str:
    return f"a {token_of(study, subject)} {subject.class_name}"


def concept(study: Study, subject: Subject, word: str | None = None, token: str | None = None) -> options.Concept:
    """The subject as a training is told of it; `word` in place of its class, `token` in place of its own."""
    before = "" if is_picturebook(study.pipe) else "photo of "  # the picturebook's captions begin with the thing
    word, token = word or subject.class_name, token or token_of(study, subject)
    return options.Concept(str(subject.paths[0].parent), f"{before}a {token} {word}", None, f"{before}a {word}")


def pairs(study: Study) -> list[tuple[str, tuple[Subject, Subject]]]:
    """("similar" or "dissimilar", two subjects): --pairs of each kind, of the subjects that --subjects names or of
    all. Similar: of one class, or both alive; dissimilar ones share no subject as long as there are others. Raises
    InputError if there is no pair."""
    found: dict[str, list] = {"similar": [], "dissimilar": []}
    counts = {"similar": study.args.pairs[0], "dissimilar": study.args.pairs[-1]}
    stock = study.subjects if study.args.subjects else study.every
    ordered = sorted(
        ((one, two) for i, one in enumerate(stock) for two in stock[i + 1 :]),
        key=lambda pair: pair[0].class_name != pair[1].class_name,
    )  # pairs of one class first
    used: set[str] = set()
    for fresh_only in (True, False):
        for one, two in ordered:
            kind = "similar" if one.class_name == two.class_name or (one.live and two.live) else "dissimilar"
            again = kind == "dissimilar" and fresh_only and used & {one.name, two.name}
            if len(found[kind]) == counts[kind] or again or (kind, (one, two)) in found[kind]:
                continue
            found[kind].append((kind, (one, two)))
            if kind == "dissimilar":
                used |= {one.name, two.name}
    if not found["similar"] + found["dissimilar"]:
        raise InputError("this figure takes pairs: name two subjects at least, or leave out --subjects")
    return found["similar"] + found["dissimilar"]


def pair_name(pair: Iterable[Subject]) -> str:
    return "+".join(subject.name for subject in pair)


# -------------------------------------------------------------------------------------------------------- trainings


def training(study: Study, name: str, concepts: list[options.Concept], *flags: str) -> Path:
    """The folder of a training by svdiff.train, made if it is not there yet. Raises InputError if the one that is there
    was made with other flags."""
    folder = Path(study.args.output_dir) / "trainings" / name
    listed = folder.with_suffix(".json")
    words = ["--pretrained_model_name_or_path", study.args.pretrained_model_name_or_path, "--output_dir", str(folder),
             "--num_validation_images", "2", "--seed", str(study.args.seed), *flags]  # fmt: skip
    if rates := [rate for space, rate in study.args.learning_rate or [] if space in flags]:
        words += [] if "--learning_rate" in flags else ["--learning_rate", str(rates[-1])]
    for flag in ("device", "max_train_steps", "basis_dir", "num_class_images"):
        if getattr(study.args, flag, None) is not None and f"--{flag}" not in flags:
            words += [f"--{flag}", str(getattr(study.args, flag))]
    if len(concepts) > 1:
        words += ["--concepts_list", str(listed)]
    elif concepts:
        (only,) = concepts
        words += ["--instance_data_dir", only.instance_data_dir, "--instance_prompt", only.instance_prompt,
                  "--class_prompt", only.class_prompt]  # fmt: skip
    order = json.loads(json.dumps({"flags": words, "concepts": [vars(one) for one in concepts]}))
    if (folder / "order.json").is_file():
        if read_json(folder / "order.json") == order:
            return folder
        raise InputError(f"{folder} was trained with other flags; take the same ones, or another --output_dir")
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_json(listed, order["concepts"])
    print(f"training {name}")
    if "--resume_from_checkpoint" not in flags and list(folder.glob("checkpoint-*")):
        words = [*words, "--resume_from_checkpoint", "latest"]
    train.main(words)
    write_json(folder / "order.json", order)
    return folder


def tuned(study: Study, subject: Subject, space: str = "svdiff", *flags: str, name: str | None = None):
    """The change that one subject's training made. space: "" where the flags name it."""
    name, own = name or f"{subject.name}-{space}", SPACES.get(space, [])
    folder = training(study, name, [concept(study, subject)], *own, *flags)
    return merging.load(study.pipe, folder, study.bases)


def applied(study: Study, change: merging.Change, scale: float = 1.0):
    """Within this context the study's pipeline is the changed model."""
    return merging.applied(study.pipe, change, scale, study.bases)


# --------------------------------------------------------------------------------------------------- pictures, rows


def picture_path(output: Path, method: str, item: str, seed: int) -> Path:
    method, item = (re.sub(r"[^\w.+-]", "-", name) for name in (method, item))  # as every file system takes it
    return output / "pictures" / method / f"{item}_{seed}.png"


def is_done(study: Study, method: str, item: str) -> bool:
    """Whether every seed of a method's item has its row."""
    done = {(row["method"], row["item"], row["seed"]) for row in read_rows(study.rows)}
    return all((method, item, seed) in done for seed in study.seeds)


def draw(study: Study, method: str, item: str, make, score, **about) -> None:
    """Rows of one method and item for every seed, unless they are there: `make(seeds)` gives pictures [n,3,H,W] in
    [0,1], `score(picture [1,3,H,W])` its scores. Pictures are scored as their files hold them."""
    if is_done(study, method, item):
        return
    done = {(row["method"], row["item"], row["seed"]) for row in read_rows(study.rows)}
    with measure() as cost:
        made = make(study.seeds)  # all of them, since a picture depends, in its last bits, on the size of its batch
    for seed, picture in zip(study.seeds, made, strict=True):
        if (method, item, seed) in done:
            continue
        save_png(picture_path(study.output, method, item, seed), picture, "nearest")
        seen = to_tensor(load_image(picture_path(study.output, method, item, seed)))
        append_row(study.rows, {
            "paper": "svdiff", "method": method, "item": item, "seed": seed, "metrics": score(seen),
            "seconds": cost.seconds / len(study.seeds), "peak_memory_mb": cost.peak_memory_mb, **about,
        })  # fmt: skip


def prompted(study: Study, prompt: str, how: editing.Sampling | None = None):
    """For `draw`: pictures of a prompt by the pipeline as it stands."""
    return lambda seeds: editing.draw(study.pipe, prompt, seeds, how or study.how, study.resolution)


def read_pictures(study: Study, method: str, item: str) -> list:
    return [load_image(picture_path(study.output, method, item, seed)) for seed in study.seeds]


def prompts_of(study: Study, subject: Subject) -> list[tuple[str, str]]:
    """The first --prompts prompts of a subject: (with its token, without)."""
    chosen = study.templates[subject.name][: study.args.prompts]
    token = token_of(study, subject)
    return [tuple(fill_prompt(text, word, subject.class_name) for word in (token, "")) for text in chosen]
