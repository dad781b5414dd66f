"""Commands that a README or a lecture prints are parsed by the scripts that they call; the Python of every paper's
README runs as printed, on the picturebook, and leaves a picture.
"""

import importlib
import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import runs
from common.picturebook.drawing import draw
from common.picturebook.scenes import Scene, Thing

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "*/*.md", "*/*/*.md", "docs/**/*.md", "*/lecture.ipynb")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith((".", "outputs", "tests"))
)  # fmt: skip
STARTS = re.compile(r"^(\$ )?([A-Z_]+=\S+ )*(\S*python3? |accelerate launch |torchrun |make )")


def blocks(page: Path) -> list[str]:
    """The code blocks of a page, fenced or indented; of a notebook those of its text and its shell lines."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        shell = [line[1:] for cell in cells if cell["cell_type"] == "code"
                 for line in "".join(cell["source"]).splitlines() if line.startswith("!")]  # fmt: skip
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        text += "".join(f"\n\n    {line}" for line in shell)
    fenced = re.findall(r"^ *```(?:bash|sh|shell|console|text)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"(?:^ {4,}\S.*\n?)+", rest, re.MULTILINE)]


def commands(page: Path) -> list[list[str]]:
    """[program, word, …] of every line that starts a program of this project; lines that end in \\ go on."""
    found = []
    for block in blocks(page):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = line.strip()
            if not STARTS.match(line):
                continue
            line = re.split(r"\s[|>]\s|\s&&\s|;\s", line.removeprefix("$ "))[0]
            words = shlex.split(line, comments=True)
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            found.append(words)
    return found


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """(module, its arguments) of a command, or None for one that is not of this project."""
    place = next((n for n, word in enumerate(words) if word == "-m" or word.endswith(".py")), None)
    if place is None:
        return None
    place += words[place] == "-m"
    module, rest = words[place], words[place + 1 :]
    module = module.removesuffix(".py").replace("/", ".")
    if not (ROOT / module.split(".")[0]).is_dir():
        return None
    return (f"{module}.__main__" if (ROOT / module.replace(".", "/") / "__main__.py").is_file() else module), rest


class Parsed(Exception):
    """Carries what a script's parser made of its arguments out of its main()."""


def parsed(module: str, words: list[str], monkeypatch):
    """The namespace of a command. Nothing that it names has to exist: what stands in a README is the reader's own."""

    def parse(self, args=None, namespace=None):
        known, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}")
        raise Parsed(known)

    monkeypatch.setattr(runs._Parser, "parse_args", parse)
    main = importlib.import_module(module).main
    try:
        main(words)
    except Parsed as caught:
        return caught.args[0]
    except SystemExit as stop:
        assert not stop.code, f"exit code {stop.code}"
    return None  # a parser of its own, which has taken the arguments


ids = [str(page.relative_to(ROOT)) for page in PAGES]


def test_the_readmes_are_found():
    assert {"README.md", "spdinv/README.md", "eval/README.md"} <= set(ids)
    assert sum(len(commands(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_are_taken_by_their_scripts(page, monkeypatch, capsys):
    wrong, targets = [], set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        line = " ".join(words)
        if words[0] == "make":
            wrong += [f"{line}: no target {word}" for word in words[1:] if "=" not in word and word not in targets]
        elif "…" in line or "..." in line:
            wrong.append(f"{line}: cannot be run as printed")
        elif (found := script_of(words)) and found[0] != "common.picturebook.build":
            capsys.readouterr()
            try:
                parsed(*found, monkeypatch)
            except (Exception, SystemExit) as problem:
                wrong.append(f"{line}: {capsys.readouterr().err.strip() or problem}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_trainings_of_a_page_do_not_replace_each_other(page, monkeypatch):
    """Two trainings that a page prints, of other settings, write to two folders."""
    places = Counter()
    for words in commands(page):
        found = script_of(words)
        line = " ".join(words)
        if found and found[0].endswith(".train") and not re.search("…|--print_config|--resume", line):
            places[found[0], parsed(*found, monkeypatch).output_dir] += 1
    assert not [place for place, count in places.items() if count > 1]


PAPERS = ("spdinv", "svdiff", "lipschitz_personalize", "pixels", "image_inpaint")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the READMEs name."""
    scene = Scene((Thing("cat", "red", size=0.3),))
    drawn = draw(scene)
    drawn.picture.save(tmp_path / "picture.png")
    other = replace(scene, things=(Thing("dog", "blue", size=0.3),), background="snow")
    draw(other).picture.save(tmp_path / "exemplar.png")
    Image.fromarray((255 * drawn.masks[0]).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))).save(tmp_path / "map.png")
    (tmp_path / "subject").mkdir()
    for number in range(3):
        picture = draw(Scene((Thing("cat", "red", x=0.4 + 0.1 * number, size=0.3, marking=7),), seed=number)).picture
        picture.save(tmp_path / "subject" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("paper", PAPERS)
def test_the_python_of_a_readme_runs_as_printed(here, paper):
    page = (ROOT / paper / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    known = {}
    exec(compile(blocks[0], f"{paper}/README.md", "exec"), known)  # noqa: S102
    edited = known["edited"]
    assert edited.size == (64, 64) and np.asarray(edited).std() > 5
    assert not np.array_equal(np.asarray(edited), np.asarray(Image.open(here / "picture.png")))
