"""The user study of Sec. 4.2 as a page that anyone can fill in: which of two pictures shows both subjects better?

The pairs are those of Fig. 6 with Cut-Mix-Unmix, shifts against full weights from the same noise, in random order and
without names. The page saves its answers as a file; the key that says which side is which lies apart. The paper asked
ten people about each of 400 pairs; that has not been done here.
"""

import base64
import hashlib
import html
import json
import random
from pathlib import Path

import numpy as np

from common.runs import InputError, atomic_path, read_json, read_rows, write_json
from svdiff.reproduction.study import Study, picture_path

METHODS = ("svdiff+cut_mix", "full+cut_mix")
QUESTION = "Which image contains both objects from the two input images with a consistent background?"  # Sec. 4.2

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Two pictures</title>
<style>body{{font:16px sans-serif;max-width:60em;margin:2em auto}}img{{width:12em;image-rendering:auto;margin:.3em}}
section{{border-top:1px solid #ccc;padding:1em 0}}label{{margin-right:3em}}</style>
<h1>{question}</h1><p>{count} pairs. Choose one picture of each pair, then save your answers.</p>
{sections}
<button onclick="save()">Save answers</button>
<script>
function save() {{
  const answers = {{}};
  for (const choice of document.querySelectorAll("input:checked")) answers[choice.name] = choice.value;
  const file = new Blob([JSON.stringify({{page: "{page}", answers: answers}})], {{type: "application/json"}});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file); link.download = "answers.json"; link.click();
}}
</script></html>
"""


def run(study: Study) -> None:
    """study.html and study_key.json from the pictures of Fig. 6; with --answers, what people said."""
    if study.args.answers:
        count(read_json(study.output / "study_key.json"), [Path(path) for path in study.args.answers], study.output)
        return
    source = study.output.parent / "multi"
    shown = [row for row in read_rows(source / "rows.jsonl") if row["method"] in METHODS and row["group"] != "three"]
    keys = sorted({(row["item"], row["seed"]) for row in shown})
    keys = [key for key in keys if sum((row["item"], row["seed"]) == key for row in shown) == 2]
    if not keys:
        raise InputError("there are no pictures to compare yet: run svdiff.eval --figure 6 first")
    by_name = {subject.name: subject for subject in study.every}
    rng, sections, key = random.Random(study.args.seed), [], {}
    for number, (item, seed) in enumerate(keys):
        sides = list(METHODS)
        rng.shuffle(sides)
        inputs = [by_name[name].paths[0] for name in item.partition("|")[0].split("+")]
        drawn = [picture_path(source, method, item, seed) for method in sides]
        key[f"q{number}"] = dict(zip("AB", sides, strict=True)) | {"item": item, "seed": seed}
        sections.append(section(f"q{number}", inputs, drawn))
    page = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    text = PAGE.format(question=html.escape(QUESTION), count=len(keys), sections="\n".join(sections), page=page)
    with atomic_path(study.output / "study.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(study.output / "study_key.json", {"page": page, "key": key})
    print(f"{len(keys)} pairs in {study.output / 'study.html'}; count answers with --figure study --answers FILE ...")


def section(name: str, inputs: list[Path], drawn: list[Path]) -> str:
    def picture(path: Path) -> str:
        return f'<img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" alt="">'

    choices = "".join(
        f'<label>{picture(path)}<input type="radio" name="{name}" value="{side}"> {side}</label>'
        for side, path in zip("AB", drawn, strict=True)
    )
    return f"<section><p>Input images: {''.join(map(picture, inputs))}</p>{choices}</section>"


def count(kept: dict, files: list[Path], output: Path) -> dict:
    """How often shifts were preferred: mean over raters, and their standard deviation. InputError for answers of
    another page, or to none of its questions."""
    shares = []
    for file in files:
        given = read_json(file)
        if not isinstance(given, dict) or given.get("page") != kept["page"]:
            raise InputError(f"{file} holds answers to another page than the one in {output}")
        answers = given.get("answers")
        answers = answers if isinstance(answers, dict) else {}
        chosen = [kept["key"].get(name, {}).get(side) for name, side in answers.items() if side in ("A", "B")]
        chosen = [method for method in chosen if method]
        if not chosen:
            raise InputError(f"{file} answers none of the questions")
        shares.append(100 * chosen.count(METHODS[0]) / len(chosen))
    found = {"raters": len(shares), "preferred %": float(np.mean(shares)), "standard deviation": float(np.std(shares))}
    write_json(output / "study_results.json", found)
    print(f"shifts preferred over full weights: {found['preferred %']:.1f} % +- {found['standard deviation']:.1f} "
          f"({len(shares)} raters); the paper: 60.9 % +- 6.9 %")  # fmt: skip
    return found
