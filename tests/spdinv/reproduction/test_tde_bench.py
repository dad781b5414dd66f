"""TDE-Bench from a small folder in COCO's format: prompts, words, masks, shares, determinism, wrong input."""

import random
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from common.data import read_pie_bench
from common.files import write_json
from spdinv.reproduction import tde_bench
from spdinv.reproduction.tde_rules import PLACES, RULES, STYLES, find_things, plain_words
from tests.small_data import write_noise

NAMES = {"person": [], "animal": ["cat", "dog", "zebra"], "vehicle": ["car", "truck"], "indoor": ["teddy bear", "vase"]}
LISTED = [("person", "person"), *((name, kind) for kind, names in NAMES.items() for name in names)]
CATEGORIES = [
    {"id": number, "name": name, "supercategory": kind} for number, (name, kind) in enumerate(LISTED, start=1)
]
CAPTIONS = [
    ("A white cat sitting on the grass.", "cat"), ("A dog, with a car near a road", "dog"),
    ("An orange truck in a field", "truck"), ("A man standing and a zebra in the snow.", "zebra"),
    ("A teddy bear on a chair in a living room", "teddy bear"), ("a picture of a vase", "vase"),
]  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """36 pictures, 60 x 40; the named thing is a rectangle in the middle, and half of them have a crowd on the left."""
    folder, images, outlines, captions = tmp_path_factory.mktemp("coco"), [], [], []
    by_name = {category["name"]: category["id"] for category in CATEGORIES}
    for number, path in enumerate(write_noise(folder / "val2017", [(60, 40)] * 36)):
        caption, name = CAPTIONS[number % 6]
        file, x, image = f"{number:012d}.jpg", 20 + number % 7, 100 + number
        Image.open(path).save(folder / "val2017" / file)
        path.unlink()
        images.append({"id": image, "file_name": file, "height": 40, "width": 60})
        box = [x, 10, x + 14, 10, x + 14, 29, x, 29]
        one = {"image_id": image, "category_id": by_name[name], "iscrowd": 0, "segmentation": [box]}
        outlines.append(one | {"id": number})
        if number % 2:  # run lengths go down the columns: 10 columns of 40 are skipped, 5 are filled
            crowd = {"counts": [400, 200, 1800], "size": [40, 60]}
            who = by_name["person"] if number % 6 == 3 else by_name["car"]
            outlines.append(one | {"id": image, "category_id": who, "iscrowd": 1, "segmentation": crowd})
        captions += [{"id": 2 * number + later, "image_id": image, "caption": text}
                     for later, text in ((1, "A photo of nothing"), (0, caption))]  # fmt: skip
    instances = {"images": images, "annotations": outlines, "categories": CATEGORIES}
    write_json(folder / "annotations" / "instances_val2017.json", instances)
    write_json(folder / "annotations" / "captions_val2017.json", {"annotations": captions})
    return folder


def build(coco, output, *flags):
    tde_bench.main(["--coco_dir", str(coco), "--output_dir", str(output), "--resolution", "40", *flags])
    return output


def test_every_item_is_one_change_of_a_caption_with_a_mask(coco, tmp_path, capsys):
    items = read_pie_bench(build(coco, tmp_path / "bench", "--count", "28"), border=0)
    made = Counter(item.edit_type for item in items)
    assert set(made) <= set(RULES) and len(made) >= 7 and max(made.values()) <= 4
    assert f"{len(items)} of 28 items" in capsys.readouterr().out
    for item in items:
        number = int(item.extras["coco_file"][:-4])
        assert item.id == f"{item.edit_type}{100 + number:011d}" and item.mask_size == (40, 40)
        caption, name = CAPTIONS[number % 6]
        assert item.source_prompt == caption.lower().replace(",", "").rstrip(".") != item.target_prompt
        if item.blended_words:
            assert item.blended_words[0] in item.source_prompt.split()
            assert item.blended_words[1] in item.target_prompt.split()
        # the picture's central 40 columns, untouched
        picture = Image.open(coco / "val2017" / item.extras["coco_file"]).convert("RGB").crop((10, 0, 50, 40))
        assert np.array_equal(np.asarray(Image.open(item.image_path)), np.asarray(picture))
        # outlines by hand: the rectangle, its edges included, and the crowd, which starts where the crop does
        thing, crowd = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
        thing[10:30, number % 7 + 10 : number % 7 + 25] = True
        crowd[:, :5] = number % 2 == 1
        expected = {"9": np.ones((40, 40), bool), "8": ~(thing | crowd), "2": ~(thing | crowd)}
        allowed = [expected[item.edit_type]] if item.edit_type in expected else [thing, crowd]
        assert any(np.array_equal(item.mask.numpy() == 1, mask) for mask in allowed), item.id


def test_the_same_seed_gives_the_same_bytes(coco, tmp_path):
    contents = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        folder = build(coco, tmp_path / name, "--count", "12", "--seed", seed)
        contents.append({p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert contents[0] == contents[1] != contents[2]


def changed(kind, caption, *names):
    words = plain_words(caption)
    things = find_things(words, [category for category in CATEGORIES if category["name"] in names])
    change = RULES[kind](words, things, NAMES, random.Random(0))
    return change and (" ".join(change.target), change.blended_words)


@pytest.mark.parametrize("kind, caption, names, allowed", [
    ("1", "A cat on a mat.", ["cat"], {("a dog on a mat", ("cat", "dog")), ("a zebra on a mat", ("cat", "zebra"))}),
    ("1", "A vase", ["vase"], {("a teddy bear", ("vase", "bear"))}),
    ("1", "A man on a mat", ["person"], {None}),  # there is no other category of people
    ("2", "An old car in a field", ["car"], {("an old car and a truck in a field", ("car", "truck"))}),
    ("3", "A dog with a red vase on grass", ["dog", "vase"], {("a dog on grass", ("vase", "dog"))}),
    ("3", "A dog with a red vase", ["vase"], {None}),  # nothing that is outlined would remain
    ("4", "A car", ["car"], {("a rusty car", ("car", "car")), ("a muddy car", ("car", "car"))}),
    ("5", "A man is sitting here", ["person"], {("a man is standing here", ("man", "man"))}),
    ("5", "A car is sitting here", ["car"], {None}),
    ("7", "A vase", ["vase"], {(f"{a} vase", ("vase", "vase")) for a in ("a wooden", "a golden", "a glass", "a stone",
                                                                         "a paper", "a knitted")}),
    ("8", "A cat in a big room", ["cat"], {(f"a cat {p}", None) for name, p in PLACES.items() if name != "room"}),
    ("8", "In a room a cat", ["cat"], {None}),
    ("9", "A cat", ["cat"], {(f"{style} a cat", None) for style in STYLES}),
    ("9", "A painting of a cat", ["cat"], {None}),
])  # fmt: skip
def test_rules(kind, caption, names, allowed):
    assert changed(kind, caption, *names) in allowed


def test_a_colour_is_exchanged_or_put_in_with_its_article():
    target, words = changed("6", "An orange truck", "truck")
    assert target.split()[1:] != ["orange", "truck"] and len(target.split()) == 3 and words == ("truck", "truck")
    for seed in range(30):
        words = plain_words("A cat and a vase")
        change = RULES["6"](words, find_things(words, CATEGORIES), NAMES, random.Random(seed))
        article, color, *rest = change.target
        assert article == ("an" if color == "orange" else "a") and rest == ["cat", "and", "a", "vase"]


@pytest.mark.parametrize("count", [1, 9, 28, 100, 560])
def test_shares_are_those_of_pie_bench(count):
    given = tde_bench.quotas(count)
    assert sum(given.values()) == count
    assert all(abs(given[kind] - count * share / 560) < 1 for kind, share in tde_bench.SHARES.items())


def not_coco(folder):
    (folder / "annotations" / "instances_val2017.json").write_text('{"images": []}')


def spoil_all(folder):
    for path in (folder / "val2017").iterdir():
        path.write_bytes(b"")


@pytest.mark.parametrize("spoil, flags, words", [
    (None, ["--split", "train2017"], "instances_train2017.json"), (not_coco, [], "not COCO's annotations"),
    (lambda folder: next((folder / "val2017").iterdir()).unlink(), [], "lacks 1 pictures"),
    (spoil_all, [], "cannot be read as a picture"),
])  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_nothing(coco, tmp_path, refused, spoil, flags, words):
    folder = shutil.copytree(coco, tmp_path / "coco")
    if spoil:
        spoil(folder)
    refused(words, build, folder, tmp_path / "out", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]
    notes = folder / "notes.txt"  # a folder with something in it is left alone
    notes.write_text("mine")
    refused("not empty", build, coco, folder)
    assert notes.read_text() == "mine"
