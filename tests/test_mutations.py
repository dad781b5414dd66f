"""Are the tests any good? Breaks marked lines of method code one at a time, runs only that folder's tests, counts red.

    python -m tests.test_mutations    all of tests/mutations.toml; keeps what came out in tests/mutations.json

Works on a copy, so that nothing of the checkout is ever broken.
"""

import ast
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from common.files import ROOT, write_json

MUTATIONS, PROCESSES = ROOT / "tests" / "mutations.toml", 2  # copies that are tested at once


def mutations() -> list[dict[str, str]]:
    """The entries of mutations.toml: file, line, broken, tests."""
    return tomllib.loads(MUTATIONS.read_text(encoding="utf-8"))["mutation"]


def copy_checkout(place: Path) -> Path:
    """The files that git knows, as they stand."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    return place


def is_red(place: Path, mutation: dict[str, str]) -> bool:
    """Whether the folder's tests fail with one line broken; the copy is mended again."""
    file = place / mutation["file"]
    text = file.read_text(encoding="utf-8")
    if (count := text.count(mutation["line"])) != 1:
        raise ValueError(f"{mutation['file']} holds {mutation['line']!r} {count} times, not once")
    file.write_text(text.replace(mutation["line"], mutation["broken"]), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    try:
        done = subprocess.run([*command, *shlex.split(mutation["tests"])], cwd=place, capture_output=True)
    finally:
        file.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode} for {mutation['file']}")
    return done.returncode == 1


@pytest.mark.parametrize("mutation", mutations(), ids=lambda one: f"{one['file']}: {one['line'][:30]}")
def test_the_marked_lines_are_there(mutation):
    text = (ROOT / mutation["file"]).read_text(encoding="utf-8")
    assert text.count(mutation["line"]) == 1 and mutation["line"] != mutation["broken"]
    ast.parse(text.replace(mutation["line"], mutation["broken"]))
    assert all((ROOT / name).exists() for name in mutation["tests"].split())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(PROCESSES):
            copies.put(copy_checkout(Path(folder) / str(number)))

        def run(mutation: dict[str, str]) -> bool:
            place = copies.get()
            try:
                return is_red(place, mutation)
            finally:
                copies.put(place)

        found = []
        for mutation, red in zip(mutations(), pool.map(run, mutations()), strict=True):
            found.append({"file": mutation["file"], "line": mutation["line"].splitlines()[0], "red": red})
            print("red  " if red else "GREEN", mutation["file"], mutation["line"].splitlines()[0], flush=True)
    count = sum(one["red"] for one in found)
    print(f"{count} of {len(found)} broken lines are noticed")
    write_json(MUTATIONS.with_suffix(".json"), {"noticed": count, "of": len(found), "lines": found})
    return int(count < 28 / 30 * len(found))


if __name__ == "__main__":
    sys.exit(main())
