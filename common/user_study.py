"""A user study as a page: pictures by several methods, without their names, to be ranked; and what people answered.

The page shows group by group what the methods were given and what they made of it, in an order drawn anew for each
group. The key to it is a file of its own. A participant ranks the pictures of every group, 1 is best, and saves a file.
"""

import base64
import hashlib
import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from common.runs import InputError, read_json, write_json, write_text

PAGE = Path(__file__).with_suffix(".html.j2")


@dataclass(frozen=True)
class Group:
    """given: PNG files by their captions, which everyone may know. made: by the methods' names, which nobody may."""

    given: Mapping[str, Path]
    made: Mapping[str, Path]


def write_study(output: Path, intro: str, questions: Mapping[str, str], groups: list[Group], seed: int = 0) -> Path:
    """output/study.html, and study_key.json beside it. questions: a name of one word, and how it is asked."""
    rng, key, shown = random.Random(f"study {seed} {len(groups)}"), {}, []
    for number, group in enumerate(groups, start=1):
        order = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.sample(list(group.made), len(group.made)), strict=False))
        key[str(number)] = order
        made = {letter: group.made[method] for letter, method in order.items()}
        shown.append([{name: base64.b64encode(path.read_bytes()).decode() for name, path in pictures.items()}
                      for pictures in (group.given, made)])  # fmt: skip
    study = hashlib.sha256(json.dumps([dict(questions), key, shown]).encode()).hexdigest()[:12]  # of what is shown
    page = jinja2.Template(PAGE.read_text(encoding="utf-8"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    write_text(output / "study.html", page.render(study=study, intro=intro, questions=dict(questions), groups=shown))
    write_json(output / "study_key.json", {"study": study, "questions": list(questions), "groups": key})
    return output / "study.html"


def read_answers(files: Iterable[str | Path], output: Path) -> list[dict[str, dict[str, list[int]]]]:
    """ranks_of every file that participants saved of the page in `output`."""
    files = [Path(file).resolve() for file in files]
    if len(set(files)) < len(files):
        raise InputError("--answers names a file twice, and its participant would count twice; leave one out")
    answers, key = [read_json(file) for file in files], read_json(output / "study_key.json")
    return [ranks_of(answer, key) for answer in answers]


def ranks_of(answer: Any, key: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Method -> question -> one participant's rank in every group. InputError for answers to another study, or
    rankings that are not a permutation."""
    if not isinstance(answer, dict) or not isinstance(answer.get("answers"), dict):
        raise InputError("this is no answer file of a study page: who, study and answers are needed")
    who = f"the answers of {answer.get('who')!r}"
    if answer.get("study") != key["study"] or answer["answers"].keys() != key["groups"].keys():
        raise InputError(f"{who} belong to another study page")
    ranks: dict[str, dict[str, list[int]]] = {}
    for number, methods in key["groups"].items():
        for question in key["questions"]:
            ranking = answer["answers"][number]
            given = ranking.get(question) if isinstance(ranking, dict) else None
            wanted = sorted(map(repr, range(1, len(methods) + 1)))
            whole = isinstance(given, dict) and given.keys() == methods.keys()
            if not whole or sorted(map(repr, given.values())) != wanted:
                raise InputError(f"{who}, group {number}, are no ranking by {question}")
            for letter, rank in given.items():
                ranks.setdefault(methods[letter], {}).setdefault(question, []).append(rank)
    return ranks
