import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import runs
from common.runs import InputError
from tests.refusing import refuses
from tests.small_data import Bomb


def test_wrong_flag_names_the_near_one(refused, capsys):
    parser = runs.make_parser("test")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    for words, near in (("--num_inference_step 3", True), ("--num-inference-steps=3", True), ("--num_inf=3", True),
                        ("--zzz 1", False)):  # fmt: skip
        name = "unknown argument " + words.split()[0].split("=")[0]
        refused(f"{name}; did you mean --num_inference_steps?" if near else name, parser.parse_args, words.split())
    refused("--seed", parser.parse_args, ["--seed", "one"])
    assert "(default: 50)" in parser.format_help()
    assert parser.parse_args(["--seed", "3"]).seed == 3


def test_a_home_folder_is_found_in_every_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b~.png"):
        Path(name).write_bytes(b"")
    parser = runs.make_parser("test")
    parser.add_argument("--output_dir")
    parser.add_argument("--reference_path", nargs="*")
    args = parser.parse_args(["--output_dir=~/x", "--reference_path", "~/a.png", "b~.png"])
    assert args.output_dir == str(tmp_path / "x") and args.reference_path == [str(tmp_path / "a.png"), "b~.png"]


@pytest.mark.parametrize("error, code, said", [
    (InputError("two\nlines"), 2, "error: two lines\n"), (KeyboardInterrupt(), 130, ""),
    (MemoryError(), 2, "not enough memory"), (RuntimeError("CUDA out of memory. Tried"), 2, "not enough memory"),
    (OSError(28, "No space"), 2, "the disk is full"),
    (PermissionError(13, "", "a.png"), 2, "error: cannot use a.png: no permission"),
    (FileNotFoundError(2, "No such file", str(runs.cache_folder("x"))), 2, "No such file (STEERING_CACHE moves all"),
    (NotADirectoryError(20, "", str(runs.cache_folder())), 2, "a part of its path is a file; name another folder (STE"),
])  # fmt: skip
def test_script_turns_errors_into_exit_codes_and_passes_results_and_bugs_on(error, code, said, capsys):
    @runs.script
    def main(argv=None):
        if isinstance(argv[-1], BaseException):
            raise argv[-1]
        return argv[-1]

    for last, expected in ((error, code), (3, 3)):
        with pytest.raises(SystemExit) as exit:
            main(["a", last])
        assert exit.value.code == expected
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == (code == 2)
    assert main([0]) == 0 and main.__name__ == "main"
    with pytest.raises(ZeroDivisionError):
        main([ZeroDivisionError()])


def test_runs_imports_nothing_heavy():
    code = "import sys, common.runs; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT).returncode == 0


def test_config_holds_flags_resolved_values_and_provenance(tmp_path):
    parser = runs.make_parser("test")
    parser.add_argument("--seed", type=int, default=7)
    runs.write_config(tmp_path / "run", parser.parse_args([]), resolution=64)
    config = runs.read_json(tmp_path / "run" / "config.json")
    assert config["seed"] == 7 and config["resolution"] == 64
    assert config["provenance"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert config["provenance"]["threads"] == torch.get_num_threads()
    if (runs.ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=runs.ROOT, capture_output=True, text=True)
        assert config["provenance"]["git_revision"] == head.stdout.strip()


@pytest.mark.parametrize("wrong, said", [
    ({}, None),
    ({"seed": 1}, "another --seed \\(0\\)"),
    ({"limit": 9}, None),  # not one that all rows have in common
    ({"methods": {"ddim": {"steps": 6}}}, "another steps of ddim \\(5\\)"),
    ({"methods": {"ddim": {"steps": 5, "eta": 0.0}}}, "another eta of ddim \\(None\\)"),
    ({"methods": {"begun": {"steps": 6}, "new": {}}}, None),  # without a row
    ({"pictures": {"dog": "2e"}}, "other pictures of dog"),
    ({"pictures": {"cat": "2e"}}, None),
    ({"pictures": {"dog": "2e"}, "item": "dog/03"}, "other pictures of dog"),  # a subject with several
])  # fmt: skip
def test_rows_join_those_of_the_same_settings_alone(tmp_path, wrong, said):
    told = {"methods": {"ddim": {"steps": 5}, "begun": {"steps": 5}}, "pictures": {"dog": "1f"}}
    first = runs.joined_config(tmp_path, {"seed": 0, "limit": 4}, ["seed"], **told)
    runs.write_json(tmp_path / "config.json", first)
    now = {"seed": 0, "limit": 4, "methods": {"ddim": {"steps": 5}}, "pictures": {"dog": "1f"}} | wrong
    row = {"method": "ddim", "item": now.pop("item", "dog")}

    def join():
        flags = {"seed": now["seed"], "limit": now["limit"]}
        return runs.joined_config(tmp_path, flags, ["seed"], methods=now["methods"], pictures=now["pictures"])

    assert join()["seed"] == now["seed"]  # no row yet
    (tmp_path / "rows-1of2.jsonl").write_text(json.dumps(row) + "\n")
    if said:
        refuses(f"{tmp_path} holds results with {said}", join)
    else:
        assert join() == now | {kind: first[kind] | now[kind] for kind in told}  # and what was told of others


@pytest.mark.parametrize("damaged", [None, "", "[]", '{"methods": 5}', '{"methods": null}', '{"methods": {"ddim": 5}}'])
def test_a_damaged_config_beside_rows_is_one_sentence(tmp_path, damaged):
    (tmp_path / "rows.jsonl").write_text('{"method": "ddim", "item": "dog"}\n')
    if damaged is not None:
        (tmp_path / "config.json").write_text(damaged)
    refuses("config.json", runs.joined_config, tmp_path, {}, (), methods={})


@pytest.mark.parametrize("wrote, kept", [
    ("config.json", False), ("sub/config.json", False), (".rows.jsonl.lock", False), ("a/rows.jsonl", True),
    ("checkpoint-3/state.pt", True), ("pictures/a.png", True), ("somebody's notes.txt", True),
])  # fmt: skip
def test_what_is_refused_before_it_has_made_anything_leaves_no_folder(tmp_path, wrote, kept, refused):
    def script(then):
        @runs.script
        def main(argv=None):
            parser = runs.make_parser("test")
            parser.add_argument("--output_dir")
            folder = Path(parser.parse_args(argv).output_dir)
            (folder / wrote).parent.mkdir(parents=True, exist_ok=True)
            (folder / wrote).write_text("")
            then(folder)
            raise InputError("no")

        return main

    (tmp_path / "mine").mkdir()
    inner = script(lambda folder: None)
    outer = script(lambda folder: inner(["--output_dir", str(folder.parent / "inside")]))
    for main, name in ((inner, "new"), (inner, "mine"), (outer, "outer")):
        refused("no", main, ["--output_dir", str(tmp_path / name)])
    assert {path.name for path in tmp_path.iterdir()} == {"mine", *(["new", "outer", "inside"] if kept else [])}
    assert (tmp_path / "mine" / wrote).exists()


@pytest.mark.parametrize("closed, code", [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("| true", 141)])
def test_streams_that_are_closed_stop_nothing(tmp_path, closed, code):
    """cron, nohup, "| head"."""
    lines = ["import sys, time", "from common import runs", "@runs.script", "def main(argv=None):",
             "    time.sleep(0.2)", "    print('x')", "    list(runs.progress(range(2), 'steps'))",
             f"    open({str(tmp_path / 'done')!r}, 'w')", "main()"]  # fmt: skip
    (tmp_path / "it.py").write_text("\n".join(lines))
    command = f"set -o pipefail; {sys.executable} {tmp_path / 'it.py'} {closed}"
    told = subprocess.run(["bash", "-c", command], cwd=runs.ROOT, capture_output=True, text=True,
                          env={"PYTHONPATH": str(runs.ROOT)})  # fmt: skip
    assert told.returncode == code and "Error" not in told.stderr
    assert (tmp_path / "done").exists() or code  # who goes away stops the run


def test_only_a_runs_own_pictures_are_removed(tmp_path):
    mine = tmp_path / "exemplar_9.png"
    for name in (mine, tmp_path / "edited.png"):
        name.write_bytes(b"")
    runs.remove_stale(tmp_path, [mine])
    assert mine.exists()
    (tmp_path / "config.json").write_text("{}")
    runs.remove_stale(tmp_path, [mine, tmp_path / "never there"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["config.json", "edited.png"]


def test_a_place_spelt_otherwise_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    runs.write_json(tmp_path / "config.json", {"dataset": "data"})
    (tmp_path / "rows.jsonl").write_text('{"method": "ddim", "item": "dog"}\n')
    for spelt in ("data", "./data/", str(tmp_path / "data"), "link"):
        assert runs.joined_config(tmp_path, {"dataset": spelt}, ["dataset"])["dataset"] == spelt
    refuses("another --dataset", runs.joined_config, tmp_path, {"dataset": "other"}, ["dataset"])


def test_latest_is_by_number_and_leftovers_go(tmp_path):
    assert runs.latest_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 100):
        runs.save_checkpoint(tmp_path, step, {})
    (tmp_path / "checkpoint-old").mkdir()
    assert runs.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert runs.save_checkpoint(tmp_path, 50, {}, total_limit=1) == tmp_path / "checkpoint-50"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-50", "checkpoint-100", "checkpoint-old"}
    assert runs.load_checkpoint(tmp_path / "checkpoint-50") == {"step": 50}


def test_bad_checkpoints_are_refused(tmp_path):
    contents = (None, b"", b"junk", {"other": 1}, {"step": 1, "state": Bomb(tmp_path / "boom")})
    for content in contents:
        if isinstance(content, bytes):
            (tmp_path / "state.pt").write_bytes(content)
        elif content:
            torch.save(content, tmp_path / "state.pt")
        refuses("state.pt", runs.load_checkpoint, tmp_path)
    assert not (tmp_path / "boom").exists()


MEASURE_TWO_BLOCKS = """
import math, time
import numpy as np
from common import runs
np.ones(200 * 2**20 // 8)  # an earlier peak must hide nothing
with runs.measure() as large:
    block = np.ones(60 * 2**20 // 8)
    assert math.isnan(large.seconds)
    del block
try:
    with runs.measure() as small:  # told also of a block that fails
        time.sleep(0.02)
        raise KeyError
except KeyError:
    pass
assert 55 < large.peak_memory_mb < 90 and small.peak_memory_mb < 20, (large, small)
assert large.seconds > 0 and small.seconds >= 0.02
"""


def test_measure_sees_memory_of_its_own_block_only():
    """In a process of its own: a long one may hold freed memory, in which a block then shows no growth."""
    subprocess.run([sys.executable, "-c", MEASURE_TWO_BLOCKS], check=True, cwd=runs.ROOT)


def test_bootstrap_matches_the_normal_interval_and_skips_nan():
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = runs.bootstrap_interval([*values, math.nan])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == (pytest.approx(mean - half, abs=0.03), pytest.approx(mean + half, abs=0.03))
    assert (mean, low, high) == runs.bootstrap_interval(values, seed=0)
    assert runs.bootstrap_interval([3.0]) == (3.0, 3.0, 3.0)
    assert all(math.isnan(x) for x in runs.bootstrap_interval([math.nan]) + runs.bootstrap_interval([]))
    narrow = runs.bootstrap_interval(values, level=0.5)
    assert low < narrow[1] < narrow[2] < high
