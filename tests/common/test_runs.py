import json
import math
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from common import files, runs
from common.runs import InputError


def row(item, method="ddim", **metrics):
    return {
        "paper": "spdinv",
        "method": method,
        "item": item,
        "seed": 0,
        "metrics": metrics,
        "seconds": 1.0,
        "peak_memory_mb": 2.0,
    }


# ---------------------------------------------------------------------------------------------------------- scripts


def test_wrong_flag_names_the_near_one(capsys):
    parser = runs.make_parser("test")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    for argv in (["--num_inference_step", "3"], ["--num-inference-steps=3"], ["--num_inf=3"], ["--zzz", "1"]):
        with pytest.raises(SystemExit) as exit:
            parser.parse_args(argv)
        assert exit.value.code == 2
        message = capsys.readouterr().err
        assert "unknown argument " + argv[0].split("=")[0] in message and message.count("\n") == 1
        assert ("did you mean --num_inference_steps?" in message) == (argv[0] != "--zzz")
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(["--seed", "one"])
    assert exit.value.code == 2 and "--seed" in capsys.readouterr().err
    assert "(default: 50)" in parser.format_help()
    assert parser.parse_args(["--seed", "3"]).seed == 3


@pytest.mark.parametrize(
    "error, code, said",
    [(InputError("two\nlines"), 2, "error: two lines\n"), (KeyboardInterrupt(), 130, "")],
)
def test_script_turns_errors_into_exit_codes(error, code, said, capsys):
    @runs.script
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as exit:
        main([])
    assert exit.value.code == code and capsys.readouterr().err == said


def test_script_passes_arguments_results_and_programming_errors_through():
    seen = []

    @runs.script
    def main(argv=None):
        seen.append(argv)
        if argv == ["bug"]:
            raise ZeroDivisionError
        return len(argv)

    assert main([]) == 0
    with pytest.raises(SystemExit) as exit:
        main(["a", "b", "c"])
    assert exit.value.code == 3
    with pytest.raises(ZeroDivisionError):
        main(["bug"])
    assert seen == [[], ["a", "b", "c"], ["bug"]] and main.__name__ == "main"


def test_runs_imports_nothing_heavy():
    code = "import sys, common.runs; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT).returncode == 0


# ------------------------------------------------------------------------------------------------------------ files


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "new" / "picture.png"
    with runs.atomic_path(target) as temporary:
        assert temporary.suffix == ".png" and temporary.parent == target.parent
        temporary.write_text("old")
    with pytest.raises(RuntimeError):
        with runs.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_atomic_path_says_where_it_cannot_write(tmp_path, monkeypatch):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        runs.write_json(tmp_path / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.setattr(files.os, "access", lambda place, mode: mode != runs.os.W_OK)
    with pytest.raises(InputError, match="no permission"):
        runs.write_json(tmp_path / "b.json", {})


def test_atomic_path_replaces_a_folder_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("one", "two"):
        with runs.atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    with pytest.raises(RuntimeError):
        with runs.atomic_path(target) as temporary:
            temporary.mkdir()
            raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["two"] and list(tmp_path.iterdir()) == [target]


def test_output_folder_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        runs.write_json(tmp_path / "file" / "config.json", {})


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"t": torch.tensor([1.5]), "n": np.float32(2), "p": path, "é": None, "inf": math.inf})
    assert runs.read_json(path) == {"t": [1.5], "n": 2.0, "p": str(path), "é": None, "inf": math.inf}
    for content in (b"{", b"", b"\xff\xfe{}", b"[" * 200_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="a.json"):
            runs.read_json(path)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError):
            runs.read_json(missing)


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


# ------------------------------------------------------------------------------------------------------ result rows


def test_rows_round_trip(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert runs.read_rows(path) == [] and runs.done_items(path, "ddim") == set()
    rows = [row("a", psnr=math.inf), row("b", psnr=31.25), row("c", method="spd", note="naïve 猫\u2028")]
    for one in rows:
        runs.append_row(path, one)
    assert runs.read_rows(path) == rows and runs.done_items(path, "ddim") == {"a", "b"}
    runs.append_row(path, row("d", psnr=torch.tensor(math.nan)))
    assert math.isnan(runs.read_rows(path)[-1]["metrics"]["psnr"])


@pytest.mark.parametrize("torn", [b"{", b'{"paper": "spdinv"}', '{"é'.encode()[:-1], b"\x00" * 9])
@pytest.mark.parametrize("before", [0, 2])
def test_torn_last_line_is_dropped_then_cut_off(tmp_path, torn, before):
    path = tmp_path / "rows.jsonl"
    rows = [row(str(n)) for n in range(before)]
    for one in rows:
        runs.append_row(path, one)
    with open(path, "ab") as file:
        file.write(torn)
    assert runs.read_rows(path) == rows
    runs.append_row(path, row("new"))
    assert runs.read_rows(path) == [*rows, row("new")] and path.read_bytes().count(b"\n") == before + 1


def test_damaged_rows_and_incomplete_rows_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    whole = json.dumps(row("a"))
    for damaged in ("{oops}", "7", "null", "[]", '{"method": "ddim"}', '{"method": "ddim", "item": "a", "metrics": 3}'):
        path.write_text(f"{whole}\n{damaged}\n{whole}\n")
        with pytest.raises(InputError, match="line 2"):
            runs.read_rows(path)
    incomplete = row("a")
    del incomplete["seed"]
    with pytest.raises(ValueError, match="seed"):
        runs.append_row(tmp_path / "other.jsonl", incomplete)
    assert not (tmp_path / "other.jsonl").exists()


# ------------------------------------------------------------------------------------------------------ checkpoints


def train(folder, stop, resume=False, steps=6):
    """A loop that draws from all three global generators and steps an optimiser with state."""
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    layer = torch.nn.Linear(3, 1)
    adam = torch.optim.AdamW(layer.parameters(), lr=0.1)
    first = 0
    if resume:
        saved = runs.load_checkpoint(runs.latest_checkpoint(folder))
        layer.load_state_dict(saved["layer"]), adam.load_state_dict(saved["adam"])
        first = saved["step"]
    for step in range(first, min(stop, steps)):
        noise = torch.randn(4, 3) * np.random.rand() + random.gauss(0, 1) + np.random.randn()
        adam.zero_grad()
        layer(noise).square().mean().backward()
        adam.step()
        runs.save_checkpoint(folder, step + 1, {"layer": layer.state_dict(), "adam": adam.state_dict()}, total_limit=2)
    return layer.weight.detach()


def test_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = train(tmp_path / "whole", stop=6)
    train(tmp_path / "cut", stop=3)
    torch.manual_seed(99)
    resumed = train(tmp_path / "cut", stop=6, resume=True)
    assert torch.equal(whole, resumed)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["checkpoint-5", "checkpoint-6"]


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


class _Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("content", [None, b"", b"junk", {"other": 1}, {"step": 1, "state": _Evil(), "rng": {}}])
def test_bad_checkpoints_are_refused(tmp_path, content, capsys):
    if isinstance(content, bytes):
        (tmp_path / "state.pt").write_bytes(content)
    elif content:
        torch.save(content, tmp_path / "state.pt")
    with pytest.raises(InputError, match="state.pt"):
        runs.load_checkpoint(tmp_path)
    assert "code ran" not in capsys.readouterr().out


def test_kill_while_saving_leaves_the_last_whole_checkpoint(tmp_path):
    code = f"""
import torch
from common.runs import save_checkpoint
for step in range(1, 10000):
    save_checkpoint({str(tmp_path)!r}, step, {{"weights": torch.full((200000,), float(step))}}, total_limit=2)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runs.ROOT)
    while not runs.latest_checkpoint(tmp_path) or runs.latest_checkpoint(tmp_path).name == "checkpoint-1":
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = runs.load_checkpoint(runs.latest_checkpoint(tmp_path))
    assert torch.equal(saved["weights"], torch.full((200000,), float(saved["step"])))


# ------------------------------------------------------------------------------------------- measurement, intervals


MEASURE_TWO_BLOCKS = """
import math, time
import numpy as np
from common import files, runs
np.ones(200 * 2**20 // 8)  # an earlier peak must hide nothing
with runs.measure() as large:
    block = np.ones(60 * 2**20 // 8)
    assert math.isnan(large.seconds)
    del block
with runs.measure() as small:
    time.sleep(0.02)
assert 55 < large.peak_memory_mb < 90 and small.peak_memory_mb < 20, (large, small)
assert large.seconds > 0 and small.seconds >= 0.02
"""


def test_measure_sees_memory_of_its_own_block_only():
    """In a process of its own: a long one may hold freed memory, in which a block then shows no growth."""
    subprocess.run([sys.executable, "-c", MEASURE_TWO_BLOCKS], check=True, cwd=runs.ROOT)


def test_measure_reports_when_the_block_fails():
    with pytest.raises(RuntimeError):
        with runs.measure() as cost:
            raise RuntimeError
    assert cost.seconds >= 0


def test_bootstrap_matches_the_normal_interval_and_skips_nan():
    values = np.random.default_rng(1).normal(5, 2, 400)
    mean, low, high = runs.bootstrap_interval([*values, math.nan])
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert low == pytest.approx(mean - half, abs=0.03) and high == pytest.approx(mean + half, abs=0.03)
    assert (mean, low, high) == runs.bootstrap_interval(values, seed=0)
    assert runs.bootstrap_interval([3.0]) == (3.0, 3.0, 3.0)
    assert all(math.isnan(x) for x in runs.bootstrap_interval([math.nan]) + runs.bootstrap_interval([]))
    narrow = runs.bootstrap_interval(values, level=0.5)
    assert low < narrow[1] < narrow[2] < high


def test_paired_bootstrap_uses_pairs():
    noise = np.random.default_rng(2).normal(0, 10, 200)
    mean, low, high = runs.paired_bootstrap([*(noise + 1), math.nan, 3], [*noise, 4, math.nan])
    assert mean == pytest.approx(1) and high - low < 1e-6
    with pytest.raises(ValueError):
        runs.paired_bootstrap([1, 2], [1])


def test_provenance_is_json():
    assert json.loads(json.dumps(runs.provenance()))["python"]
