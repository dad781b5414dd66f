"""Writing under kills, several processes and full disks."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from common import files, runs
from common.files import InputError, WriteError

WRITER = """
import sys, time
from pathlib import Path
from common import files
def write(folder):
    for number in range(20):
        time.sleep(float(sys.argv[2]))
        (folder / f"{number}.txt").write_text("x" * number)
files.write_once(Path(sys.argv[1]), write, folder=True)
print("done")
"""


def start(code, *words):
    env = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, env=env)


def row(item):
    return {key: 0 for key in files.ROW_KEYS} | {"method": "m", "item": item, "metrics": {}}


def dead_process():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_three_processes_killed_at_random_leave_one_whole_cache(tmp_path):
    target, rng = tmp_path / "cache" / "drawn", random.Random(0)
    for _ in range(4):
        processes = [start(WRITER, target, 0.01) for _ in range(3)]
        time.sleep(rng.uniform(0.1, 0.5))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not target.exists() or len(list(target.glob("*.txt"))) == 20
    processes = [start(WRITER, target, 0.001) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == [b"done\n"] * 3
    assert sorted(path.stat().st_size for path in target.glob("*.txt")) == list(range(20))
    files._swept.clear()
    files.write_text(target.parent / "other", "")
    assert sorted(path.name for path in target.parent.iterdir()) == [".drawn.lock", "drawn", "other"]


def test_a_cache_is_written_once_and_again_when_a_file_has_gone(tmp_path):
    written = []

    def write(folder):
        written.append(folder.name)
        (folder / "a.txt").write_text("a")

    for _ in range(2):
        assert files.write_once(tmp_path / "c", write, folder=True) == tmp_path / "c"
    assert len(written) == 1
    (tmp_path / "c" / "a.txt").write_text("")  # cut short
    files.write_once(tmp_path / "c", write, folder=True)
    assert len(written) == 2 and (tmp_path / "c" / "a.txt").read_text() == "a"
    files.write_once(tmp_path / "f.npy", lambda path: path.write_text("1"))
    files.write_once(tmp_path / "f.npy", lambda path: path.write_text("2"))
    assert (tmp_path / "f.npy").read_text() == "1"


def test_caches_move_with_the_variable(tmp_path, monkeypatch):
    assert files.cache_folder("a") == files.ROOT / "outputs" / "a"
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    assert files.cache_folder("a", "b") == tmp_path / "a" / "b"


def test_what_the_dead_left_goes_and_what_is_alive_stays(tmp_path):
    dead = dead_process()
    left = tmp_path / f".grid.{files._here()}-{dead}.png"
    left.touch()
    (tmp_path / f".run.{files._here()}-{dead}").mkdir()
    (tmp_path / f".old.{files._here()}-{dead}.old").mkdir()
    others = {f".grid.{files._here()}-{os.getppid()}.png", ".grid.00000000-1.png", ".hidden"}
    for name in others:
        (tmp_path / name).touch()
    files.write_text(tmp_path / "a", "")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "old"} | others


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_is_replaced_stands_whole_at_every_moment(tmp_path, monkeypatch, exchange):
    target, seen = tmp_path / "folder", []
    for name in ("one", "two"):
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
            seen.append(target.exists() and [path.name for path in target.iterdir()])
        if not exchange:
            monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    assert seen == [False, ["one"]]
    assert [path.name for path in target.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [target]


LIMITED = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from common import files, runs
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
kind, folder = sys.argv[1], Path(sys.argv[2])
big = torch.zeros(100000)
@runs.script
def main(argv=None):
    if kind == "json":
        files.write_json(folder / "a.json", "x" * 100000)
    elif kind == "row":
        files.append_row(folder / "a.jsonl", {key: "x" * 100000 for key in files.ROW_KEYS})
    elif kind == "checkpoint":
        runs.save_checkpoint(folder, 2, {"w": big})
    else:
        with files.atomic_path(folder / "a.safetensors") as path:
            save_file({"w": big}, path)
main()
"""


@pytest.mark.parametrize("kind", ["json", "row", "checkpoint", "weights"])
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing_half_written(tmp_path, kind):
    runs.save_checkpoint(tmp_path, 1, {})
    command = [sys.executable, "-c", LIMITED, kind, tmp_path]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert "checkpoint-1 is whole" in done.stderr
    names = {path.name for path in tmp_path.iterdir()}
    if kind == "row":
        assert files.read_rows(tmp_path / "a.jsonl") == []
        files.append_row(tmp_path / "a.jsonl", row("next"))
        assert [one["item"] for one in files.read_rows(tmp_path / "a.jsonl")] == ["next"]
    else:
        assert names == {"checkpoint-1"}


APPENDER = """
import sys
from common import files
for number in range(40):
    row = {key: 0 for key in files.ROW_KEYS} | {"method": "m", "item": f"{sys.argv[2]}-{number}", "metrics": {}}
    files.append_row(sys.argv[1], row)
"""


def test_several_writers_lose_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    processes = [start(APPENDER, path, name) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert {one["item"] for one in files.read_rows(path)} == {f"{name}-{n}" for name in "abc" for n in range(40)}


def test_a_row_costs_the_same_in_a_long_file(tmp_path, monkeypatch):
    """Only the end of the file is read, a long torn line included."""
    path, read = tmp_path / "rows.jsonl", []
    path.write_bytes(json.dumps(row("a")).encode() * 1 + b"\n" + b"x" * 100_000)
    files.append_row(path, row("b"))
    assert [one["item"] for one in files.read_rows(path)] == ["a", "b"]
    path.write_bytes((json.dumps(row("a")).encode() + b"\n") * 5000)

    class Counting:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def read(self, count):
            read.append(count)
            return self.file.read(count)

    with open(path, "rb") as file:
        assert files._end_of_last_line(Counting(file)) == path.stat().st_size
    assert read == [4096]


def test_names_that_are_no_utf8_go_into_json_and_come_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "a.json", {"path": name})
    files.append_row(tmp_path / "rows.jsonl", row(name))
    assert files.read_json(tmp_path / "a.json") == {"path": name}
    assert files.read_rows(tmp_path / "rows.jsonl")[0]["item"] == name
    files.write_text(tmp_path / "a.html", name)
    assert "caf" in files.read_text(tmp_path / "a.html")


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("damaged", ["[]", "null", "3", '"text"', "{", ""])
def test_a_damaged_object_is_one_sentence(tmp_path, damaged):
    (tmp_path / "config.json").write_text(damaged)
    for read in (files.read_object, files.read_json):
        with pytest.raises(InputError, match="config.json"):
            read(tmp_path / "config.json")


def test_names_that_become_files():
    for good in ("dog", "<new1>", "a b", "猫", "x.y", "dog[1]"):
        assert files.check_file_name(good, "a name") == good
    for bad in ("", " ", ".", "..", "a/b", "a\\b", "a\0", "a\nb", "x" * 300, "猫" * 60, os.fsdecode(b"\xe9"), None, 3):
        with pytest.raises(InputError, match="^a name"):
            files.check_file_name(bad, "a name")


def test_a_home_folder_is_found_in_every_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = runs.make_parser("test")
    parser.add_argument("--output_dir")
    parser.add_argument("--reference_path", nargs="*")
    args = parser.parse_args(["--output_dir=~/x", "--reference_path", "~/a.png", "b~.png"])
    assert args.output_dir == str(tmp_path / "x") and args.reference_path == [str(tmp_path / "a.png"), "b~.png"]


@pytest.mark.parametrize("problem", [MemoryError(), RuntimeError("CUDA out of memory. Tried"), OSError(28, "No space")])
def test_too_little_memory_or_room_is_one_sentence(problem, capsys):
    @runs.script
    def main(argv=None):
        raise problem

    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_write_error_names_the_file(tmp_path):
    with pytest.raises(WriteError, match="the disk is full"), files.atomic_path(tmp_path / "a.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a.json"):
        (tmp_path / "missing").read_text()
