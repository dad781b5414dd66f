"""Pairs from a folder, from the picturebook, and the paper's protocol over a folder of pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from pixels import edit_map
from pixels.reproduction.pairs import build_pairs, draw_maps, read_pairs
from tests.refusing import refuses


def save(path, value=100, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def test_the_protocol_is_seeded_and_uses_each_picture_once_while_they_last(tmp_path):
    for number in range(10):
        save(tmp_path / "val" / f"class{number % 3}" / f"{number}.JPEG".lower(), number)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert build_pairs(tmp_path / "val", tmp_path / name, 5, seed, save(tmp_path / "maps" / "m.png").parent) == 5
    texts = [(tmp_path / name / "pairs.json").read_text() for name in ("one", "two", "three")]
    assert texts[0] == texts[1] != texts[2]
    pairs = read_pairs(tmp_path / "one")
    used = [path for pair in pairs for path in (pair.source, *pair.exemplars)]
    assert len(set(used)) == 10 and len({pair.id for pair in pairs}) == 5
    assert build_pairs(tmp_path / "val", tmp_path / "more", 12, 0) == 12
    assert len(list((tmp_path / "more" / "maps").glob("*.png"))) == 60
    assert len(read_pairs(tmp_path / "more", limit=4)) == 4
    refuses("at least two make a pair", build_pairs, save(tmp_path / "lonely" / "a.png").parent, tmp_path / "x")


def test_maps_of_the_database_have_black_grey_and_white(tmp_path):
    places, again = (draw_maps(tmp_path / name, count=12) for name in ("one", "two"))
    assert [path.read_bytes() for path in places] == [path.read_bytes() for path in again]
    maps = [edit_map.read(path) for path in places]
    assert all((m == 0).any() and (m == 1).float().mean() < 0.98 for m in maps)
    assert sum(((m > 0) & (m < 1)).any().item() for m in maps) == 12
    assert len({m.mean().item() for m in maps}) == 12


def test_pairs_by_the_names_of_their_files(tmp_path):
    for kind in ("source", "exemplar", "map"):
        save(tmp_path / f"{kind}_beach_2.png"), save(tmp_path / f"{kind}_1.jpg")
    save(tmp_path / "other_1.png"), save(tmp_path / "preview.png")
    first, second = read_pairs(tmp_path, white="edit")
    assert (first.id, second.id, first.white) == ("1", "beach_2", "edit")
    assert second.edit_maps == (tmp_path / "map_beach_2.png",) and first.source == tmp_path / "source_1.jpg"
    (tmp_path / "map_1.jpg").unlink()
    refuses(r"map_1\.\* is missing$", read_pairs, tmp_path)
    np.save(tmp_path / "Map_1.npy", np.zeros((8, 8)))
    assert read_pairs(tmp_path)[0].edit_maps == (tmp_path / "Map_1.npy",)
    for name in ("Source_Sea", "EXEMPLAR_Sea", "map_sea"):
        save(tmp_path / f"{name}.png")
    refuses(r"map_Sea\.\* is missing \(map_sea.png is spelt otherwise\)", read_pairs, tmp_path)
    save(tmp_path / "Map_Sea.png"), (tmp_path / "map_sea.png").unlink()
    assert read_pairs(tmp_path)[1].source == tmp_path / "Source_Sea.png"


def test_a_pair_is_known_by_all_that_its_scores_depend_on(tmp_path):
    for name in ("s", "e", "m"):
        save(tmp_path / f"{name}.png")
    (tmp_path / "pairs.json").write_text(json.dumps([GOOD, GOOD | {"name": "b"}, GOOD | {"name": "c", "prompt": "a"}]))
    one, same, other = read_pairs(tmp_path)
    before = one.digest
    assert before == same.digest != other.digest
    for name in ("s", "e", "m"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
        assert one.digest != before
        before = one.digest


def test_the_protocol_replaces_no_other_pairs(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "own" / f"{name}.png")
    assert build_pairs(tmp_path / "own", tmp_path, 1) == build_pairs(tmp_path / "own", tmp_path, 1) == 1
    (tmp_path / "pairs.json").write_text("[]")
    refuses("holds other pairs", build_pairs, tmp_path / "own", tmp_path, 1)


GOOD = {"name": "a", "source": "s.png", "exemplars": ["e.png"], "edit_maps": ["m.png"]}


@pytest.mark.parametrize("entries, message", [
    ({}, "list of objects"),
    ([], "list of objects"),
    ([{"name": "a"}], "are needed"),
    ([3], "are needed"),
    ([GOOD | {"source": "missing.png"}], "which is missing"),
    ([GOOD | {"exemplars": []}], "each exemplar needs a map"),
    ([GOOD | {"exemplars": "e.png"}], "the lists exemplars and edit_maps are needed"),
    ([GOOD | {"any_map": "false"}], "true or false is needed"),
    ([GOOD | {"edit_maps": ["m.png", "m.png"]}], "each exemplar needs a map"),
    ([GOOD | {"name": "../a"}], "cannot hold"),
    ([GOOD | {"name": ".."}], "a plain file name"),
    ([GOOD, GOOD], "two entries of one name"),
    ([GOOD | {"prompt": "a \ud800"}], "not all text"),
])  # fmt: skip
def test_damaged_lists_are_refused(tmp_path, entries, message):
    for name in ("s", "e", "m"):
        save(tmp_path / f"{name}.png")
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    refuses(message, read_pairs, tmp_path)
