import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import data
from common.runs import InputError

# one entry with the published keys, prompts and id made up
ENTRY = {
    "image_path": "1_change_object_80/1_artificial/1_animal/111000000000.jpg",
    "original_prompt": "a [round] cake with orange frosting on a [wooden] plate",
    "editing_prompt": "a [square] cake with orange frosting on a [plastic]  plate",
    "editing_instruction": "Make the cake square",
    "editing_type_id": "1",
    "blended_word": "cake cake",
    "mask": [0, 3, 1000, 512, 262140, 4],
}


def picture(path, size=(512, 512)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "green").save(path)
    return path


def pie_folder(folder, entries):
    for entry in entries.values():
        picture(folder / "annotation_images" / entry["image_path"])
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder


def naive_mask(runs, height, width, border):
    """Pixel by pixel, as section 4.2 of the notes on PIE-Bench describes it."""
    flat = [0.0] * (height * width)
    for pair in range(0, len(runs), 2):
        start, length = runs[pair], runs[pair + 1]
        for offset in range(length):
            if start + offset < height * width:
                flat[start + offset] = 1.0
    for y in range(height):
        for x in range(width):
            if y < border or x < border or y >= height - border or x >= width - border:
                flat[y * width + x] = 1.0
    return torch.tensor(flat).reshape(height, width)


# ---------------------------------------------------------------------------------------------------------- PIE-Bench


def test_published_entry(tmp_path):
    (item,) = data.read_pie_bench(pie_folder(tmp_path, {"111000000000": ENTRY}))
    assert item.id == "111000000000" and item.image_path == tmp_path / "annotation_images" / ENTRY["image_path"]
    assert item.source_prompt == "a round cake with orange frosting on a wooden plate"
    assert item.target_prompt == "a square cake with orange frosting on a plastic  plate"
    assert item.instruction == "Make the cake square" and data.EDIT_TYPES[item.edit_type] == "change object"
    assert item.blended_words == ("cake", "cake") and item.extras == {}
    assert item.mask.dtype == torch.float32
    assert torch.equal(item.mask, naive_mask(ENTRY["mask"], 512, 512, border=1))
    (bare,) = data.read_pie_bench(tmp_path, border=0)
    assert torch.equal(bare.mask, naive_mask(ENTRY["mask"], 512, 512, border=0))
    assert bare.mask.sum() == 3 + 512 + 4


def test_masks_are_not_coco_run_lengths():
    """COCO would read [2, 3] as two zeros, then three ones, down the columns."""
    assert data.decode_mask([2, 3], (3, 3)).tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert data.decode_mask([7, 2], (3, 3)).tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert data.decode_mask([], (2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("height, width", [(1, 1), (5, 9), (64, 64)])
def test_mask_round_trip(height, width):
    rng = np.random.default_rng(0)
    for density in (0, 0.1, 0.5, 1):
        mask = (rng.random((height, width)) < density).astype(np.float32)
        runs = data.encode_mask(mask)
        assert runs == data.encode_mask(torch.from_numpy(mask)) and all(type(n) is int for n in runs)
        assert np.array_equal(naive_mask(runs, height, width, 0), mask)
        assert np.array_equal(data.decode_mask(runs, (height, width)), mask)
        assert len(runs) == 2 * int(np.sum(np.diff(mask.reshape(-1), prepend=0) > 0))


def test_blended_words(tmp_path):
    words = {"": None, " ": None, "cat dog": ("cat", "dog"), "cat  dog": ("cat", "dog"), "a red cat": ("a", "red")}
    folder = pie_folder(tmp_path, {str(n): ENTRY | {"blended_word": text} for n, text in enumerate(words)})
    assert [item.blended_words for item in data.read_pie_bench(folder)] == list(words.values())


def test_selection_keeps_the_order_of_the_file(tmp_path):
    kinds = {"5": "1", "3": "0", "4": "1", "1": 9}
    folder = pie_folder(tmp_path, {key: ENTRY | {"editing_type_id": kind} for key, kind in kinds.items()})
    assert [item.id for item in data.read_pie_bench(folder)] == ["5", "3", "4", "1"]
    assert [item.id for item in data.read_pie_bench(folder, edit_types=["1", "9"])] == ["5", "4", "1"]
    assert [item.id for item in data.read_pie_bench(folder, edit_types=[1], limit=1)] == ["5"]
    assert [item.id for item in data.read_pie_bench(folder, limit=3)] == ["5", "3", "1"]  # one of each type
    for wrong in (["10"], ["2"]):
        with pytest.raises(InputError, match=wrong[0]):
            data.read_pie_bench(folder, edit_types=wrong)


def test_a_few_items_are_taken_from_every_kind_in_turn():
    kinds = "aaabbc"
    for limit, taken in {1: "0", 2: "03", 4: "0135", 5: "01345", 6: "012345", 99: "012345", None: "012345"}.items():
        assert "".join(map(str, data.of_each_kind(range(6), lambda i: kinds[i], limit))) == taken


def test_own_folder_round_trip(tmp_path):
    mask = torch.zeros(64, 48)
    mask[10:20, 5:30] = 1
    first, second = tmp_path / "first", tmp_path / "second"
    items = [
        data.EditItem(
            id=name,
            image_path=picture(first / "annotation_images" / "sub" / f"{name}.png", (48, 64)),
            source_prompt="a red cat",
            target_prompt="a blue cat — naïve",
            instruction="",
            edit_type="6",
            blended_words=words,
            mask_runs=tuple(data.encode_mask(mask)),
            mask_size=(64, 48),
            extras={"truth_path": "truth/0.png", "source_scene": {"things": [{"x": 0.5}]}},
        )
        for name, words in (("a", ("cat", "cat")), ("b", None))
    ]
    data.write_pie_bench(first, items)
    assert data.read_pie_bench(first, border=0) == items
    stored = json.loads((first / "mapping_file.json").read_text())["a"]
    assert stored["picture_size"] == [64, 48] and stored["image_path"] == "sub/a.png"
    bordered = data.read_pie_bench(first)[0]
    assert torch.equal(bordered.mask, naive_mask(bordered.mask_runs, 64, 48, border=1))
    data.write_pie_bench(second, data.read_pie_bench(first))  # pictures come along, the border does not stick
    copied = data.read_pie_bench(second, border=0)
    assert [item.mask_runs for item in copied] == [item.mask_runs for item in items]
    assert copied[1].image_path == second / "annotation_images" / "b.png"
    assert copied[1].image_path.read_bytes() == items[1].image_path.read_bytes()


HOSTILE = {
    "path leaves the folder": {"image_path": "../../../etc/passwd"},
    "absolute path": {"image_path": "/etc/passwd"},
    "missing picture": {"image_path": "none.jpg"},
    "picture is a folder": {"image_path": "1_change_object_80"},
    "zero byte in path": {"image_path": "a\0b.jpg"},
    "path is a number": {"image_path": 7},
    "extra path leaves the folder": {"truth_path": "../secret.png"},
    "extra path is a list": {"exemplar_path": []},
    "negative length": {"mask": [5, -1]},
    "negative start": {"mask": [-5, 10]},
    "odd count": {"mask": [1, 2, 3]},
    "fractions": {"mask": [1.0, 2.0]},
    "booleans": {"mask": [True, True]},
    "coco": {"mask": {"counts": "abc", "size": [512, 512]}},
    "no mask": {"mask": None},
    "prompt is null": {"original_prompt": None},
    "prompt is a list": {"editing_prompt": ["a"]},
    "unknown type": {"editing_type_id": "10"},
    "type is a list": {"editing_type_id": ["1"]},
    "one blended word": {"blended_word": "cat"},
    "negative size": {"picture_size": [-1, 5]},
    "empty size": {"picture_size": []},
    "huge size": {"picture_size": [10**9, 10**9]},
    "size is text": {"picture_size": "64"},
    "half a character": {"editing_prompt": "a \ud800"},
    "picture is cut": {"image_path": "cut.jpg"},
}


def test_hostile_entries_are_refused_and_named(tmp_path):
    pie_folder(tmp_path, {"good": ENTRY, "bad": ENTRY})
    (tmp_path / "annotation_images" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    lacking = {key: {k: v for k, v in ENTRY.items() if k != key}
               for key in ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask")}  # fmt: skip
    for why, entry in ({why: ENTRY | change for why, change in HOSTILE.items()} | lacking).items():
        (tmp_path / "mapping_file.json").write_text(json.dumps({"good": ENTRY, "bad": entry}))
        with pytest.raises(InputError, match=f"'bad'.*{why if why in lacking else ''}") as error:
            data.read_pie_bench(tmp_path)
        assert "\n" not in str(error.value), why


@pytest.mark.parametrize("runs", [[262143, 2], [10**30, 5], [0, 10**30], [512 * 512, 1]])
def test_runs_that_pass_the_end_are_refused(tmp_path, runs):
    with pytest.raises(InputError, match="entry '0': the mask has a run that passes the end of 512x512"):
        data.read_pie_bench(pie_folder(tmp_path, {"0": ENTRY | {"mask": runs}}))
    with pytest.raises(InputError, match="passes the end"):
        data.decode_mask(runs)


@pytest.mark.parametrize(
    "size, told", [((1024, 1024), None), ((64, 512), None), ((512, 512), [64, 64]), ((64, 32), [64, 32])]
)
def test_mask_and_picture_agree_in_size(tmp_path, size, told):
    """Sizes are written as width, height for pictures and height, width for masks."""
    folder = pie_folder(tmp_path, {"0": ENTRY | {"mask": [0, 4]} | ({"picture_size": told} if told else {})})
    picture(folder / "annotation_images" / ENTRY["image_path"], size)
    with pytest.raises(InputError, match="one size"):
        data.read_pie_bench(folder)
    right = {"0": ENTRY | {"mask": [0, 4], "picture_size": [size[1], size[0]]}}
    (folder / "mapping_file.json").write_text(json.dumps(right))
    assert data.read_pie_bench(folder)[0].mask.shape == (size[1], size[0])


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '"text"', '{"0": []}', '{"../0": {}}', '{"": {}}',
                                  '{"a|b": {}}'])  # fmt: skip
def test_hostile_mapping_files_are_refused(tmp_path, text):
    (tmp_path / "mapping_file.json").write_text(text)
    with pytest.raises(InputError):
        data.read_pie_bench(tmp_path)


def test_an_entry_is_not_lost_to_another_of_its_name(tmp_path):
    pie_folder(tmp_path, {"0": ENTRY})
    entry = json.dumps(ENTRY)
    (tmp_path / "mapping_file.json").write_text(f'{{"0": {entry}, "1": {entry}, "0": {entry}}}')
    with pytest.raises(InputError, match="mapping_file.json.*'0' stands in it twice"):
        data.read_pie_bench(tmp_path)


@pytest.mark.parametrize("read", [data.read_pie_bench, data.read_subjects, data.read_subject_prompts])
def test_missing_folders_are_refused(tmp_path, read):
    with pytest.raises(InputError, match="none"):
        read(tmp_path / "none")


# ----------------------------------------------------------------------------------------------------------- subjects

# the layout of the published file: a CSV block and two Python lists of format calls
SUBJECT_FILE = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a cube shaped {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
"a {0} {1} in a firefighter's outfit".format(unique_token, class_token)
]
"""


@pytest.fixture
def subject_folder(tmp_path):
    for name in ("backpack", "bear_plushie", "cat2"):
        for number in (3, 0, 1):
            picture(tmp_path / name / f"{number:02d}.jpg")
    (tmp_path / "prompts_and_classes.txt").write_text(SUBJECT_FILE)
    (tmp_path / "references_and_licenses.txt").write_text("subject_name,source")
    return tmp_path


@pytest.mark.parametrize("as_saved_by", ["git", "windows", "notepad"])
def test_published_subject_folder(subject_folder, as_saved_by):
    text = SUBJECT_FILE if as_saved_by == "git" else SUBJECT_FILE.replace("\n", "\r\n")
    (subject_folder / "prompts_and_classes.txt").write_bytes(
        text.encode("utf-8-sig" if as_saved_by == "notepad" else "utf-8")
    )
    subjects = data.read_subjects(subject_folder)
    assert [(s.name, s.class_name, s.live) for s in subjects] == [
        ("backpack", "backpack", False),
        ("bear_plushie", "stuffed animal", False),
        ("cat2", "cat", True),
    ]
    assert [path.name for path in subjects[0].paths] == ["00.jpg", "01.jpg", "03.jpg"]
    assert data.read_subject_prompts(subject_folder) == {
        "object": ["a {0} {1} in the jungle", "a cube shaped {0} {1}"],
        "live": ["a {0} {1} wearing a red hat", "a {0} {1} in a firefighter's outfit"],
    }


def test_fill_prompt():
    assert data.fill_prompt("a red {0} {1} in snow", "sks", "stuffed animal") == "a red sks stuffed animal in snow"
    assert data.fill_prompt("a red {0} {1}", "", "dog") == "a red dog"
    assert data.fill_prompt("a {0.__class__} {1:>999999999}", "sks", "dog") == "a {0.__class__} {1:>999999999}"


def test_pictures_of_subjects_that_are_not_needed_may_be_missing(subject_folder):
    first, *others = data.read_subjects(subject_folder)
    shutil.rmtree(subject_folder / others[0].name)
    found = data.read_subjects(subject_folder, needed=[first.name])
    assert [one.name for one in found] == [first.name, *(one.name for one in others)]
    assert found[0] == first and found[1].paths == () and found[1].class_name == others[0].class_name
    for needed in (None, [others[0].name], ["nobody"]):
        with pytest.raises(InputError):
            data.read_subjects(subject_folder, needed=needed)


def test_part_of_the_subjects(subject_folder):
    shutil.rmtree(subject_folder / "backpack")
    (cat,) = data.read_subjects(subject_folder, names=["cat2", "cat2"])
    assert cat.class_name == "cat"
    cat.paths[-1].write_bytes(cat.paths[-1].read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as a picture"):
        data.read_subjects(subject_folder, names=["cat2"])
    with pytest.raises(InputError, match="cat3.*backpack, bear_plushie, cat2"):
        data.read_subjects(subject_folder, names=["cat3"])


@pytest.mark.parametrize("usual", [True, False])
def test_subjects_round_trip(subject_folder, tmp_path, usual):
    subjects = data.read_subjects(subject_folder)
    if not usual:
        subjects[1] = data.Subject("bear_plushie", "bear", True, subjects[1].paths)
    prompts = data.read_subject_prompts(subject_folder)
    prompts["object"].append("""a {0} {1} "in" a child's\\room""")
    copy = tmp_path / "copy"
    data.write_subjects(copy, subjects, prompts)
    again = data.read_subjects(copy)
    assert [(s.name, s.class_name, s.live) for s in again] == [(s.name, s.class_name, s.live) for s in subjects]
    assert [path.name for path in again[2].paths] == ["00.jpg", "01.jpg", "02.jpg"]
    assert data.read_subject_prompts(copy) == prompts
    assert ("subject_name,class,live" in (copy / "prompts_and_classes.txt").read_text()) != usual
    before = sorted(copy.rglob("*"))
    data.write_subjects(copy, again, prompts)
    assert data.read_subjects(copy) == again and sorted(copy.rglob("*")) == before


@pytest.mark.parametrize("old, new", [
    ("cat2,cat", "cat2"), ("cat2,cat", "../cat2,cat"), ("cat2,cat", "/etc,cat"), ("cat2,cat", "cat2,cat,maybe"),
    ("subject_name,class", "names"), ("'a cube shaped {0} {1}'", "'a cube\\x shaped {0} {1}'"),
    ("'a cube shaped {0} {1}'", "'a' + __import__('os').name + 'b'"),
    ("'a cube shaped {0} {1}'", "'a cube \\ud800 {0} {1}'"), ("a cube shaped {0} {1}", "a cube shaped {1}"),
    (SUBJECT_FILE.partition("Live Subject Prompts")[2], ""),
])  # fmt: skip
def test_damaged_subject_files_are_refused(subject_folder, old, new):
    (subject_folder / "prompts_and_classes.txt").write_text(SUBJECT_FILE.replace(old, new))
    with pytest.raises(InputError, match="prompts_and_classes.txt"):
        data.read_subjects(subject_folder)
        data.read_subject_prompts(subject_folder)


def test_relative_folders_work(tmp_path, monkeypatch):
    pie_folder(tmp_path / "pie", {"0": ENTRY})
    monkeypatch.chdir(tmp_path)
    (item,) = data.read_pie_bench("pie")
    data.write_pie_bench("pie", [item])
    assert data.read_pie_bench("pie") == [item] and item.image_path.is_relative_to(Path("pie"))
