"""eval.compare from end to end on a small random model: the page, skipping, kept rows, SVDiff's rows, wrong input."""

from collections import Counter

import pytest

from common.runs import read_rows
from eval import compare, freshness
from eval.freshness import RESULTS
from eval.tracks import svdiff_editing, track
from spdinv import eval as spdinv_eval


@pytest.fixture
def run(tiny_folder, benchmark, encoders, tmp_path):
    def run(*flags):
        compare.main(["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark),
                      "--metric_encoders", str(encoders), "--output_dir", str(tmp_path / "out"), "--device", "cpu",
                      "--num_inference_steps", "1", *flags])  # fmt: skip
        return tmp_path / "out"

    return run


def test_run_skip_and_table(run, benchmark, tmp_path, monkeypatch, capsys, refused):
    original, calls, kept = spdinv_eval.run_item, [], listing(RESULTS)

    def counted(*args, **kwargs):
        calls.append(args[1].id)
        return original(*args, **kwargs)

    monkeypatch.setattr(spdinv_eval, "run_item", counted)
    output = run("--items", "1")
    html = (output / "index.html").read_text()
    assert calls == ["000000000000"] * 2 and len(read_rows(output / "text_editing" / "rows.jsonl")) == 2
    assert html.count('<figure class="given"') == 2 and html.count('<figure class="made"') == 2  # source, true edit
    assert "DDIM + P2P" in html and "SPDInv + P2P" in html and "item-text_editing-000000000000" in html

    run("--items", "2")
    assert calls[2:] == ["000000000001"] * 2  # the first item was done
    refused("", run, "--items", "1", "--save_results")  # once replaced the committed rows by these
    html = (run("--items", "1") / "index.html").read_text()
    assert len(calls) == 4 and "this run: 1 item," in html and "committed run" not in html
    assert "another --pretrained_model_name_or_path (picturebook)" in capsys.readouterr().out
    command = spdinv_eval.parse(html.split("python -m spdinv.eval ")[1].split("</code>")[0].split())
    assert command.limit == 1 and command.num_inference_steps == 1 and command.inversions == ["ddim"]

    run("--items", "1", "--methods", "exact+p2p")
    assert "exact + P2P ran on 1 of 2 items." in (run("--items", "2") / "index.html").read_text()
    assert len(calls) == 5 and listing(RESULTS) == kept

    for folder, read in ((output, benchmark.name), (tmp_path / "nothing", "picturebook")):  # live; otherwise committed
        capsys.readouterr()
        compare.main(["--table", "spdinv:1", "--output_dir", str(folder)])
        shown = capsys.readouterr().out
        assert shown.count("measured: ") == 2 and "137.54" in shown and f"measured: {read}, " in shown


def listing(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.fixture
def live(tmp_path):
    """A run of the picturebook on the first two items, with the rows that are committed: DDIM's, and a newcomer's."""
    if freshness.state(freshness.find("text_editing"))[0] != freshness.FRESH:
        pytest.skip("the committed rows are of another world")
    output = tmp_path / "text_editing"
    spdinv_eval.write_config(output, spdinv_eval.parse(["--output_dir", str(output)]))
    (output / "rows.jsonl").touch()
    rows = [row for row in read_rows(RESULTS / "text_editing.jsonl") if row["method"] == "ddim+p2p"][:2]
    return output, rows, [{**row, "method": "new+p2p"} for row in rows]


def test_the_committed_rows_stand_beside_those_of_the_same_world(live, capsys):
    output, known, new = live
    seen, committed = track.runs_of("text_editing", output, known, spdinv_eval.parse)
    assert seen.rows == known and len(committed.rows) == 600 and committed.config["date"]

    seen, committed = track.runs_of("text_editing", output, [*known, *new], spdinv_eval.parse)
    counts = Counter(row["method"] for row in seen.rows)
    assert len(counts) == 16 and set(counts.values()) == {2}  # all on the two items
    assert [row["method"] for row in seen.rows if "seconds" in row] == ["ddim+p2p"] * 2 + ["new+p2p"] * 2
    assert len(committed.rows) == 600 and "seconds" in committed.rows[0]

    args = spdinv_eval.parse(["--output_dir", str(output), "--num_inference_steps", "10"])
    spdinv_eval.write_config(output, args)
    assert len(track.runs_of("text_editing", output, known, spdinv_eval.parse)) == 1
    assert "(40 items) are not shown beside: another --num_inference_steps (50)" in capsys.readouterr().out


def test_table_without_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track.freshness, "RESULTS", tmp_path)
    compare.main(["--table", "spdinv:s2", "--output_dir", str(tmp_path / "nothing")])
    assert "Nothing was measured yet" in capsys.readouterr().out


@pytest.mark.parametrize("flags, words", [
    (["--table", "nobody:1"], "no such paper"),
    (["--table", "spdinv:99"], "no table '99'"),
    (["--tracks", "cooking"], "text_editing"),
    (["--methods", "spd+p2p", "svdiff"], "svdiff is no inversion and engine"),
    (["--methods", "spd+p2"], "did you mean spd+p2p"),
    (["--methods", "nobody"], "there are ddim, null_text"),
])  # fmt: skip
def test_wrong_input(flags, words, tmp_path, refused):
    refused(words, compare.main, [*flags, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_rows_join_the_track(tiny_folder, benchmark, encoders, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path / "cache"))
    flags = ["--pretrained_model_name_or_path", str(tiny_folder), "--dataset", str(benchmark), "--metric_encoders",
             str(encoders), "--output_dir", str(tmp_path / "out"), "--device", "cpu", "--num_inference_steps", "1",
             "--items", "1"]  # fmt: skip
    refused("", svdiff_editing.main, flags)  # nothing to join yet
    compare.main([*flags, "--tracks", "text_editing"])
    svdiff_editing.main([*flags, "--max_train_steps", "1"])
    rows = [row for row in read_rows(tmp_path / "out" / "text_editing" / "rows.jsonl") if row["paper"] == "svdiff"]
    assert {row["method"] for row in rows} == {"svdiff", "svdiff+inversion"}
    assert all("psnr_reconstruction" in row["metrics"] for row in rows)
    svdiff_editing.main([*flags, "--max_train_steps", "1"])  # nothing is left to do
    refused("another max_train_steps of svdiff+inversion (1)", svdiff_editing.main, [*flags, "--max_train_steps", "2"])
    compare.main([*flags, "--tracks", "text_editing"])
    html = (tmp_path / "out" / "index.html").read_text()
    assert "SVDiff, tuned on the picture" in html
    assert "--max_train_steps 1" in html.split("python -m eval.tracks.svdiff_editing")[1]
    assert len(read_rows(tmp_path / "out" / "text_editing" / "rows.jsonl")) == 4
