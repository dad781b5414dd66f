import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import data
from common.runs import InputError
from tests.refusing import refuses

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
    for runs, rows in (([2, 3], [[0, 0, 1], [1, 1, 0], [0, 0, 0]]), ([7, 2], [[0] * 3, [0] * 3, [0, 1, 1]]),
                       ([], [[0] * 3] * 3)):  # fmt: skip
        assert data.decode_mask(runs, (3, 3)).tolist() == rows


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


def test_words_and_selection_keep_the_order_of_the_file(tmp_path):
    words = {"": None, " ": None, "cat dog": ("cat", "dog"), "cat  dog": ("cat", "dog"), "a red cat": ("a", "red")}
    folder = pie_folder(tmp_path, {str(n): ENTRY | {"blended_word": text} for n, text in enumerate(words)})
    assert [item.blended_words for item in data.read_pie_bench(folder)] == list(words.values())
    kinds = {"5": "1", "3": "0", "4": "1", "1": 9}
    pie_folder(tmp_path, {key: ENTRY | {"editing_type_id": kind} for key, kind in kinds.items()})
    for chosen, found in (({}, "5341"), ({"edit_types": ["1", "9"]}, "541"), ({"edit_types": [1], "limit": 1}, "5"),
                          ({"limit": 3}, "531")):  # fmt: skip
        assert "".join(item.id for item in data.read_pie_bench(folder, **chosen)) == found  # the last: one of each type
    for wrong in (["10"], ["2"]):
        refuses(wrong[0], data.read_pie_bench, folder, edit_types=wrong)


def test_a_few_items_are_taken_from_every_kind_in_turn():
    kinds = "aaabbc"
    for limit, taken in {1: "0", 2: "03", 4: "0135", 5: "01345", 6: "012345", 99: "012345", None: "012345"}.items():
        assert "".join(map(str, data.of_each_kind(range(6), lambda i: kinds[i], limit))) == taken


def test_own_folder_round_trip(tmp_path, monkeypatch):
    mask = torch.zeros(64, 48)
    mask[10:20, 5:30] = 1
    first, second = tmp_path / "first", tmp_path / "second"
    extras = {"truth_path": "truth/0.png", "source_scene": {"things": [{"x": 0.5}]}}
    items = [
        data.EditItem(name, picture(first / "annotation_images" / "sub" / f"{name}.png", (48, 64)), "a red cat",
                      "a blue cat — naïve", "", "6", words, tuple(data.encode_mask(mask)), (64, 48), extras=extras)
        for name, words in (("a", ("cat", "cat")), ("b", None))
    ]  # fmt: skip
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
    monkeypatch.chdir(tmp_path)
    relative = data.read_pie_bench("second")
    data.write_pie_bench("second", relative)
    assert data.read_pie_bench("second") == relative and relative[0].image_path.is_relative_to(Path("second"))


HOSTILE = {  # what a published key may not hold
    "image_path": ["../../../etc/passwd", "/etc/passwd", "none.jpg", "1_change_object_80", "a\0b.jpg", 7, "cut.jpg"],
    "truth_path": ["../secret.png"], "exemplar_path": [[]],
    "mask": [[5, -1], [-5, 10], [1, 2, 3], [1.0, 2.0], [True, True], {"counts": "abc", "size": [512, 512]}, None],
    "original_prompt": [None], "editing_prompt": [["a"], "a \ud800"], "editing_type_id": ["10", ["1"]],
    "blended_word": ["cat"], "picture_size": [[-1, 5], [], [10**9, 10**9], "64"],
}  # fmt: skip


def test_hostile_entries_are_refused_and_named(tmp_path):
    pie_folder(tmp_path, {"good": ENTRY, "bad": ENTRY})
    (tmp_path / "annotation_images" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    hostile = [(key, ENTRY | {key: value}) for key, values in HOSTILE.items() for value in values]
    for key in ("image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask"):
        hostile.append((key, {name: value for name, value in ENTRY.items() if name != key}))
    for key, entry in hostile:
        (tmp_path / "mapping_file.json").write_text(json.dumps({"good": ENTRY, "bad": entry}))
        refuses(f"'bad'.*{'' if key in entry else key}", data.read_pie_bench, tmp_path)


@pytest.mark.parametrize("runs", [[262143, 2], [10**30, 5], [0, 10**30], [512 * 512, 1]])
def test_runs_that_pass_the_end_are_refused(tmp_path, runs):
    folder = pie_folder(tmp_path, {"0": ENTRY | {"mask": runs}})
    refuses("entry '0': the mask has a run that passes the end of 512x512", data.read_pie_bench, folder)
    refuses("passes the end", data.decode_mask, runs)


@pytest.mark.parametrize(
    "size, told", [((1024, 1024), None), ((64, 512), None), ((512, 512), [64, 64]), ((64, 32), [64, 32])]
)
def test_mask_and_picture_agree_in_size(tmp_path, size, told):
    """Sizes are written as width, height for pictures and height, width for masks."""
    folder = pie_folder(tmp_path, {"0": ENTRY | {"mask": [0, 4]} | ({"picture_size": told} if told else {})})
    picture(folder / "annotation_images" / ENTRY["image_path"], size)
    refuses("one size", data.read_pie_bench, folder)
    right = {"0": ENTRY | {"mask": [0, 4], "picture_size": [size[1], size[0]]}}
    (folder / "mapping_file.json").write_text(json.dumps(right))
    assert data.read_pie_bench(folder)[0].mask.shape == (size[1], size[0])


TWICE = f'{{"0": {json.dumps(ENTRY)}, "1": {json.dumps(ENTRY)}, "0": {json.dumps(ENTRY)}}}'


def test_hostile_mapping_files_and_missing_folders_are_refused(tmp_path):
    pie_folder(tmp_path, {"0": ENTRY})
    hostile = ("", "not json", "[]", "{}", '"text"', '{"0": []}', '{"../0": {}}', '{"": {}}', '{"a|b": {}}')
    for text, said in ((TWICE, "mapping_file.json.*'0' stands in it twice"), *((text, "map") for text in hostile)):
        (tmp_path / "mapping_file.json").write_text(text)
        refuses(said, data.read_pie_bench, tmp_path)
    for read in (data.read_pie_bench, data.read_subjects, data.read_subject_prompts):
        refuses("none", read, tmp_path / "none")


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
    encoded = text.encode("utf-8-sig" if as_saved_by == "notepad" else "utf-8")
    (subject_folder / "prompts_and_classes.txt").write_bytes(encoded)
    subjects = data.read_subjects(subject_folder)
    assert [(s.name, s.class_name, s.live) for s in subjects] == [
        ("backpack", "backpack", False), ("bear_plushie", "stuffed animal", False), ("cat2", "cat", True)]  # fmt: skip
    assert [path.name for path in subjects[0].paths] == ["00.jpg", "01.jpg", "03.jpg"]
    assert data.read_subject_prompts(subject_folder) == {
        "object": ["a {0} {1} in the jungle", "a cube shaped {0} {1}"],
        "live": ["a {0} {1} wearing a red hat", "a {0} {1} in a firefighter's outfit"],
    }
    (subject_folder / "prompts_and_classes.txt").write_text(text.replace("cat2,cat", "cat2,Cat"))
    assert data.read_subjects(subject_folder)[2].live


def test_fill_prompt():
    assert data.fill_prompt("a red {0} {1} in snow", "sks", "stuffed animal") == "a red sks stuffed animal in snow"
    assert data.fill_prompt("a red {0} {1}", "", "dog") == "a red dog"
    assert data.fill_prompt("a {0.__class__} {1:>999999999}", "sks", "dog") == "a {0.__class__} {1:>999999999}"


def test_part_of_the_subjects_and_pictures_of_the_others_that_are_missing(subject_folder):
    whole = data.read_subjects(subject_folder)
    shutil.rmtree(subject_folder / "backpack")
    (cat,) = data.read_subjects(subject_folder, names=["cat2", "cat2"])
    found = data.read_subjects(subject_folder, needed=["cat2"])
    assert [(s.name, s.class_name) for s in found] == [(s.name, s.class_name) for s in whole]
    assert cat == found[2] == whole[2] and found[0].paths == ()
    for needed in (None, ["backpack"], ["nobody"]):
        refuses("", data.read_subjects, subject_folder, needed=needed)
    cat.paths[-1].write_bytes(cat.paths[-1].read_bytes()[:200])
    for name, said in (("cat2", "cannot be read as a picture"), ("cat3", "cat3.*backpack, bear_plushie, cat2")):
        refuses(said, data.read_subjects, subject_folder, names=[name])


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
    (SUBJECT_FILE.partition("Live Subject Prompts")[2], ""), ("cat2,cat", "backpack,cat"),
    ("'a cube shaped {0} {1}'", "f'a cube shaped {0} {1}'"), ("'a cube shaped", "'a cube '\n'shaped"),
])  # fmt: skip
def test_damaged_subject_files_are_refused(subject_folder, old, new):
    (subject_folder / "prompts_and_classes.txt").write_text(SUBJECT_FILE.replace(old, new))
    with pytest.raises(InputError, match="prompts_and_classes.txt"):
        data.read_subjects(subject_folder)
        data.read_subject_prompts(subject_folder)
