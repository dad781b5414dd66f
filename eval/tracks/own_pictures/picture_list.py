"""Pictures of your own, read from a list, as a PIE-Bench folder.

A list is a .jsonl (an object a line), a .csv (a header line) or a .toml ([[picture]] tables), or a folder that holds
such a file as prompts.jsonl, prompts.csv or prompts.toml beside its pictures. Paths are relative to the list. Keys:

    picture         the file; needed
    source_prompt   what it shows; needed by methods that are told words
    target_prompt   what it should show
    mask            a file, white where the picture may change; without it all of it may
    words           the word of the source prompt and the word of the target prompt that change, "cat dog"
    exemplar        a picture to take from, edit_map: a grey file, white where to take (for methods of exemplars)
    truth           the true edit, where there is one
    name            of the item; by default that of the file
"""

import csv
import io
import tomllib
from pathlib import Path
from typing import Any

from common.files import atomic_path, check_file_name, parse_json, read_text
from common.flags import check_prompt
from common.runs import InputError

KEYS = ("picture", "source_prompt", "target_prompt", "mask", "words", "exemplar", "edit_map", "truth", "name")
FILES = ("picture", "mask", "exemplar", "edit_map", "truth")
LISTS = (".jsonl", ".csv", ".toml")
Entry = dict[str, Any]


def read_list(path: str | Path) -> list[Entry]:
    """The entries of a list, their files as paths that are there. InputError names the entry that is wrong."""
    path, entries = find_list(Path(path)), {}
    for number, entry in enumerate(parse_list(path), start=1):
        try:
            entry = check_entry(entry, path.parent)
            if entry["name"] in entries:
                raise InputError(f'a second picture is called {entry["name"]}; give one of them another "name"')
        except InputError as problem:
            raise InputError(f"{path}, entry {number}: {problem}") from None
        entries[entry["name"]] = entry
    if not entries:
        raise InputError(f"{path} lists no picture")
    return list(entries.values())


def find_list(path: Path) -> Path:
    """The list itself; in a folder of pictures the file called prompts."""
    if path.is_dir():
        found = [path / f"prompts{suffix}" for suffix in LISTS if (path / f"prompts{suffix}").is_file()]
        if not found:
            raise InputError(f"{path} holds no list of prompts; put prompts.jsonl, .csv or .toml beside its pictures")
        return found[0]
    if not path.is_file():
        raise InputError(f"there is no list of pictures {path}")
    if path.suffix.lower() not in LISTS:
        raise InputError(f"{path} is no list of pictures; give a {', '.join(LISTS)} file, or a folder with one")
    return path


def parse_list(path: Path) -> list[Any]:
    """What the file says, entry by entry, unchecked."""
    text = read_text(path)
    try:
        if path.suffix.lower() == ".jsonl":
            return [parse_line(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        if path.suffix.lower() == ".toml":
            found = tomllib.loads(text)
            if list(found) != ["picture"] or not isinstance(found["picture"], list):
                raise ValueError("it holds [[picture]] tables and nothing else")
            return found["picture"]
        rows = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
        if "picture" not in (rows.fieldnames or ()):
            raise ValueError(f"its first line is {','.join(rows.fieldnames or ())!r}; names of columns with commas in "
                             "between are needed, picture among them")  # fmt: skip
        if len(set(rows.fieldnames or ())) < len(rows.fieldnames or ()):
            raise ValueError("two columns have one name")
        return [{key or "a value beyond the last column": value for key, value in row.items() if value} for row in rows]
    except (ValueError, RecursionError, csv.Error) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None


def parse_line(line: str, number: int) -> Any:
    """The JSON of a line of a .jsonl. ValueError names the line."""
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"line {number} is no JSON object: {problem}") from None


def check_entry(entry: Any, folder: Path) -> Entry:
    """An entry with every file found, and its name."""
    if not isinstance(entry, dict) or not entry.get("picture"):
        raise InputError('"picture", a file, is needed')
    if unknown := [key for key in entry if key not in KEYS]:
        raise InputError(f"{unknown[0]!r} is not known; the keys are {', '.join(KEYS)}")
    if wrong := [key for key in KEYS if key != "words" and not isinstance(entry.get(key, ""), str)]:
        raise InputError(f"{wrong[0]!r} has to be text")
    words = entry.get("words", "")
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list) or len(words) not in (0, 2) or not all(isinstance(word, str) for word in words):
        raise InputError('"words" are two: one of the source prompt and one of the target prompt, such as "cat dog"')
    if bool(entry.get("exemplar")) != bool(entry.get("edit_map")):
        raise InputError('"exemplar" and "edit_map" belong together: give both')
    files = {key: folder / entry[key] for key in FILES if entry.get(key)}
    for key, file in files.items():
        if not file.is_file():
            raise InputError(f"{key} {file} is missing")
    name = check_file_name(entry.get("name") or files["picture"].stem, "the name")
    prompts = {key: check_prompt(entry.get(key, ""), key) for key in ("source_prompt", "target_prompt")}
    return {**prompts, **files, "words": words, "name": name}


def write_pie_bench_folder(entries: list[Entry], folder: Path) -> None:
    """The entries as a PIE-Bench folder: central squares of the pictures with their masks, maps and exemplars, so that
    every method sees the same frame. It stands whole or not at all, and replaces what was there. InputError for a mask
    or map of another size than its picture, and for a mask that the square does not hold."""
    import torch

    from common.data import EditItem, encode_mask, write_pie_bench
    from common.images import center_crop_resize, load_image, save_png
    from common.masks import load_mask

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        items = []
        for entry in entries:
            picture, name, words = load_image(entry["picture"]), entry["name"], tuple(entry["words"]) or None
            size, side = (picture.height, picture.width), min(picture.size)
            mask = load_mask(entry["mask"], size, picture) if "mask" in entry else torch.ones(size)
            top, left = (size[0] - side) // 2, (size[1] - side) // 2
            runs = encode_mask(mask[top : top + side, left : left + side])
            if not runs:
                raise InputError(f"the mask {entry['mask']} lies outside of the central square of its picture; cut "
                                 "both to a square around it")  # fmt: skip
            place, extras = temporary / "annotation_images" / f"{name}.png", {"masked": "mask" in entry}
            save_png(place, center_crop_resize(picture, side))
            for key in [key for key in ("exemplar", "edit_map", "truth") if key in entry]:
                beside = in_frame(entry[key], key, size)
                extras[f"{key}_path"] = f"{key}/{name}.png"
                save_png(temporary / f"{key}/{name}.png", center_crop_resize(beside, min(beside.size)))
            items.append(EditItem(name, place, entry["source_prompt"], entry["target_prompt"], "", "0", words, runs,
                                  (side, side), extras=extras))  # fmt: skip
        write_pie_bench(temporary, items)


def in_frame(path: Path, key: str, size: tuple[int, int]):
    """An exemplar as it is; a map or true edit, which lie on the picture, only if they have its size."""
    from PIL import Image

    from common.images import load_image
    from common.masks import check_same_size, read_grey

    if key == "edit_map":
        image = Image.fromarray((255 * read_grey(path, edit=1)).round().byte().numpy())
    else:
        image = load_image(path)
    if key != "exemplar":
        check_same_size(str(path), (image.height, image.width), "its picture", size)
    return image
