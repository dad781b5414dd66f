"""Parts of a run: none is left out, the last one reports, and rows lie as one process would have left them."""

import argparse

import pytest

from common import shards
from common.files import append_row, read_rows
from common.training_run import make_accelerator
from tests.refusing import refuses

TRAINING = argparse.Namespace(report_to="none", device="cpu", mixed_precision="no", output_dir=None)


def row(method, item, seed=0, **more):
    return {"paper": "p", "method": method, "item": item, "seed": seed, "metrics": {}, "seconds": 1.0,
            "peak_memory_mb": 0.0, **more}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_every_thing_is_in_one_part(count):
    things = list(range(7))
    parts = [shards.Shard(index, count).of(things) for index in range(1, count + 1)]
    assert sorted(sum(parts, [])) == things and max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["3/2", "0/2", "1/0", "a/2", "1", "", "-1/2", "1/2/3", "1.0/2"])
def test_what_is_no_part(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not I/N"):
        shards.shard(text)


def test_the_last_part_reports_and_rows_are_as_of_one_process(tmp_path, capsys):
    path, wanted = tmp_path / "rows.jsonl", [(method, item, 0) for item in "ab" for method in "xy"]
    append_row(path, row("other", "a"))
    for method, item, _ in reversed(wanted[1:]):
        append_row(path, row(method, item, note="ä"))
    before = path.read_bytes()
    assert not shards.all_done(path, wanted, shards.Shard(2, 2)) and path.read_bytes() == before
    assert "1 rows are the other shards'" in capsys.readouterr().out
    append_row(path, row("x", "a", note="ä"))
    append_row(path, row("x", "a", seed=1))
    lines = path.read_bytes().splitlines()
    assert shards.all_done(path, wanted, shards.Shard(1, 2))
    assert [(one["method"], one["item"], one["seed"]) for one in read_rows(path)] == [
        ("other", "a", 0), *wanted, ("x", "a", 1)]  # fmt: skip
    assert sorted(path.read_bytes().splitlines()) == sorted(lines)
    assert shards.all_done(path, [*wanted, ("z", "a", 0)], shards.Shard())  # a whole run reports what there is


def test_a_launched_process_takes_its_part_and_is_alone_from_then_on(monkeypatch):
    def told(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    assert shards.launched() == (1, 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    told(RANK=2, LOCAL_RANK=0, WORLD_SIZE=3, LOCAL_WORLD_SIZE=1)
    assert shards.launched() == (3, 3) and shards.launched() == (1, 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for visible, own in (({}, "1"), ({"CUDA_VISIBLE_DEVICES": "4,7"}, "7")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        told(RANK=3, LOCAL_RANK=3, WORLD_SIZE=4, **visible)
        assert shards.launched() == (4, 4) and shards.os.environ["CUDA_VISIBLE_DEVICES"] == own


@pytest.mark.parametrize("name", shards.OF_THE_LAUNCH)
@pytest.mark.parametrize("text", ["one", "", "-1", "1.5"])
def test_a_number_of_the_launch_that_is_none(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    refuses(f"the environment variable {name} is '{text}'", shards.launched)
    refuses("unset it", make_accelerator, TRAINING, "name")  # of a training too, which shares its steps


@pytest.mark.parametrize("rank, size", [(2, 2), (0, 0)])
def test_a_part_that_there_is_not(monkeypatch, rank, size):
    for name, value in (("RANK", rank), ("LOCAL_RANK", 0), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, str(value))
    refuses(f"RANK={rank} and WORLD_SIZE={size} are of no launch", shards.launched)


def test_processes_that_do_not_find_each_other(monkeypatch):
    monkeypatch.setattr("accelerate.Accelerator", lambda **_: {}["MASTER_ADDR"])
    refuses("do not find each other: .*MASTER_ADDR", make_accelerator, TRAINING, "name")
