"""Experiments as build products: run once, kept with what they depend on, fresh or stale, rendered and checked."""

import importlib
import json
import shlex
from dataclasses import replace

import pytest

from common.runs import digest_of, read_object, read_rows, write_json
from eval import experiments, freshness, rendering
from eval.freshness import FRESH, MISSING, STALE, Experiment, state
from tests.refusing import refuses

FAKE = "tests.eval.fake_experiment"


def entry(**changes):
    given = {"id": "text_editing", "title": "A track", "question": "Which?", "commands": [FAKE], "n": 10, "minutes": 7,
             "tier": 1, "columns": ["psnr/pie_official"], "quick": "--limit 2", "shards": True}  # fmt: skip
    return Experiment(**given | changes)


@pytest.fixture
def world(monkeypatch, tmp_path):
    """One fake experiment, weights and drawing that a test may change, and folders of its own."""
    found = {"weights": "w1", "drawing": "d1"}
    monkeypatch.setattr("common.picturebook.hashes.weights_hash", lambda *parts: found["weights"])
    monkeypatch.setattr("common.picturebook.hashes.data_hash", lambda: found["drawing"])
    monkeypatch.setattr(freshness, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(freshness, "protocols", lambda: found.get("protocols", {}))
    monkeypatch.setattr(rendering, "ASSETS", tmp_path / "assets")
    listed = {"text_editing": entry()}
    for module in (freshness, experiments, rendering):
        monkeypatch.setattr(module, "experiments", lambda: listed)
    return found, listed


def run(tmp_path, *words):
    return experiments.main([*words, "--output_dir", str(tmp_path / "work")])


def test_a_run_is_kept_and_not_done_twice(world, tmp_path, capfd):
    one = world[1]["text_editing"]
    assert state(one)[0] == MISSING
    run(tmp_path, "--run")
    assert state(one)[0] == FRESH and len(read_rows(one.kept)) == 20 and "seen" not in read_rows(one.kept)[0]
    about = read_object(one.about)
    assert about["fingerprint"]["weights"] == "w1" and about["machine"] and about["minutes"] >= 0
    assert FAKE in capfd.readouterr().out
    run(tmp_path, "--run")
    assert FAKE not in capfd.readouterr().out


def test_what_rows_depend_on_makes_them_stale_and_nothing_else_does(world, tmp_path):
    found, listed = world
    run(tmp_path, "--run", "text_editing")
    one = listed["text_editing"]
    assert state(replace(one, title="Another title", question="?", minutes=9))[0] == FRESH
    for change, words in (({"weights": "w2"}, "weights"), ({"drawing": "d2"}, "drawing"),
                          ({"protocols": {"psnr/pie_official": 2}}, "protocols of psnr/pie_official")):  # fmt: skip
        before = dict(found)
        found.update(change)
        assert state(one) == (STALE, words) and freshness.fresh_rows("text_editing") == []
        found.clear()
        found.update(before)
    assert state(replace(one, commands=[f"{FAKE} --limit 9"])) == (STALE, "commands")
    assert state(replace(one, settings=["eval/protocols.toml"])) == (STALE, "settings of eval/protocols.toml")
    assert len(freshness.fresh_rows("text_editing")) == 20


def test_a_failing_command_keeps_nothing_and_the_others_run(world, tmp_path, capfd):
    world[1].clear()
    world[1].update(bad=entry(id="bad", commands=[f"{FAKE} --fail"]), good=entry(id="good"))
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, "--run")
    assert "bad stopped; the same" in capfd.readouterr().err
    assert state(world[1]["bad"])[0] == MISSING and state(world[1]["good"])[0] == FRESH


def test_shards_are_gathered(world, tmp_path):
    for part in ("1/2", "2/2"):
        run(tmp_path, "--run", "text_editing", "--shard", part)
        assert state(world[1]["text_editing"])[0] == MISSING
    (place,) = (tmp_path / "work").glob("text_editing-*")
    assert len(experiments.gathered(place / "rows.jsonl")) == 20


def test_a_doubter_gets_the_rows_again_and_nothing_is_kept(world, tmp_path, capfd):
    run(tmp_path, "--run", "text_editing")
    one = world[1]["text_editing"]
    kept = one.kept.read_text()
    run(tmp_path, "--run", "text_editing", "--again")
    assert "20 of 20 kept rows were made again; the largest difference is 0 (" in capfd.readouterr().out
    one.kept.write_text(kept.replace('"psnr/pie_official": 2', '"psnr/pie_official": 3', 1))
    changed = one.kept.read_text()
    run(tmp_path, "--run", "text_editing", "--again")
    assert "the largest difference is 10 (psnr/pie_official of" in capfd.readouterr().out
    assert one.kept.read_text() == changed != kept
    assert not list((tmp_path / "work").glob("*-again"))  # a third time would not find these rows


def test_columns_and_references_that_no_row_has_are_told(world, tmp_path):
    world[1].update(text_editing=entry(columns=["psnr/pie_official", "lpips_truth"], references=["truth"]))
    run(tmp_path, "--run", "text_editing")
    assert rendering.lacking(world[1]["text_editing"]) == ["lpips_truth", "truth"]


def test_quick_keeps_nothing(world, tmp_path, capfd):
    run(tmp_path, "--quick")
    assert "text_editing: 4 rows" in capfd.readouterr().out and state(world[1]["text_editing"])[0] == MISSING


def rows_of(scores):
    return [{"method": method, "item": str(i), "seed": 0, "metrics": {"psnr/pie_official": value}}
            for method, values in scores.items() for i, value in enumerate(values)]  # fmt: skip


def test_a_table_is_of_common_items_with_references_apart_and_a_best_that_beats_all():
    rows = rows_of({"truth": [60.0] * 12, "a": [20.0 + i for i in range(12)], "b": [22.0 + 1.01 * i for i in range(10)],
                    "c": [50.0] * 4})  # fmt: skip
    lines, note = rendering.table_of(entry(references=["truth"]), rows)
    assert [line[:2] for line in lines] == [["", "n"], ["*truth*", "12"], ["a", "10"], ["b", "10"]]
    assert lines[1][2] == "60.0" and lines[2][2].startswith("24.5 [")  # a over ten items
    assert lines[3][2].startswith("**26.5 [") and "fewer than half of the items: c (4)." in note


def test_pages_are_filled_checked_and_refused(world, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("Prose.\n<!-- results: text_editing -->\n<!-- end -->\nMore.\n"
                    "<!-- results: text_editing.verdicts -->\nold\n<!-- end -->\n")  # fmt: skip
    rendering.render(tmp_path)
    assert "*Not run yet:* `python -m eval.experiments --run text_editing` *(about 7 minutes).*" in page.read_text()
    run(tmp_path, "--run")
    assert list(rendering.differing(tmp_path)) == [page]
    rendering.render(tmp_path)
    text = page.read_text()
    assert text.startswith("Prose.\n") and "More." in text and "\nold\n" not in text
    assert "weights w1, drawing d1" in text
    assert "| SPDInv keeps the background better" in text and "holds" in text and not rendering.differing(tmp_path)
    page.write_text(text.replace("| 10 |", "| 11 |", 1))  # somebody types a number by hand
    assert list(rendering.differing(tmp_path)) == [page]
    world[0]["weights"] = "w2"
    assert "Kept rows are of another state (weights)" in rendering.rendered(page)
    for wrong in ("<!-- results: nothing -->\n<!-- end -->\n", "<!-- results: text_editing -->\n",
                  "<!-- results: claims:nobody -->\n<!-- end -->\n"):  # fmt: skip
        page.write_text(wrong)
        refuses("results: ", rendering.rendered, page)


def test_rows_made_elsewhere_stand_under_their_own_heading(world, tmp_path, refused):
    folder = tmp_path / "sd15"
    folder.mkdir()
    experiments.start(entry(), folder, [])
    run(tmp_path, "--import", str(folder), "--as", "text_editing", "--label", "SD 1.5, 700 pictures")
    text = rendering.body("text_editing", tmp_path)
    assert "Not run yet" in text and "**Run elsewhere: SD 1.5, 700 pictures** (dataset PIE-Bench, gpu a card" in text
    refused("", run, tmp_path, "--import", str(folder))


def test_tables_are_exported(world, tmp_path):
    run(tmp_path, "--run")
    run(tmp_path, "--export", str(tmp_path / "out"))
    csv, tex = ((tmp_path / "out" / f"text_editing.{suffix}").read_text() for suffix in ("csv", "tex"))
    assert csv.splitlines()[1].startswith('spd+p2p,10,"24.5 [') and r"\begin{tabular}{lrr}" in tex and r"\\" in tex
    assert (tmp_path / "out" / "claims.csv").read_text().count("\n") > 50


def test_the_readmes_are_what_the_rows_say():
    assert not rendering.differing()


@pytest.mark.parametrize("name", freshness.experiments())
def test_every_command_is_one_that_its_script_takes(name, tmp_path):
    one = freshness.experiments()[name]
    for more in ("", one.quick, "--shard 2/3" * one.shards):
        for words in experiments.command_lines(one, tmp_path / "out", shlex.split(more)):
            module = importlib.import_module(words[2] + (".__main__" if words[2] == "eval.bench" else ""))
            args = module.parse(words[3:])
            assert args.output_dir == str(tmp_path / "out")
            assert not one.shards or str(args.shard) == ("2/3" if "2/3" in more else "1/1")
    assert all(digest_of(freshness.settings_of(place)) for place in one.settings)


def test_tier_1_takes_at_most_twenty_hours():
    assert sum(one.minutes for one in freshness.experiments().values() if one.tier == 1) <= 20 * 60


def test_a_wrong_entry_is_one_sentence(tmp_path, monkeypatch, refused):
    monkeypatch.setattr(freshness, "HERE", tmp_path)
    (tmp_path / "experiments.toml").write_text('[[experiment]]\nid = "x"\ntitel = "y"\n')
    refuses("experiments.toml, 'x'", freshness.experiments.__wrapped__)
    refuses("no experiment 'nothing'", freshness.find, "nothing")
    write_json(tmp_path / "config.json", {})
    for words in (["--run", "nothing"], ["--import", "/nowhere", "--as", "text_editing"], [], ["--shard", "1/2"]):
        refused("", experiments.main, words)
    row = {"paper": "p", "method": "m", "item": "i", "seed": 0, "metrics": {"a": 1.0}, "seconds": 1.0,
           "peak_memory_mb": 1.0}  # fmt: skip
    for wrong, label, said in (
        ({"seed": [1]}, "a", "line 1 is not a result row"), ({"metrics": {"a": "x"}}, "a", "line 1 is not"),
        ({"metrics": {"a": None}}, "a", "line 1 is not"), (None, "a", "a row lacks seed"),
        ({}, "a\nb", "cannot hold"), ({}, "a <!-- end -->", "cannot hold"),
    ):  # fmt: skip
        lines = [row, {key: row[key] for key in row if key != "seed"} if wrong is None else row | wrong]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[wrong is not None :]))
        refused(said, experiments.main, ["--import", str(tmp_path), "--as", "text_editing", "--label", label])
