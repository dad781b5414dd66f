"""Writing under kills, several processes and full disks."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common import files, runs
from common.files import WriteError
from tests.refusing import refuses

WRITER = """
import sys, time
from common import files
def write(path):
    with open(path, "w") as file:
        for number in range(20):
            time.sleep(float(sys.argv[2]))
            file.write("x")
            file.flush()
files.write_once(sys.argv[1], write)
print("done")
"""


def start(code, *words):
    env = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, env=env)


def row(item="a", method="ddim", **metrics):
    return dict.fromkeys(files.ROW_KEYS, 0) | {"method": method, "item": item, "metrics": metrics}


def test_three_processes_killed_at_random_leave_one_whole_file(tmp_path):
    target, rng = tmp_path / "cache" / "basis", random.Random(0)
    for _ in range(4):
        processes = [start(WRITER, target, 0.01) for _ in range(3)]
        time.sleep(rng.uniform(0.1, 0.5))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not target.exists() or target.read_text() == "x" * 20
    processes = [start(WRITER, target, 0.001) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == [b"done\n"] * 3 and target.read_text() == "x" * 20
    files.write_once(target, lambda path: path.write_text("again"))
    files._swept.clear()
    files.write_text(target.parent / "other", "")
    assert sorted(path.name for path in target.parent.iterdir()) == [".basis.lock", "basis", "other"]
    assert target.read_text() == "x" * 20


def test_what_the_dead_left_goes_and_what_is_alive_stays(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = ended.pid
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
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert seen == [False, ["one"]]
    assert [path.name for path in target.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [target]


def test_where_nothing_can_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.json").mkdir()
    refuses("is a folder", files.write_json, tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "file").touch()
    refuses("file", files.write_json, tmp_path / "file" / "config.json", {})
    with pytest.raises(WriteError, match="the disk is full"), files.atomic_path(tmp_path / "b.json"):
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "b.json"):
        (tmp_path / "missing").read_text()
    monkeypatch.setattr(files.os, "access", lambda place, mode: mode != files.os.W_OK)
    refuses("no permission", files.write_json, tmp_path / "b.json", {})


LIMITED = """
import resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from common import files, runs
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
folder, big = Path(sys.argv[2]), torch.zeros(100000)
def weights():
    with files.atomic_path(folder / "a.safetensors") as path:
        save_file({"w": big}, path)
ways = {
    "json": lambda: files.write_json(folder / "a.json", "x" * 100000),
    "row": lambda: files.append_row(folder / "a.jsonl", {key: "x" * 100000 for key in files.ROW_KEYS}),
    "checkpoint": lambda: runs.save_checkpoint(folder, 2, {"w": big}),
    "weights": weights,
}
runs.script(lambda argv=None: ways[sys.argv[1]]())()
"""


@pytest.mark.parametrize("kind", ["json", "row", "checkpoint", "weights"])
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing_half_written(tmp_path, kind):
    runs.save_checkpoint(tmp_path, 1, {})
    command = [sys.executable, "-c", LIMITED, kind, tmp_path]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert "checkpoint-1 is whole" in done.stderr
    if kind == "row":
        assert files.read_rows(tmp_path / "a.jsonl") == []
        files.append_row(tmp_path / "a.jsonl", row("next"))
        assert [one["item"] for one in files.read_rows(tmp_path / "a.jsonl")] == ["next"]
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


APPENDER = """
import sys
from common import files
for number in range(40):
    row = dict.fromkeys(files.ROW_KEYS, 0) | {"method": "m", "item": f"{sys.argv[2]}-{number}", "metrics": {}}
    files.append_row(sys.argv[1], row)
"""


def test_several_writers_lose_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    processes = [start(APPENDER, path, name) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert {one["item"] for one in files.read_rows(path)} == {f"{name}-{n}" for name in "abc" for n in range(40)}


def test_rows_round_trip(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert files.read_rows(path) == [] and files.done_items(path, "ddim") == set()
    rows = [row("a", psnr=math.inf), row("b", psnr=31.25), row("c", "spd") | {"note": "naïve 猫\u2028"}]
    for one in rows:
        files.append_row(path, one)
    assert files.read_rows(path) == rows and files.done_items(path, "ddim") == {"a", "b"}
    files.append_row(path, row("d", psnr=torch.tensor(math.nan)))
    assert math.isnan(files.read_rows(path)[-1]["metrics"]["psnr"])


@pytest.mark.parametrize("torn", [b"{", b'{"paper": "spdinv"}', '{"é'.encode()[:-1], b"\x00" * 9, b"x" * 100_000])
@pytest.mark.parametrize("before", [0, 2])
def test_torn_last_line_is_dropped_then_cut_off(tmp_path, torn, before):
    path = tmp_path / "rows.jsonl"
    rows = [row(str(n)) for n in range(before)]
    for one in rows:
        files.append_row(path, one)
    with open(path, "ab") as file:
        file.write(torn)
    assert files.read_rows(path) == rows
    files.append_row(path, row("new"))
    assert files.read_rows(path) == [*rows, row("new")] and path.read_bytes().count(b"\n") == before + 1


def test_damaged_rows_and_incomplete_rows_are_refused(tmp_path):
    path, whole = tmp_path / "rows.jsonl", json.dumps(row())
    fields = ('"item": 3', '"item": "a", "metrics": 3', '"item": "a", "metrics": {"a": "x"}', '"item": "a", "seed": []')
    for damaged in ("{oops}", "7", "null", "[]", *(f'{{"method": "ddim", {field}}}' for field in fields)):
        path.write_text(f"{whole}\n{damaged}\n{whole}\n")
        refuses("line 2", files.read_rows, path)
    with pytest.raises(ValueError, match="seed"):
        files.append_row(tmp_path / "other.jsonl", {key: value for key, value in row().items() if key != "seed"})
    assert not (tmp_path / "other.jsonl").exists()


def test_names_that_are_no_utf8_go_into_json_and_come_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "a.json", {"path": name})
    files.append_row(tmp_path / "rows.jsonl", row(name))
    assert files.read_json(tmp_path / "a.json") == {"path": name}
    assert files.read_rows(tmp_path / "rows.jsonl")[0]["item"] == name
    files.write_text(tmp_path / "a.html", name)
    assert "caf" in files.read_text(tmp_path / "a.html")


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"t": torch.tensor([1.5]), "n": np.float32(2), "p": path, "é": None, "inf": math.inf})
    assert files.read_json(path) == {"t": [1.5], "n": 2.0, "p": str(path), "é": None, "inf": math.inf}
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # a byte order mark is no fault
    assert files.read_json(path) == {"a": 1}
    no_json, no_object = (b"{", b"", b"\xff\xfe{}", b"[" * 200_000), (b"[]", b"null", b"3", b'"text"')
    for name, contents in (("a.json", no_json), ("config.json", no_json + no_object)):  # of a run: an object
        for content in contents:
            (tmp_path / name).write_bytes(content)
            for read in (files.read_object, files.read_json):
                refuses(name, read, tmp_path / name)
    for missing in (tmp_path / "none.json", tmp_path):
        refuses("", files.read_json, missing)


def test_names_that_become_files():
    for good in ("dog", "<new1>", "a b", "猫", "x.y", "dog[1]"):
        assert files.check_file_name(good, "a name") == good
    for bad in ("", " ", ".", "..", "a/b", "a\\b", "a\0", "a\nb", "x" * 300, "猫" * 60, os.fsdecode(b"\xe9"), None, 3):
        refuses("^a name", files.check_file_name, bad, "a name")
