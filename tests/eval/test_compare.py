"""eval.compare from end to end on a small random model: the page, skipping, kept results, tables, wrong input."""

import json

import pytest

from common.runs import read_rows
from eval import compare
from eval.tracks import track
from spdinv import eval as spdinv_eval
from tests.eval.conftest import refused


@pytest.fixture
def run(tiny_folder, benchmark, encoders, tmp_path, monkeypatch):
    monkeypatch.setattr(track, "RESULTS", tmp_path / "results")

    def run(*flags):
        compare.main(["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark),
                      "--metric_encoders", str(encoders), "--output_dir", str(tmp_path / "out"), "--device", "cpu",
                      "--num_inference_steps", "1", *flags])  # fmt: skip
        return tmp_path / "out"

    return run


def test_run_skip_keep_and_table(run, tmp_path, monkeypatch, capsys):
    original, calls = spdinv_eval.run_item, []

    def counted(*args, **kwargs):
        calls.append(args[1].id)
        return original(*args, **kwargs)

    monkeypatch.setattr(spdinv_eval, "run_item", counted)
    output = run("--items", "1")
    html = (output / "index.html").read_text()
    assert calls == ["000000000000"] * 2 and len(read_rows(output / "text_editing" / "rows.jsonl")) == 2
    assert html.count('<figure class="given"') == 2 and html.count('<figure class="made"') == 2  # source, true edit
    assert "DDIM + P2P" in html and "SPDInv + P2P" in html and "item-text_editing-000000000000" in html

    run("--items", "2", "--save_results")
    assert calls[2:] == ["000000000001"] * 2  # the first item was done
    assert len(read_rows(tmp_path / "results" / "text_editing.jsonl")) == 4

    html = (run("--items", "1") / "index.html").read_text()
    assert len(calls) == 4 and "this run: 1 item," in html and "earlier run: 2 items" in html
    command = spdinv_eval.parse(html.split("python -m spdinv.eval ")[1].split("</code>")[0].split())
    assert command.limit == 1 and command.num_inference_steps == 1 and command.inversions == ["ddim"]

    run("--items", "1", "--methods", "exact+p2p")
    assert "fewer than 2 items: exact + P2P: 1." in (run("--items", "2") / "index.html").read_text()
    assert len(calls) == 5

    capsys.readouterr()
    compare.main(["--table", "spdinv:1", "--output_dir", str(tmp_path / "nothing")])
    shown = capsys.readouterr().out  # from the kept results
    assert shown.count("measured: ") == 2 and "137.54" in shown

    config = tmp_path / "results" / "text_editing.json"
    kept = json.loads(config.read_text())
    slower = {name: method | {"num_inference_steps": 50} for name, method in kept["methods"].items()}
    for other in ({"metric_encoders": "others"}, {"methods": slower}):  # not to be compared with this one
        config.write_text(json.dumps(kept | other))
        assert "earlier run" not in (run("--items", "1") / "index.html").read_text()


def test_table_without_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track, "RESULTS", tmp_path)
    compare.main(["--table", "spdinv:s2", "--output_dir", str(tmp_path / "nothing")])
    assert "Nothing was measured yet" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (["--table", "nobody:1"], "no such paper"),
    (["--table", "spdinv:99"], "no table '99'"),
    (["--tracks", "cooking"], "text_editing"),
    (["--methods", "spd+p2p", "svdiff"], "svdiff is no inversion and engine"),
    (["--dataset", "/nowhere"], "mapping_file.json"),
    (["--pretrained_model_name_or_path", "/nowhere"], "/nowhere"),
])  # fmt: skip
def test_wrong_input(flags, words, tmp_path, capsys):
    assert words in refused(compare.main, [*flags, "--output_dir", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()
