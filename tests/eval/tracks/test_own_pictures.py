"""Pictures of one's own: lists in every form, what is refused, PIE-Bench, and several methods on one page."""

import json

import numpy as np
import pytest
from PIL import Image

from common.data import read_pie_bench
from common.runs import read_rows
from eval import compare
from eval.tracks.own_pictures import track
from eval.tracks.own_pictures.picture_list import read_list, write_pie_bench_folder
from tests.small_data import save_mask, save_noise


@pytest.fixture
def mine(tmp_path):
    """Two pictures, one with everything that can be given, in prompts.jsonl beside them."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("cat", "exemplar", "truth"):
        save_noise(folder / f"{name}.png", (80, 64))
    save_noise(folder / "dog.jpg")
    for name in ("mask", "map"):
        save_mask(folder / f"{name}.png", (80, 64), (20, 10, 50, 30))
    entries = [
        {"picture": "cat.png", "source_prompt": "a red cat", "target_prompt": "a blue cat", "words": "red blue",
         "mask": "mask.png", "exemplar": "exemplar.png", "edit_map": "map.png", "truth": "truth.png"},
        {"picture": "dog.jpg", "source_prompt": "a small dog", "target_prompt": "a big dog"},
    ]  # fmt: skip
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    return folder


def test_every_form_of_a_list_says_the_same(mine):
    wanted = read_list(mine)
    assert [entry["name"] for entry in wanted] == ["cat", "dog"] and read_list(mine / "prompts.jsonl") == wanted
    keys = ["picture", "source_prompt", "target_prompt", "words", "mask", "exemplar", "edit_map", "truth"]
    entries = [json.loads(line) for line in (mine / "prompts.jsonl").read_text().splitlines()]
    lines = [",".join(keys), *(",".join(entry.get(key, "") for key in keys) for entry in entries)]
    (mine / "list.csv").write_text("\n".join(lines))
    toml = ["[[picture]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in e.items()) for e in entries]
    (mine / "list.toml").write_text("\n\n".join(toml))
    assert read_list(mine / "list.csv") == read_list(mine / "list.toml") == wanted


@pytest.mark.parametrize("entry, words", [
    ({}, "picture"),
    ({"picture": "nothing.png"}, "nothing.png is missing"),
    ({"picture": "cat.png", "promt": "a cat"}, "'promt' is not known"),
    ({"picture": "cat.png", "words": "cat"}, "are two"),
    ({"picture": "cat.png", "exemplar": "cat.png"}, "belong together"),
    ({"picture": "cat.png", "target_prompt": 3}, "has to be text"),
    ({"picture": "cat.png", "name": "../cat"}, "../cat"),
    ({"picture": "cat.png", "target_prompt": "a \ud800"}, "not all text"),
    (["cat.png"], "picture"),
])  # fmt: skip
def test_an_entry_that_is_wrong_is_named(mine, entry, words, refused):
    path = mine / "wrong.jsonl"
    path.write_text(json.dumps({"picture": "dog.jpg"}) + "\n" + json.dumps(entry))
    said = refused(words, compare.main, ["--pictures", str(path), "--output_dir", str(mine / "out")])
    assert "entry 2" in said and not (mine / "out").exists()


@pytest.mark.parametrize("flags, words", [
    (["--methods", "dim+p2p"], "did you mean ddim+p2p"),
    (["--methods", "ddim+p2p", "pixel"], "pixels"),
    (["--methods", "dreambooth"], "eval.personalize"),
    (["--pictures", "/nowhere.csv"], "no list of pictures"),
    (["--pictures", __file__], "is no list"),
])  # fmt: skip
def test_wrong_flags(mine, flags, words, refused):
    refused(words, compare.main, ["--pictures", str(mine), "--output_dir", str(mine / "out"), *flags])
    assert not (mine / "out").exists()


def test_a_method_that_no_picture_suits_says_what_it_needs(mine):
    (alone,) = [entry for entry in read_list(mine) if entry["name"] == "dog"]
    with pytest.raises(ValueError, match="pixels needs exemplar and edit_map"):
        track.chosen_methods(["ddim+p2p", "pixels"], [alone])


@pytest.mark.parametrize("name, text, words", [
    ("deep.jsonl", "[" * 100_000, "cannot be read"),
    ("deep.toml", "a = " + "[" * 20_000, "cannot be read"),
    ("wide.csv", "picture,source_prompt\ncat.png,a,b\n", "a value beyond the last column"),
    ("other.toml", "picture = 5", "[[picture]] tables"), ("one.toml", '[picture]\npicture = "cat.png"', "[[picture]]"),
    ("more.toml", '[[pictures]]\npicture = "cat.png"', "[[picture]] tables and nothing else"),
    ("half.jsonl", '{"picture": "cat.png"}\n\n// dog\n{"picture": "dog.jpg"}', "line 3 is no JSON object"),
    ("excel.csv", "picture;source_prompt\ncat.png;a cat\n", "commas in between"),
    ("twice.csv", "picture,target_prompt,target_prompt\ncat.png,a,b\n", "two columns have one name"),
    ("twice.jsonl", '{"picture": "cat.png", "words": "a b", "words": "b a"}', "the key 'words' stands in it twice"),
    ("long.jsonl", json.dumps({"picture": "x" * 5000}), "the name is too long"),
])  # fmt: skip
def test_lists_that_cannot_be_read(mine, name, text, words, refused):
    (mine / name).write_text(text)
    said = refused(words, compare.main, ["--pictures", str(mine / name), "--output_dir", str(mine / "out")])
    assert len(said) < 1000 and not (mine / "out").exists()


def test_a_prompt_may_hold_any_character_of_json(mine):
    entry = {"picture": "cat.png", "source_prompt": "a\u2028b"}
    (mine / "list.jsonl").write_text(json.dumps(entry, ensure_ascii=False))
    assert read_list(mine / "list.jsonl")[0]["source_prompt"] == "a\u2028b"


def test_pie_bench_holds_central_squares_with_their_masks(mine, tmp_path):
    write_pie_bench_folder(read_list(mine), tmp_path / "bench")
    cat, dog = read_pie_bench(tmp_path / "bench", border=0)
    assert (cat.source_prompt, cat.target_prompt, cat.blended_words) == ("a red cat", "a blue cat", ("red", "blue"))
    whole = np.asarray(Image.open(mine / "cat.png"))
    assert np.array_equal(np.asarray(Image.open(cat.image_path)), whole[:, 8:72])
    assert cat.mask.sum() == 20 * 30 and cat.mask[10:30, 12:42].all()  # 8 columns fewer on the left
    assert dog.mask.all() and dog.blended_words is None
    for name in ("exemplar", "edit_map", "truth"):
        assert Image.open(tmp_path / "bench" / cat.extras[f"{name}_path"]).size == (64, 64)


@pytest.mark.parametrize("size, box, words", [
    ((30, 30), (0, 0, 30, 30), "30x30"), ((80, 64), (0, 0, 4, 64), "lies outside of the central square"),
])  # fmt: skip
def test_a_mask_of_another_size_or_beside_the_square_is_refused(mine, tmp_path, size, box, words):
    save_mask(mine / "mask.png", size, box)
    with pytest.raises(ValueError, match=words):
        write_pie_bench_folder(read_list(mine), tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


@pytest.fixture
def run(tiny_folder, encoders, mine, tmp_path):
    def run(*flags):
        compare.main(["--pretrained_model_name_or_path", str(tiny_folder), "--metric_encoders", str(encoders),
                      "--pictures", str(mine), "--output_dir", str(tmp_path / "out"), "--device", "cpu",
                      "--num_inference_steps", "2", *flags])  # fmt: skip
        out = tmp_path / "out"
        return (out / "index.html").read_text(), read_rows(out / "own_pictures" / "rows.jsonl")

    return run


def test_several_methods_on_one_page(run, mine, refused, monkeypatch):
    html, rows = run("--methods", "ddim+p2p", "paste", "--seeds", "0", "1")
    done = [(row["method"], row["item"], row["seed"]) for row in rows]
    assert done == [("ddim+p2p", "cat", 0), ("ddim+p2p", "dog", 0), ("paste", "cat", 0), ("paste", "cat", 1)]
    cat, dog = rows[:2]
    scored = {key.partition(" (")[0] for key in cat["metrics"]}
    assert {"psnr_truth", "psnr/pie_corrected", "clip_edited/pie_official"} <= scored
    assert not {"psnr_truth", "psnr/pie_official"} & dog["metrics"].keys()  # neither truth nor mask
    assert "dog has no mask" in html and "Model: " in html and html.count('<article class="item') == 2
    assert "claims-own_pictures" not in html and "python -m eval.compare --pictures" in html

    monkeypatch.setattr(track, "run_missing", lambda *any: pytest.fail("nothing is left to run"))
    assert run("--methods", "ddim+p2p")[1] == rows
    save_noise(mine / "dog.jpg", seed=1)
    refused("other pictures of dog", run, "--methods", "ddim+p2p")


def test_a_photograph_in_the_drawn_world_is_warned_of(mine):
    notice = track.notice_of("picturebook", read_list(mine))
    assert "drawn world" in notice and "cat" in notice and "dog" not in notice  # which has its 64 pixels
