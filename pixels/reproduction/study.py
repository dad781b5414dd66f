"""The user study of Table 1b: a blinded ranking page, and the average of the answers. It has not been run here.

The page shows, group by group, source, exemplars and map with the methods' edits in an order drawn anew for each group;
nothing in it says which is which. The key is a file of its own. A participant ranks all edits on adherence and on
realism, 1 is best, and saves an answer file.
"""

import base64
import html
import json
import random
from pathlib import Path

from common.runs import InputError, atomic_path, read_json, write_json
from pixels.reproduction.pairs import Pair
from pixels.reproduction.tables import beside_published

CRITERIA = {
    "adherence": "Adherence: keeps the identity of source and exemplar, as the map asks",
    "realism": "Realism: looks like a natural, seamless picture",
}
GROUPS = 30  # in the paper
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Ranking study</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 70rem; padding: 0 1rem; }}
section {{ border-top: 1px solid #999; padding: 1rem 0; }}
figure {{ display: inline-block; margin: 0 .6rem .6rem 0; vertical-align: top; }}
img {{ width: 10rem; image-rendering: auto; display: block; }}
label {{ display: block; }} select {{ font: inherit; }}
.bad {{ background: #fdd; }}
</style>
<h1>Ranking study</h1>
<p>{count} groups. White in a map is to stay as in the source, black is to come from the exemplar, grey is in between.
In each group give every edit a different rank from 1 (best) to {methods} (worst), once for each question. The names
of the methods are not on this page.</p>
<p><label>Your code <input id="who"></label></p>
{groups}
<p><button id="save">Save answers</button> <span id="state"></span></p>
<script>
const save = document.getElementById("save"), state = document.getElementById("state");
save.onclick = () => {{
  const answers = {{}}; let bad = 0;
  for (const section of document.querySelectorAll("section")) {{
    const group = answers[section.dataset.group] = {{}};
    for (const criterion of {criteria}) {{
      const selects = [...section.querySelectorAll(`select[data-criterion="${{criterion}}"]`)];
      const ranks = selects.map(s => Number(s.value));
      const whole = new Set(ranks).size === ranks.length && !ranks.includes(0);
      selects.forEach(s => s.classList.toggle("bad", !whole));
      bad += !whole;
      group[criterion] = Object.fromEntries(selects.map((s, i) => [s.dataset.letter, ranks[i]]));
    }}
  }}
  if (bad) {{ state.textContent = bad + " rankings are not complete: each rank once."; return; }}
  const who = document.getElementById("who").value;
  const file = new Blob([JSON.stringify({{who, study: {study}, answers}}, null, 1)], {{type: "application/json"}});
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file); link.download = "answers_" + (who || "nobody") + ".json"; link.click();
  state.textContent = "Saved. Thank you.";
}};
</script></html>
"""


def write_study(output: Path, pairs: list[Pair], methods: list[str], seed: int = 0) -> Path:
    """output/study.html and output/study_key.json from the pictures of a finished run."""
    rng = random.Random(f"study {seed} {len(pairs)}")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(methods)]
    chosen = rng.sample(pairs, min(GROUPS, len(pairs)))
    study = f"{rng.getrandbits(48):012x}"
    key: dict[str, dict[str, str]] = {}
    sections = []
    for number, pair in enumerate(chosen, start=1):
        order = rng.sample(methods, len(methods))
        key[str(number)] = dict(zip(letters, order, strict=True))
        place = output / "pictures" / pair.id
        given = ["source", *(f"exemplar_{k}" for k in range(1, len(pair.exemplars) + 1)), "map"]
        figures = "".join(_figure(place / f"{name}.png", name.replace("_1", "").replace("_", " ")) for name in given)
        edits = "".join(
            _figure(place / f"{method}.png", f"edit {letter}", _selects(letter, len(methods)))
            for letter, method in key[str(number)].items()
        )
        sections.append(
            f'<section data-group="{number}"><h2>Group {number}</h2><div>{figures}</div><div>{edits}</div></section>'
        )
    page = PAGE.format(
        count=len(chosen), methods=len(methods), groups="\n".join(sections), criteria=json.dumps(list(CRITERIA)),
        study=json.dumps(study),
    )  # fmt: skip
    with atomic_path(output / "study.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    write_json(output / "study_key.json", {"study": study, "groups": key})
    return output / "study.html"


def _figure(path: Path, caption: str, below: str = "") -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(caption)
    image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{name}{below}</figcaption></figure>"


def _selects(letter: str, count: int) -> str:
    options = "<option></option>" + "".join(f"<option>{rank}</option>" for rank in range(1, count + 1))
    return "".join(
        f'<label title="{html.escape(text)}">{name} '
        f'<select data-criterion="{name}" data-letter="{letter}">{options}</select></label>'
        for name, text in CRITERIA.items()
    )


def average_ranks(answers: list[dict], key: dict) -> dict[str, dict[str, list[float]]]:
    """{method: {criterion: the average rank of each participant}}. InputError for answers to another study, or
    rankings that are not a permutation."""
    ranks: dict[str, dict[str, list[float]]] = {}
    for answer in answers:
        if not isinstance(answer, dict) or not isinstance(answer.get("answers"), dict):
            raise InputError("this is no answer file of a study page: who, study and answers are needed")
        if answer.get("study") != key["study"] or answer["answers"].keys() != key["groups"].keys():
            raise InputError(f"the answers of {answer.get('who')!r} belong to another study page")
        person: dict[str, dict[str, list[int]]] = {}
        for group, letters in key["groups"].items():
            for criterion in CRITERIA:
                ranking = answer["answers"][group]
                given = ranking.get(criterion) if isinstance(ranking, dict) else None
                wanted = sorted(map(repr, range(1, len(letters) + 1)))
                whole = isinstance(given, dict) and given.keys() == letters.keys()
                if not whole or sorted(map(repr, given.values())) != wanted:
                    raise InputError(
                        f"the answers of {answer.get('who')!r}, group {group}, are no ranking by {criterion}"
                    )
                for letter, rank in given.items():
                    person.setdefault(letters[letter], {}).setdefault(criterion, []).append(rank)
        for method, criteria in person.items():
            for criterion, values in criteria.items():
                ranks.setdefault(method, {}).setdefault(criterion, []).append(sum(values) / len(values))
    return ranks


def print_ranks(files: list[str], output: Path) -> None:
    """Table 1b with the averages of answer files, intervals over participants."""
    from common.runs import bootstrap_interval

    summary = {}
    for method, criteria in average_ranks(
        [read_json(file) for file in files], read_json(output / "study_key.json")
    ).items():
        summary[method] = {}
        for criterion, values in criteria.items():
            mean, low, high = bootstrap_interval(values)
            summary[method][criterion] = {"mean": mean, "low": low, "high": high, "n": len(values)}
    print(beside_published("1b", {f"measured: {len(files)} participants": summary}))
